"""What every measurement needs: an input that fits the model, eval mode, the right device.

Each context manager here leaves the model as it found it, also when the measurement fails.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def check_arguments(model: nn.Module, input_size: Sequence[int], batch_size: int) -> None:
    """Raises TypeError or ValueError that say what was passed and what is accepted."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: {model!r}")
    if not input_size or not all(_is_positive_int(size) for size in input_size):
        raise ValueError(
            "input_size must be positive integers without the batch, such as (3, 224, 224), "
            f"got {input_size!r}"
        )
    if not _is_positive_int(batch_size):
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")


def device_of(model: nn.Module) -> torch.device:
    """The one device that holds the parameters and buffers of `model`; the CPU if it has none.

    Raises:
        ValueError: parameters and buffers are on more than one device.
    """
    devices = {tensor.device for tensor in state_of(model)}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{type(model).__name__} is spread over {names}; one device is accepted")
    return devices.pop() if devices else torch.device("cpu")


def state_of(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of `model`, shared ones once."""
    return itertools.chain(model.parameters(), model.buffers())


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating-point parameter; torch's default without any."""
    return next(
        (p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype()
    )


def random_images(
    model: nn.Module, input_size: Sequence[int], batch_size: int, *, device: torch.device
) -> Tensor:
    """`(batch_size, *input_size)` normal values in the dtype of the model's parameters.

    The values are the same on every call and the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, *input_size, generator=generator).to(device, dtype_of(model))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Attention with a bias table caches it in eval mode and drops it in train(): without this
        # the model would go on using a cached tensor made under inference mode.
        model.train()
        model.train(modes[0][1])
        for module, training in modes:
            module.training = training


@contextmanager
def masked(model: nn.Module) -> Iterator[None]:
    """Inside, modules whose cost depends on the image compute everything, whatever the image.

    Such a module says so by ``depends_on_image = True`` and has a switch ``dynamic``: what it would
    skip it masks while that is False, with the same outputs.
    """
    modules: Iterator[Any] = model.modules()
    switches = [(m, m.dynamic) for m in modules if getattr(m, "depends_on_image", False)]
    try:
        for module, _ in switches:
            module.dynamic = False
        yield
    finally:
        for module, dynamic in switches:
            module.dynamic = dynamic


@contextmanager
def placed(model: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """The model on `device` (None: where it is) inside, and back on its own device afterwards.

    Raises:
        ValueError: the model is on several devices, or on meta and so has no values to run with.
    """
    home = device_of(model)
    if home.type == "meta":
        raise ValueError(
            f"{type(model).__name__} is on the meta device and cannot run; "
            "build it on a real device, or count its FLOPs and parameters only"
        )
    target = _with_index(home if device is None else torch.device(device))
    if target == home:
        yield target
        return
    try:
        model.to(target)
        yield target
    finally:
        model.to(home)


def check_images(images: Tensor) -> None:
    """Raises TypeError or ValueError unless these are images in a batch."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (batch, ...), got {type(images).__name__}")
    if images.ndim < 2 or not images.numel():
        raise ValueError(
            f"images must be a batch of one image at least, got shape {tuple(images.shape)}"
        )


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _with_index(device: torch.device) -> torch.device:
    """`cuda` as `cuda:0`, the way tensors report it."""
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device
