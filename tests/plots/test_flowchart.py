"""The flowchart says what the function of the results says."""

from efficient_vits import plots, results
from efficient_vits.plots import _data


def test_every_answer_is_there_in_its_column(drawn, title_of, words):
    figure = drawn("decision_flowchart")
    (axes,) = figure.axes
    chart = results.decision_flowchart()
    places = {}
    for text in axes.texts:
        places.setdefault(text.get_text(), []).append(text.get_position())
    answers = 0
    for column, branch in enumerate(chart.branches):
        heights = []
        for leaf in branch.leaves:
            here = [y for x, y in places[leaf.run.label] if round(x) == column]
            assert len(here) == 1
            heights += here
            assert (column, here[0] + 0.2) in places[leaf.condition]
            assert (column, here[0] - 0.2) in places[_data.short(leaf.run, branch.metric)]
            answers += 1
        assert heights == sorted(heights, reverse=True)
    shares = [100 * branch.share for branch in chart.branches]
    assert f"{answers} answers that keep {min(shares):.0f} to {max(shares):.0f} %" in title_of(
        figure
    )
    assert "Memory of inference not known for 15 models." in words(figure)
    assert "routing_s16@384" in words(figure)


def test_what_no_run_has_is_no_branch(own, words):
    figure = plots.decision_flowchart(own)
    text = words(figure)
    assert "Speed of inference" in text
    assert "Parameters" in text
    assert "of training" not in text
