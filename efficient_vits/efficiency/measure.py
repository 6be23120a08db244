"""All measurements of one model at once."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efficient_vits.efficiency.distribution import FlopDistribution, flop_distribution
from efficient_vits.efficiency.energy import Energy, measure_energy
from efficient_vits.efficiency.environment import environment
from efficient_vits.efficiency.flops import FlopCount, count_flops
from efficient_vits.efficiency.inputs import check_arguments
from efficient_vits.efficiency.latency import Latency, measure_latency
from efficient_vits.efficiency.memory import MemoryUse, measure_memory
from efficient_vits.efficiency.named import build, own_input_size
from efficient_vits.efficiency.options import Options
from efficient_vits.efficiency.parameters import count_active_parameters, count_parameters
from efficient_vits.efficiency.throughput import Throughput, measure_throughput
from efficient_vits.efficiency.timing_rows import (
    energy_rows,
    latency_rows,
    speed_rows,
    training_rows,
)
from efficient_vits.efficiency.training_speed import TrainingSpeed, measure_training


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one model costs. `str` gives a short table, `to_dict` everything.

    Attributes:
        name: the name given to timm, or the class of the module.
        parameters: scalar parameters.
        active_parameters: those that act on one token; fewer where experts are chosen among.
        flops: operations per image, a multiply-add is one. Where they depend on the image, the most
            that they can be: nothing is skipped.
        distribution: what they are on the images that were given, None without images.
        memory: inference memory, None if it was not asked for.
        throughput: images per second, None if it was not asked for.
        latency: percentiles of the time of one image, None if they were not asked for.
        training: training steps, None if they were not asked for.
        energy: per image, None if it was not asked for.
        input_size: size of one image, `(channels, height, width)`.
        dtype: dtype of the parameters, such as "float32".
        environment: versions and devices, see `environment()`.
        transform: name of the function that the model went through before it was measured, such
            as "fuse"; None for a model as it is.
    """

    name: str
    parameters: int
    active_parameters: int
    flops: FlopCount
    distribution: FlopDistribution | None
    memory: MemoryUse | None
    throughput: Throughput | None
    input_size: tuple[int, ...]
    dtype: str
    environment: dict[str, Any]
    transform: str | None = None
    latency: Latency | None = None
    training: TrainingSpeed | None = None
    energy: Energy | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as nested dictionaries that `json` can write."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [
            ("input", " x ".join(map(str, self.input_size)) + f", {self.dtype}"),
            ("parameters", _millions(self.parameters, self.active_parameters)),
            ("FLOPs", f"{self.flops.total / 1e9:.3f} G per image (a multiply-add is one)"),
            ("MACs", f"{self.flops.macs / 1e9:.3f} G per image"),
        ]
        if self.distribution:
            rows += _rows(self.distribution)
        if self.flops.uncounted:
            rows.append(("not counted", ", ".join(sorted(self.flops.uncounted))))
        if self.memory:
            memory = self.memory
            rows.append(
                (
                    "memory",
                    f"{memory.peak_bytes / 2**20:.1f} MiB at batch {memory.batch_size}"
                    f" on {memory.device}",
                )
            )
        if self.throughput:
            rows += speed_rows(self.throughput)
        if self.latency:
            rows += latency_rows(self.latency)
        if self.training:
            rows += training_rows(self.training)
        if self.energy:
            rows += energy_rows(self.energy)
        if self.transform:
            rows.insert(0, ("transform", self.transform))
        width = max(len(label) for label, _ in rows)
        return "\n".join([self.name, *(f"  {label:<{width}}  {text}" for label, text in rows)])


def measure(
    model: nn.Module | str,
    *,
    input_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    throughput: bool = True,
    memory: bool = True,
    latency: bool = False,
    training: bool = False,
    energy: bool = False,
    options: Options | Mapping[str, Any] | None = None,
    protocol: str = "default",
    iterations: int | None = None,
    images: Tensor | None = None,
    transform: Callable[[nn.Module], nn.Module] | None = None,
    on_step: Callable[[str], object] | None = None,
) -> Measurement:
    """Measures parameters, FLOPs, inference memory, throughput and more of a model.

    Everything happens in this process. On CUDA other allocations in the process don't change the
    figures, but libraries that are already warm may take less memory than in a fresh process.

    Args:
        model: a module, or a name that is handed to `timm.create_model` (without weights).
        input_size: size of one image, `(channels, height, width)`; by default the one the model was
            built for, or `(3, 224, 224)` where it doesn't say.
        batch_size: images in a batch for memory (by default 1), throughput and training (by
            default the fastest one, which is searched), and energy (by default that of the
            throughput, or 1).
        device: where to measure memory and throughput; by default where the module is, for a name
            the current CUDA device if there is one.
        throughput: whether to measure the throughput, which takes seconds.
        memory: whether to measure the memory.
        latency: whether to measure the latency of single images.
        training: whether to measure training steps, of a copy.
        energy: whether to measure the energy per image, where there is a counter.
        options: how the model is run while it is timed, `Options` or its arguments. Parameters,
            FLOPs and memory are those of the model as it is.
        protocol: of the throughput, see `measure_throughput`.
        iterations: of the paper's protocol, 1000 if None.
        transform: makes of the model what is measured, such as `efficient_vits.fuse`. It should
            return a copy, or the model is changed.
        images: `(images, channels, height, width)`, normalised as the model expects: on these the
            operations are counted one by one, for models that skip work where an image allows it.
            Memory and throughput are measured on random images all the same.
        on_step: called with "flops", "distribution", "memory", "throughput", "latency", "training",
            "energy" before each of these is measured.

    Raises:
        ValueError: timm knows no model of this name; the message has the nearest names.
        TypeError, ValueError, RuntimeError: as `count_flops`, `flop_distribution`,
            `measure_memory`, `measure_throughput`, `measure_latency`, `measure_training` and
            `measure_energy`.
    """
    if isinstance(options, Mapping):
        options = Options(**options)
    if isinstance(model, str):
        name = model
        model = build(name)
        if device is None and torch.cuda.is_available():
            device = "cuda"
    else:
        name = type(model).__name__
    if input_size is None:
        input_size = own_input_size(model)
    check_arguments(model, input_size, 1 if batch_size is None else batch_size)
    if transform is not None:
        model = transform(model)

    def begin(step: str) -> None:
        if on_step is not None:
            on_step(step)

    begin("flops")
    flops = count_flops(model, input_size)
    distribution = None
    if images is not None:
        begin("distribution")
        distribution = flop_distribution(model, images)
    memory_use = speed = delay = steps = joules = None
    timing: dict[str, Any] = {"device": device, "options": options}
    if memory:
        begin("memory")
        memory_use = measure_memory(
            model, input_size, batch_size=1 if batch_size is None else batch_size, device=device
        )
    if throughput:
        begin("throughput")
        speed = measure_throughput(
            model,
            input_size,
            batch_size=batch_size,
            protocol=protocol,
            iterations=iterations,
            **timing,
        )
    if latency:
        begin("latency")
        delay = measure_latency(model, input_size, **timing)
    if training:
        begin("training")
        steps = measure_training(model, input_size, batch_size=batch_size, **timing)
    if energy:
        begin("energy")
        images_at_once = batch_size or (speed.batch_size if speed else 1)
        joules = measure_energy(model, input_size, batch_size=images_at_once, **timing)
    return Measurement(
        name=name,
        parameters=count_parameters(model),
        active_parameters=count_active_parameters(model),
        flops=flops,
        distribution=distribution,
        memory=memory_use,
        throughput=speed,
        latency=delay,
        training=steps,
        energy=joules,
        input_size=tuple(input_size),
        dtype=_dtype_name(model),
        environment=environment(),
        transform=None if transform is None else _function_name(transform),
    )


def _millions(parameters: int, active: int) -> str:
    """The number of parameters, and how many of them a token meets where these are fewer."""
    part = "" if active == parameters else f", {active / 1e6:.2f} M active per token"
    return f"{parameters / 1e6:.2f} M{part}"


def _rows(distribution: FlopDistribution) -> list[tuple[str, str]]:
    """Mean and spread as rows of the table."""
    flops, tokens = distribution.flops, distribution.tokens_per_block
    rows = [
        (
            "FLOPs done",
            f"{flops.mean / 1e9:.3f} ± {flops.std / 1e9:.3f} G on {distribution.images} images, "
            f"{distribution.skipped:.1%} skipped",
        )
    ]
    if tokens:
        rows.append(("tokens", f"{tokens.mean:.1f} ± {tokens.std:.1f} patch tokens per block"))
    return rows


def _function_name(function: Callable[..., object]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _dtype_name(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    return str(dtype).removeprefix("torch.")
