"""How an update's images are spread over processes and over time."""

from dataclasses import dataclass


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


def plan_batches(total: int, processes: int, micro: int | None = None) -> BatchPlan:
    """Spreads `total` images per update.

    Args:
        total: Images per update.
        processes: How many there are.
        micro: The most images that one process takes at a time; None for no limit.

    Raises:
        ValueError: `total` can't be shared equally; the message has the nearest numbers that can.
    """
    if micro is not None and micro < 1:
        raise ValueError(f"the micro-batch must have at least one image, got {micro}")
    if total % processes:
        below = total // processes * processes
        near = " or ".join(str(n) for n in (below, below + processes) if n)
        raise ValueError(
            f"a batch of {total} images can't be shared equally by {processes} processes; "
            f"{near} can"
        )
    share = total // processes
    fitting = max(n for n in range(1, min(micro or share, share) + 1) if share % n == 0)
    return BatchPlan(total, processes, share // fitting, fitting)
