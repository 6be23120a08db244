"""Which model to take: those that keep some bounds, ranked, and what each costs.

The answer is made of runs that were measured on one class of device, and no other kept the bounds
and was better in everything that was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efficient_vits import catalog
from efficient_vits.results import pareto
from efficient_vits.results.constraints import Constraint, parse_constraint
from efficient_vits.results.fronts import on_device
from efficient_vits.results.metrics import metric
from efficient_vits.results.runs import SAME_NETWORK, Run, as_rows

# What a choice is compared by, beside what was asked for.
_COMPARED = ("accuracy", "throughput", "params", "memory", "training_time", "training_memory")


@dataclass(frozen=True)
class Choice:
    """One recommended model.

    Attributes:
        run: The run whose figures are meant; of several of a model, the best by what is preferred.
        reasons: Why it is recommended.
        costs: What it gives up against the best of those that keep the bounds, by metric.
        notes: What else one should know before taking it.
    """

    run: Run
    reasons: tuple[str, ...]
    costs: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """The answer to `recommend`.

    Attributes:
        choices: The models to take, best first; none where nothing keeps all bounds.
        eligible: Models that keep all bounds, on the front of what was asked for or not.
        considered: Models that were looked at.
        constraints: The bounds.
        prefer: Metrics that the ranking goes by.
        unknown: Labels that lack a figure that a bound needs.
        nearest: Where nothing keeps all bounds: for each bound the best figure among the models
            that keep the others.
    """

    choices: tuple[Choice, ...]
    eligible: int
    considered: int
    constraints: tuple[Constraint, ...]
    prefer: tuple[str, ...]
    unknown: tuple[str, ...]
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        bounds = ", ".join(map(str, self.constraints)) or "no bounds"
        lines = [
            f"{self.eligible} of {self.considered} models keep {bounds}; by "
            f"{', '.join(self.prefer)}:"
        ]
        for place, choice in enumerate(self.choices, 1):
            lines.append(f"{place}. {choice.run.label}")
            for mark, texts in (("+", choice.reasons), ("-", choice.costs), ("!", choice.notes)):
                lines += [f"   {mark} {text}" for text in texts]
        lines += self.nearest
        if self.unknown:
            lines.append(f"without a figure that a bound needs: {', '.join(self.unknown)}")
        return "\n".join(lines)


def recommend(
    *,
    accuracy: str | float | None = None,
    throughput: str | float | None = None,
    memory: str | float | None = None,
    params: str | float | None = None,
    flops: str | float | None = None,
    training_time: str | float | None = None,
    training_memory: str | float | None = None,
    prefer: str | Sequence[str] | None = None,
    device: str | None = None,
    runs: Any = None,
    limit: int = 5,
) -> Recommendation:
    """Models that keep all bounds, ranked, with reasons and costs.

    A bound is a text such as ``">=80"`` or ``"<2 GiB"``, or a number: the worst that is accepted.

    Args:
        accuracy: Top-1 accuracy on ImageNet-1k in per cent.
        throughput: Images per second.
        memory: Inference memory at batch 1, in bytes without a unit.
        params: Parameters.
        flops: FLOPs per image, a multiply-add being one.
        training_time: Fine-tuning for 50 epochs, in GPU-seconds without a unit.
        training_memory: At a global batch of 2048, in bytes without a unit.
        prefer: Metric to rank by, or several, the first before the others; by default the
            throughput where the accuracy is bounded, else the accuracy.
        device: Class of device that the figures must be of, such as ``"A100"``; can be left out
            where the runs have only one.
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
        limit: Most choices.

    Raises:
        ValueError: A bound, metric, device class or limit that is not accepted; the message has
            those that are.
    """
    given = {
        "accuracy": accuracy,
        "throughput": throughput,
        "memory": memory,
        "params": params,
        "flops": flops,
        "training_time": training_time,
        "training_memory": training_memory,
    }
    constraints = [parse_constraint(name, v) for name, v in given.items() if v is not None]
    if prefer is None:
        prefer = "accuracy" if accuracy is None else "throughput"
    order = (prefer,) if isinstance(prefer, str) else tuple(prefer)
    if not order:
        raise ValueError("prefer names at least one metric, got none")
    for name in order:
        metric(name)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit is a positive number, got {limit!r}")
    asked = list(dict.fromkeys([*order, "accuracy", *(c.metric for c in constraints)]))
    rows = on_device(as_rows(runs), device, asked)
    rows = [run for run in rows if run.top1 is not None]

    kept = [run for run in rows if all(c.holds(run) for c in constraints)]
    ranked = [run for run in kept if all(run.value(name) is not None for name in order)]
    best = _best_of_each(ranked, order)
    # A figure that is only bounded (memory at batch 64) cannot be compared; the bound holds.
    comparable = [n for n in asked if all(run.value(n) is not None for run in best)]
    points = [[run.value(name) or 0.0 for name in comparable] for run in best]
    mask = pareto.pareto_mask(points, [metric(n).direction for n in comparable]) if best else []
    chosen = [run for run, on in zip(best, mask, strict=True) if on][:limit]
    labels = {run.label for run in rows}
    decided = {run.label for run in rows if all(c.holds(run) is not None for c in constraints)}
    return Recommendation(
        choices=tuple(
            Choice(
                run,
                _reasons(run, best, constraints, order),
                _costs(run, best, asked),
                _notes(run),
            )
            for run in chosen
        ),
        eligible=len(best),
        considered=len(labels),
        constraints=tuple(constraints),
        prefer=order,
        unknown=tuple(sorted(labels - decided - {run.label for run in kept})),
        nearest=() if best else _nearest(rows, constraints),
    )


def _rank(run: Run, order: Sequence[str]) -> list[float]:
    signs = [1 if metric(name).direction == "min" else -1 for name in order]
    return [s * (run.value(name) or 0.0) for s, name in zip(signs, order, strict=True)]


def _best_of_each(runs: list[Run], order: Sequence[str]) -> list[Run]:
    """The best run of each model and image size, best first."""
    best: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (_rank(run, [*order, "accuracy"]), run.label)):
        best.setdefault(run.label, run)
    return list(best.values())


def _reasons(
    run: Run, best: list[Run], constraints: list[Constraint], order: Sequence[str]
) -> tuple[str, ...]:
    first = order[0]
    texts = [f"{figure(run, first)}: {_ordinal(best.index(run) + 1)} of {len(best)} by {first}"]
    for constraint in constraints:
        if constraint.metric == first:
            continue
        if run.value(constraint.metric) is None:
            texts.append(f"{constraint}, as batch 64 takes {_bytes(run.memory[64])}")
        else:
            texts.append(f"{figure(run, constraint.metric)} ({constraint})")
    if "accuracy" not in [first, *(c.metric for c in constraints)]:
        texts.append(figure(run, "accuracy"))
    return tuple(texts)


def _costs(run: Run, best: list[Run], asked: list[str]) -> tuple[str, ...]:
    texts = []
    for name in dict.fromkeys([*asked, *_COMPARED]):
        value = run.value(name)
        others = [other for other in best if other.value(name) is not None]
        if value is None or not others:
            continue
        top = min(others, key=lambda other: _rank(other, [name]))
        reached = top.value(name) or 0.0
        if name in ("accuracy", "top5"):
            if reached - value >= 0.005:
                texts.append(f"{reached - value:.2f} points of {name} less than {top.label}")
        elif metric(name).direction == "max":
            if value <= 0.99 * reached:
                texts.append(f"{value / reached:.2f} times the {name} of {top.label}")
        elif value >= 1.01 * reached:
            texts.append(f"{value / reached:.2f} times the {name} of {top.label}")
    return tuple(texts)


def _notes(run: Run) -> tuple[str, ...]:
    notes = []
    twins = [name for name, network in SAME_NETWORK.items() if network == run.network]
    if twins:
        others = [name for name in (run.network, *twins) if name != run.name]
        notes.append(
            f"the benchmark ran {', '.join(others)} as the same network; their figures differ by "
            f"what measurements scatter"
        )
    card = catalog.cards().get(run.name)
    if card is not None:
        if card.note:
            notes.append(card.note)
        if not catalog.is_available(run.name):
            notes.append("this version does not build it")
    return tuple(notes)


def _nearest(rows: list[Run], constraints: list[Constraint]) -> tuple[str, ...]:
    texts = []
    for constraint in constraints:
        others = [c for c in constraints if c is not constraint]
        able = [
            run
            for run in rows
            if run.value(constraint.metric) is not None and all(c.holds(run) for c in others)
        ]
        if able:
            sign = 1 if constraint.operator.startswith("<") else -1
            top = min(able, key=lambda run: sign * (run.value(constraint.metric) or 0.0))
            texts.append(f"without {constraint}: {top.label} has {figure(top, constraint.metric)}")
    return tuple(texts or ["no model keeps all bounds but one"])


def figure(run: Run, name: str) -> str:
    """A figure of a run for people, with its unit."""
    value = run.value(name)
    if value is None:
        return f"{name} not known"
    kind = metric(name).kind
    if kind == "%":
        return f"{value:.2f} % {name}"
    if kind == "bytes":
        return f"{_bytes(value)} of {name}"
    if kind == "count":
        return f"{value / 1e6:.1f} M {name}" if value < 1e9 else f"{value / 1e9:.2f} G {name}"
    if name == "training_time":
        return f"{value / 3600:.1f} GPU-hours of {name}"
    if name == "inference_time":
        return f"{value * 1e3:.3f} ms of {name}"
    return f"{value:,.0f} images/s" if name == "throughput" else f"{value:.2f} {name}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


def _ordinal(place: int) -> str:
    return "best" if place == 1 else f"number {place}"
