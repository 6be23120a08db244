"""Sections D.4 to D.7: scaling, years, pre-training, parameters."""

import statistics
from collections.abc import Iterable

from efficient_vits.results.fronts import front
from efficient_vits.results.history import accuracy_per_parameter, fronts_by_year
from efficient_vits.results.scaling import PAIRS, model_or_image, pretraining_sizes
from efficient_vits.results.statements._interface import NO_DATA, Checked, figure, verdict
from efficient_vits.results.table5 import family_of
from efficient_vits.results.tables import stated


def scaling() -> Iterable[Checked]:
    """D.4: scaling the model or the image."""
    found = [(pair, entry) for pair in PAIRS for entry in model_or_image(*pair)]
    worse = [(pair, entry) for pair, entry in found if entry.better != "model"]
    exceptions = {f"{entry.metric} of {pair[0]}" for pair, entry in worse}
    yield Checked(
        "D.4",
        "scaling the model beats scaling the image but in inference memory, for small models",
        "only inference memory",
        f"better in {len(found) - len(worse)} of {len(found)} comparisons; not in "
        + ", ".join(sorted(exceptions)),
        verdict(bool(worse) and all(e.metric.startswith("memory") for _, e in worse)),
    )
    yield _large_images()


def _large_images() -> Checked:
    members = front(objectives=("accuracy", "memory")).members
    large = sorted({run.label for run in members if run.img_size != 224})
    other = {
        run.label
        for name in ("throughput", "training_time", "training_memory")
        for run in front(objectives=("accuracy", name)).members
        if run.img_size != 224
    }
    return Checked(
        "D.4",
        "larger images pay where inference memory is scarce, and not for speed or training",
        "in inference memory",
        f"on the front of inference memory: {', '.join(large) or 'none'}; on the three other "
        f"fronts of Table 5: {', '.join(sorted(other)) or 'none'}",
        verdict(bool(large) and not other),
    )


def years() -> Iterable[Checked]:
    """D.5: the front over publication years."""
    years = {entry.year: entry for entry in fronts_by_year()}
    for year, named in ((2021, {"TokenLearner"}), (2022, {"Hydra", "EViT", "ToMe"})):
        runs = [r for r in years[year].front.members if r.label in years[year].added]
        added = sorted({family_of(run) for run in runs})
        yield Checked(
            "D.5",
            f"added to the front of throughput and accuracy in {year}",
            ", ".join(sorted(named)),
            ", ".join(added),
            verdict(named <= set(added)),
        )
    last, start = years[max(years)], years[2020]
    growth = last.hypervolume / start.hypervolume - 1
    fresh = [name for name in last.front.names if name not in start.front.names]
    yield Checked(
        "D.5",
        "the improvements of the front after 2020 are only marginal",
        "marginal",
        f"{len(fresh)} of {len(last.front.names)} members are newer; the volume that it dominates "
        f"is {100 * growth:.0f} % larger (taken as: below 5 %)",
        verdict(growth < 0.05),
    )


def pretraining() -> Iterable[Checked]:
    """D.6: pre-training at 192 px."""
    entries = pretraining_sizes()
    differences = [entry.difference for entry in entries]
    yield Checked(
        "D.6",
        "pre-training at 192 px is faster than at 224 px, on average",
        f"{stated('pretraining_speedup').value} x",
        "pre-training times are not published",
        NO_DATA,
    )
    yield figure(
        "D.6",
        "average change of accuracy by pre-training at 192 px",
        "pretraining_accuracy",
        statistics.mean(differences),
        f", {len(entries)} models",
    )
    losing = sum(d < 0 for d in differences)
    yield Checked(
        "D.6",
        "for some models accuracy increases, for most it decreases",
        "most",
        f"{losing} of {len(entries)} lose, {sum(d > 0 for d in differences)} gain",
        verdict(2 * losing > len(entries) and max(differences) > 0),
    )
    worst = entries[0]
    yield figure(
        "D.6",
        "largest loss",
        "pretraining_largest_loss",
        -worst.difference,
        f" ({worst.name})",
    )


def parameters() -> Iterable[Checked]:
    """D.7: accuracy and parameters."""
    ordered = accuracy_per_parameter()
    names = [run.name for run in ordered]
    between = ordered[names.index("synthesizer_fr_s16") : names.index("evit_s16") + 1]
    ratios = [run.accuracy_per_parameter or 0.0 for run in between]
    yield Checked(
        "D.7",
        "from Synthesizer-FR to EViT in order of accuracy, accuracy per parameter is very similar",
        "very similar",
        f"{min(ratios):.1f} to {max(ratios):.1f} % per million over {len(between)} models "
        f"(taken as: within a factor of 1.5)",
        verdict(max(ratios) < 1.5 * min(ratios)),
    )
    found = front(objectives=("accuracy", "params"))
    small = sorted({family_of(run) for run in found.members if run.img_size == 224})
    yield Checked(
        "D.7",
        "the only Pareto-optimal model of parameters and accuracy with small images",
        "CoaT",
        ", ".join(small),
        verdict(small == ["CoaT"]),
    )
    large = sum(run.img_size != 224 for run in found.members)
    yield Checked(
        "D.7",
        "most Pareto-optimal models of parameters and accuracy use the larger images",
        "most",
        f"{large} of {len(found.members)}",
        verdict(2 * large > len(found.members)),
    )
