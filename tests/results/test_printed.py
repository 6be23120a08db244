import dataclasses

from efficient_vits.results import compare_printed, memory_is_batch_64
from efficient_vits.results.printed import _disagreements

COMPARISON = compare_printed()
FOUND = {(d.run.label, d.run.pretrain_size, d.column): d for d in COMPARISON.differences}


def cell(label, size, column):
    difference = FOUND[label, size, column]
    return difference.printed, difference.recorded


def test_known_misprints_are_found():
    assert cell("polysa_s16", 192, "throughput") == ("3404.60", "5404.60")
    assert cell("polysa_s16", 224, "throughput") == ("3538.89", "5358.89")
    assert cell("vit_ti16@384", 224, "model") == ("ViT-S/16", "vit_ti16")
    assert cell("vit_b16", 192, "pretrain_size") == ("224", "192")
    assert cell("xcit_s12_p16", 224, "gflops") == ("5.94", "4.94")
    assert cell("nystrom64_s16", 224, "gflops") == ("4.93", "5.07")
    assert cell("evit_fuse_s16", 224, "throughput") == ("3358.60", "3558.60")
    assert cell("dynamicvit_s16", 192, "throughput") == ("4256.67", "4250.67")
    assert cell("synthesizer_fr_s16", 192, "training_memory_gb") == ("108.74", "68.19")
    assert cell("synthesizer_fr_s16", 192, "top1") == ("78.30", "78.80")
    assert cell("sinkhorn_cait_s16@384", 224, "top1") == ("83.77", "81.77")
    assert cell("routing_s16@384", 224, "throughput") == ("767.14", "not recorded")
    assert cell("evit_s16@384", 224, "img_size") == ("224", "384")
    assert cell("swiftformer_s@384", 224, "img_size") == ("224", "384")
    assert cell("gfnet_s16", 192, "top5") == ("95.71", "95.51")


def test_rows_and_runs_are_matched_once():
    assert len(COMPARISON.matched) + len(COMPARISON.unmatched) == 91
    assert len(COMPARISON.matched) + len(COMPARISON.unprinted) == 105
    runs = [id(run) for _, run in COMPARISON.matched]
    assert len(set(runs)) == len(runs)


def test_rows_without_a_run_are_other_trainings():
    assert all("lr=0.003" in row.run_parameters for _, row in COMPARISON.unmatched)
    assert len(COMPARISON.unmatched) == 4


def test_runs_without_a_row_come_after_the_end_of_the_text():
    names = {run.name for run in COMPARISON.unprinted}
    assert {"tome_s16_r8", "cait_s24", "switch8_s16", "stvit_swin_ti_w7"} <= names
    assert names & {row.name for row, _ in COMPARISON.matched} == {"routing_s16"}


def test_the_printed_memory_is_that_of_batch_64():
    fits, rows = memory_is_batch_64()
    assert fits == rows > 70
    wrong = [
        row.memory_gb
        for row, run in COMPARISON.matched
        if 1 in run.memory and abs(run.memory[1] / 2**30 - row.memory_gb) <= 0.00501
    ]
    assert wrong == []


def test_a_cell_that_differs_is_seen():
    """The comparison sees one changed digit, and nothing in a row that agrees."""
    row, run = next((row, run) for row, run in COMPARISON.matched if not _disagreements(row, run))
    changed = dataclasses.replace(row, throughput=row.throughput + 0.01)
    assert [column for column, *_ in _disagreements(changed, run)] == ["throughput"]
