import dataclasses

import pytest

from efficient_vits import catalog
from efficient_vits.results import TASKS, family_of, load_rows, table5, table5_rebuilt
from efficient_vits.results.table5 import FAMILIES, architectures

CELLS = {(cell.taxonomy_class, cell.task): cell for cell in table5_rebuilt()}


def families(task, what):
    return {f for (_, t), cell in CELLS.items() if t == task for f in getattr(cell, what)}


def test_every_printed_cell_is_there():
    for row in table5():
        for task in TASKS:
            printed = row.families[task]
            cell = CELLS.get((row.taxonomy_class, task))
            assert (cell.printed if cell else ()) == printed


def test_inference_speed_is_rebuilt_exactly():
    assert families("inference_speed", "rebuilt") == families("inference_speed", "printed")
    for (_, task), cell in CELLS.items():
        if task == "inference_speed":
            assert set(cell.rebuilt) == set(cell.printed)


def test_training_memory_has_one_more():
    extra = families("training_memory", "rebuilt") - families("training_memory", "printed")
    assert extra == {"EViT Fuse"}
    assert families("training_memory", "printed") <= families("training_memory", "rebuilt")
    reason = CELLS["Token Merging", "training_memory"].reasons["EViT Fuse"]
    assert "with the digits of the printed table one does" in reason


def test_training_speed():
    assert families("training_speed", "printed") - families("training_speed", "rebuilt") == {"EViT"}
    reason = CELLS["Token Removal", "training_speed"].reasons["EViT"]
    assert "is dominated by tome_s16_r8" in reason


def test_inference_memory_lacks_what_was_not_published():
    missing = families("inference_memory", "printed") - families("inference_memory", "rebuilt")
    assert missing == {"EfficientViT", "NextViT", "EfficientMod"}
    hybrid = CELLS["Hybrid Attention", "inference_memory"].reasons
    assert "with any figure at batch 1 it is on the front" in hybrid["NextViT"]
    assert "if batch 1 takes less than the 0.55 of cvt_13" in hybrid["EfficientViT"]
    sparse = CELLS["Sparse Attention", "inference_memory"]
    assert "but nextvit_small" in sparse.reasons["WaveViT"]
    assert families("inference_memory", "rebuilt") == {"CoaT", "CvT", "EViT@384", "CaiT", "WaveViT"}


def test_every_difference_has_a_reason():
    for cell in CELLS.values():
        assert set(cell.reasons) == set(cell.printed) ^ set(cell.rebuilt)
        assert all(cell.reasons.values())


def test_numbers_of_architectures():
    assert architectures() == {row.taxonomy_class: row.architectures for row in table5()}


def test_families_cover_the_benchmark_without_overlap():
    ran = {card.name for card in catalog.cards().values() if card.paper_model}
    trained = {run.name for run in load_rows()} | {"hivit_ti16"}
    assert trained <= ran
    for name in trained:
        assert len([f for f, start in FAMILIES.items() if name.startswith(start)]) == 1, name


def test_larger_images_are_marked():
    run = load_rows()[0]
    assert family_of(run) == "DeiT"
    assert family_of(dataclasses.replace(run, img_size=382)) == "DeiT@384"
    with pytest.raises(ValueError, match="'convnext' belongs to no family"):
        family_of(dataclasses.replace(run, name="convnext"))
