"""What rows of measurements must share to be compared: the machine, and how it was measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Facts = dict[str, str]

# Of `environment`: hardware and software that a figure depends on.
_MACHINE = (
    "cpu device driver cuda platform threads python torch timm efficient_vits".split()  # noqa: SIM905
)
# What is asked to be measured is no difference in how.
_WHAT = {"throughput", "memory", "latency", "training", "energy"}
_NOT_SAID = "not said"
DOES_NOT_APPLY = "does not apply"


def machine(row: Mapping[str, Any]) -> Facts:
    """What a figure that depends on the device was measured on."""
    environment = row.get("environment") or {}
    facts = {name: str(environment[name]) for name in _MACHINE if name in environment}
    for figure in ("throughput", "memory"):
        device = (row.get(figure) or {}).get("device")
        if device is not None:
            # Which of several equal GPUs it was makes no difference.
            facts["kind of device"] = str(device).partition(":")[0]
    return facts


def protocol(row: Mapping[str, Any]) -> Facts:
    """How figures that depend on the device were measured."""
    environment = row.get("environment") or {}
    facts = {}
    if "float32_matmul_precision" in environment:
        facts["float32_matmul_precision"] = str(environment["float32_matmul_precision"])
    if "dtype" in row:
        facts["dtype"] = str(row["dtype"])
    options = (row.get("job") or {}).get("options") or {}
    for name, value in options.items():
        # "cuda:1" is a matter of which device, and told by the machine; what was asked for in
        # "options" stands in the row as what was in force.
        if not (name in _WHAT and isinstance(value, bool)) and name not in ("device", "options"):
            facts[name] = str(value)
    speed = row.get("throughput") or {}
    if "protocol" in speed:
        facts["protocol"] = str(speed["protocol"])
    for name, value in (speed.get("options") or {}).items():
        facts[f"option {name}"] = str(value)
    if facts.get("option fused_attention") == "None":
        facts["option fused_attention"] = DOES_NOT_APPLY  # a model without attention has neither
    return facts


def counting(row: Mapping[str, Any]) -> Facts:
    """How operations were counted."""
    flops = row.get("flops") or {}
    return {f"FLOPs {name}": str(flops[name]) for name in ("rules", "training") if name in flops}


def variant(row: Mapping[str, Any]) -> Facts:
    """What tells rows of one name apart: the model's own, which any comparison may be about."""
    facts = {}
    if row.get("input_size"):
        facts["input"] = "x".join(map(str, row["input_size"][1:] or row["input_size"]))
    for name, value in ((row.get("job") or {}).get("model_arguments") or {}).items():
        facts[name] = str(value)
    if row.get("transform"):
        facts["transform"] = str(row["transform"])
    return facts


def differences(facts: Sequence[Facts]) -> dict[str, list[str]]:
    """Facts that are not the same everywhere, each with its values in the order they are met."""
    names = dict.fromkeys(name for fact in facts for name in fact)
    values = {name: [fact.get(name, _NOT_SAID) for fact in facts] for name in names}
    return {name: v for name, v in values.items() if len(set(v) - {DOES_NOT_APPLY}) > 1}


def refuse(
    what: str, names: Sequence[str], facts: Sequence[Facts], *, columns: Iterable[str], remedy: str
) -> None:
    """Raises ValueError that lists what differs, and in which rows, unless nothing does."""
    found = differences(facts)
    if not found:
        return
    details = []
    for fact, values in found.items():
        groups: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            groups.setdefault(value, []).append(name)
        parts = [f"{value} ({_few(group)})" for value, group in groups.items()]
        details.append(f"{fact}: {', '.join(parts)}")
    raise ValueError(
        f"{', '.join(columns)} of different {what} cannot be compared; {remedy}. "
        f"What differs: {'; '.join(details)}"
    )


def _few(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
