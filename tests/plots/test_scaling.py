"""Figure 6: three points in each panel, and who wins."""

import pytest

from efficient_vits import plots, results
from efficient_vits.plots import _data
from efficient_vits.results.scaling import COSTS


def test_panels_have_the_figures_of_the_three_runs(drawn, title_of):
    figure = drawn("model_or_image")
    assert len(figure.axes) == len(COSTS) * len(results.PAIRS)
    won = total = 0
    for i, axes in enumerate(figure.axes):
        cost, pair = COSTS[i // len(results.PAIRS)], results.PAIRS[i % len(results.PAIRS)]
        entry = {e.metric: e for e in results.model_or_image(*pair)}.get(cost)
        if entry is None:
            assert "not published" in [text.get_text() for text in axes.texts]
            assert (cost, pair[0]) == ("memory", "afno_ti16")
            continue
        won, total = won + (entry.better == "model"), total + 1
        for collection in axes.collections:
            run = getattr(entry, collection.get_gid())
            x, y = map(float, collection.get_offsets()[0])
            assert (x, y) == (_data.shown(run, cost), run.top1)
            assert (collection.get_sizes()[0] > 50) == (run.img_size != 224)
        assert len(axes.collections) == 3
    assert title_of(figure) == f"Scaling the model is better in {won} of {total} comparisons"
    assert 0 < won < total


def test_a_pair_that_was_not_run_is_left_out():
    rows = [run for run in results.load_rows() if not run.name.startswith("afno")]
    assert len(plots.model_or_image(rows).axes) == 3 * len(COSTS)
    with pytest.raises(ValueError, match="pairs are vit_ti16 and vit_s16"):
        plots.model_or_image([run for run in rows if run.name == "hydra_s16"])
