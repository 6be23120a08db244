"""How an update's images are spread over processes and over time."""

from dataclasses import dataclass


class BatchError(ValueError):
    """A batch that can't be spread; the message says which can."""


@dataclass(frozen=True)
class BatchPlan:
    """The same number of images per update, whatever the hardware.

    Attributes:
        total: Images per update.
        processes: Processes that share them.
        accumulation: Passes per update, one after the other.
        micro: Images per pass and process.
    """

    total: int
    processes: int
    accumulation: int
    micro: int

    def __str__(self) -> str:
        return (
            f"{self.total} images per update = {self.processes} processes x {self.accumulation} "
            f"passes x {self.micro} images"
        )


def plan_batches(
    total: int, processes: int, micro: int | None = None, *, pairs: bool = False
) -> BatchPlan:
    """Spreads `total` images per update.

    Args:
        total: Images per update.
        processes: How many there are.
        micro: The most images that one process takes at a time; None for no limit.
        pairs: A process takes an even number at a time, as CutMix needs.

    Raises:
        BatchError: `total` can't be shared equally; the message has the nearest numbers that can.
    """
    step = 2 if pairs else 1
    if micro is not None and micro < step:
        raise BatchError(f"the micro-batch must have at least {step} images, got {micro}")
    unit = processes * step
    if total % unit:
        below = total // unit * unit
        near = " or ".join(str(n) for n in (below, below + unit) if n)
        raise BatchError(
            f"a batch of {total} images can't be shared equally by {processes} processes"
            f"{' in pairs' if pairs else ''}; {near} can"
        )
    share = total // processes
    fitting = max(n for n in range(step, min(micro or share, share) + 1, step) if share % n == 0)
    return BatchPlan(total, processes, share // fitting, fitting)
