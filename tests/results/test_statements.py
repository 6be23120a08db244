"""Each statement of the supplement has the verdict that the page reports."""

import pytest

from efficient_vits.results import check_statements
from efficient_vits.results.statements._interface import CONFIRMED, DIFFERS, NO_DATA, figure

FOUND = {(c.section, c.statement): c for c in check_statements()}

VERDICTS = {
    ("A.4", "standard deviation of throughput over 8 runs of ViT"): NO_DATA,
    ("A.4", "standard deviation of fine-tuning time, likewise"): NO_DATA,
    ("A.4", "the measurements of all efficiency metrics are very robust"): DIFFERS,
    ("Table 3", "correlation of accuracy on cars with ImageNet-1k, pearson"): DIFFERS,
    ("Table 3", "correlation of accuracy on cars with ImageNet-1k, spearman"): CONFIRMED,
    ("Table 3", "correlation of accuracy on flowers with ImageNet-1k, pearson"): DIFFERS,
    ("Table 3", "correlation of accuracy on flowers with ImageNet-1k, spearman"): CONFIRMED,
    ("Table 3", "correlation of accuracy on places with ImageNet-1k, pearson"): DIFFERS,
    ("Table 3", "correlation of accuracy on places with ImageNet-1k, spearman"): CONFIRMED,
    ("C", "rank correlations between data sets are even higher"): CONFIRMED,
    (
        "C",
        "the front of throughput and accuracy stays largely the same on other data sets",
    ): DIFFERS,
    (
        "D.1",
        "Performer, Linear Transformer, HaloNet, Reformer, A-ViT and GTP are not in the analysis",
    ): CONFIRMED,
    ("D.2", "fixed and kernel attention have comparatively low accuracies"): CONFIRMED,
    ("D.3", "Spearman correlations of throughput between devices exceed 75 %"): NO_DATA,
    ("D.3", "correlation of A100 and CPU without the outliers"): NO_DATA,
    ("D.3", "the fronts on A100 and CPU are largely the same"): NO_DATA,
    ("D.3", "EfficientFormerV2 is one of the slowest models on the GPU"): CONFIRMED,
    (
        "D.3",
        "EfficientFormerV2, SwiftFormer, HiViT and EfficientMod are not on the front on the GPU "
        "(and are on the CPU)",
    ): CONFIRMED,
    (
        "D.4",
        "scaling the model beats scaling the image but in inference memory, for small models",
    ): CONFIRMED,
    (
        "D.4",
        "larger images pay where inference memory is scarce, and not for speed or training",
    ): CONFIRMED,
    ("D.5", "added to the front of throughput and accuracy in 2021"): CONFIRMED,
    ("D.5", "added to the front of throughput and accuracy in 2022"): CONFIRMED,
    ("D.5", "the improvements of the front after 2020 are only marginal"): DIFFERS,
    ("D.6", "pre-training at 192 px is faster than at 224 px, on average"): NO_DATA,
    ("D.6", "average change of accuracy by pre-training at 192 px"): DIFFERS,
    ("D.6", "for some models accuracy increases, for most it decreases"): CONFIRMED,
    ("D.6", "largest loss"): CONFIRMED,
    (
        "D.7",
        "from Synthesizer-FR to EViT in order of accuracy, accuracy per parameter is very similar",
    ): DIFFERS,
    (
        "D.7",
        "the only Pareto-optimal model of parameters and accuracy with small images",
    ): DIFFERS,
    (
        "D.7",
        "most Pareto-optimal models of parameters and accuracy use the larger images",
    ): CONFIRMED,
    ("D.8", "correlation of fine-tuning time and inference time"): CONFIRMED,
    ("D.8", "the front of fine-tuning time is similar to that of throughput"): CONFIRMED,
    ("D.9", "correlation of training memory and inference time"): DIFFERS,
    ("D.9", "correlation of FLOPs and training memory"): DIFFERS,
    ("D.9", "slope of training memory on FLOPs"): CONFIRMED,
    ("D.9", "intercept of training memory on FLOPs"): CONFIRMED,
    ("D.9", "there are no significant outliers from the line"): DIFFERS,
    ("D.9", "the front of training memory is similar to that of throughput"): CONFIRMED,
    ("Table 5", "number of architectures of each class"): CONFIRMED,
    ("Table 5", "Pareto-optimal families for inference speed"): CONFIRMED,
    ("Table 5", "Pareto-optimal families for training speed"): DIFFERS,
    ("Table 5", "Pareto-optimal families for inference memory"): DIFFERS,
    ("Table 5", "Pareto-optimal families for training memory"): DIFFERS,
}


def test_all_statements_are_judged():
    assert set(FOUND) == set(VERDICTS)


@pytest.mark.parametrize("key", VERDICTS, ids=lambda key: f"{key[0]} {key[1][:60]}")
def test_a_statement(key):
    checked = FOUND[key]
    assert checked.verdict == VERDICTS[key], checked
    assert checked.paper
    assert checked.ours


def test_where_it_differs_both_figures_are_shown():
    differing = FOUND["D.6", "average change of accuracy by pre-training at 192 px"]
    assert differing.paper == "-0.16 points"
    assert differing.ours.startswith("-0.168 points")


@pytest.mark.parametrize(
    ("ours", "verdict"), [(25.43, CONFIRMED), (25.4349, CONFIRMED), (25.44, DIFFERS)]
)
def test_a_figure_is_confirmed_if_it_rounds_to_it(ours, verdict):
    assert figure("D.9", "slope", "memory_slope", ours).verdict == verdict
