"""Signs that times are not the model's alone.

`"spread"`
: The quartiles are more than 10 % of the median apart.

`"drift"`
: The medians of the first and the last third differ by more than 5 % and more than the quartiles.

`"throttling"`
: The processor counted thermal events, or heat or a power brake holds the GPU's clocks back.

`"busy device"`
: Other processes used more than a tenth of the processors, or are on the GPU.
"""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from efficient_vits.efficiency import nvml

SPREAD = 0.10
DRIFT = 0.05
BUSY = 0.10
_SHORTEST = 0.1  # the system counts processor time in ticks of 10 ms


class Watch:
    """Looks at the machine when it is made and when it is asked for flags."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began = time.perf_counter()
        self.thermal_events = _thermal_events() if device.type == "cpu" else 0
        self.busy = _processor_seconds() if device.type == "cpu" else None
        self.own = _own_seconds()

    def flags(self, times: Sequence[float]) -> tuple[str, ...]:
        """Why the times measured since the watch was made may be wrong; empty if nothing says so.

        Args:
            times: seconds, in the order of time.
        """
        found = []
        lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
        if upper - lower > SPREAD * median:
            found.append("spread")
        third = max(len(times) // 3, 1)
        change = statistics.median(times[-third:]) - statistics.median(times[:third])
        if abs(change) > max(DRIFT * median, upper - lower):
            found.append("drift")
        if self._is_throttled():
            found.append("throttling")
        if self._is_shared():
            found.append("busy device")
        return tuple(found)

    def _is_throttled(self) -> bool:
        if self.device.type == "cuda":
            return nvml.is_throttled(self.device)
        return self.device.type == "cpu" and _thermal_events() > self.thermal_events

    def _is_shared(self) -> bool:
        if self.device.type == "cuda":
            return nvml.has_other_processes(self.device)
        seconds = time.perf_counter() - self.began
        if self.device.type != "cpu" or seconds < _SHORTEST:
            return False
        cores = os.cpu_count() or 1
        now = _processor_seconds()
        if self.busy is None or now is None:
            return _load_average() > cores
        others = (now - self.busy) - (_own_seconds() - self.own)
        return others > BUSY * seconds * cores


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system


def _processor_seconds() -> float | None:
    """Seconds that all processors together were busy, None where the system doesn't say."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; what follows is in the first two
    ticks = [int(word) for word in path.read_text().split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    return busy / float(os.sysconf("SC_CLK_TCK"))


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _thermal_events() -> int:
    counters = Path("/sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
    return sum(int(counter.read_text()) for counter in counters)
