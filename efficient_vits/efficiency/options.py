"""How a model is run while it is timed: precision, layout, compiler, fused attention, threads."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import set_fused_attn, use_fused_attn
from torch import Tensor, nn

from efficient_vits.efficiency.inputs import dtype_of, placed, random_images

_AMP = ("bfloat16", "float16")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Options:
    """How a model is run. What is None or False is left as model and process have it.

    The options in a result are those that were in force: None is replaced by what it stood for.

    Attributes:
        amp: dtype of `torch.autocast`, "bfloat16" or "float16"; None for no autocast.
        dtype: what the floating-point parameters are cast to, "float32", "bfloat16", "float16" or
            "float64".
        tf32: whether matrix products and cuDNN's convolutions of float32 may use TF32
            (`torch.set_float32_matmul_precision` "high" or "highest", and
            `torch.backends.cudnn.allow_tf32`). In a result None says that the two differ, which is
            torch's default.
        channels_last: images and weights of convolutions with channels in the last place.
        compile: `torch.compile`, True or one of its modes. Each batch size is compiled on its own,
            so that none runs in a kernel made for others; torch's compiler is reset for that.
        fused_attention: whether attention uses `F.scaled_dot_product_attention`. Sets timm's switch
            and the `fused_attn` of the modules that have one. In a result None says that no module
            has one, or that they differ.
        threads: of torch on the CPU (`torch.set_num_threads`).

    Raises:
        ValueError: a value is none of the above, or `amp` is asked for with a `dtype` that is not
            float32.
    """

    amp: str | None = None
    dtype: str | None = None
    tf32: bool | None = None
    channels_last: bool = False
    compile: bool | str = False
    fused_attention: bool | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _check("amp", self.amp, (None, *_AMP))
        _check("dtype", self.dtype, (None, *_DTYPES))
        _check("tf32", self.tf32, (None, True, False))
        _check("channels_last", self.channels_last, (True, False))
        _check("compile", self.compile, (True, False, *_MODES))
        _check("fused_attention", self.fused_attention, (None, True, False))
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ValueError(f"threads must be a positive integer or None, got {self.threads!r}")
        if self.amp and self.dtype not in (None, "float32"):
            raise ValueError(
                f"amp={self.amp!r} is for float32 parameters, got dtype={self.dtype!r}; give one "
                "of the two"
            )


@dataclass(frozen=True)
class Prepared:
    """A model ready to be timed.

    Attributes:
        run: the forward pass, images to outputs.
        device: where the model is.
        options: what is in force, see `Options`.
    """

    model: nn.Module
    run: Callable[[Tensor], Any]
    device: torch.device
    options: Options

    def images(self, input_size: Sequence[int], batch_size: int) -> Tensor:
        """Random images as the model takes them."""
        images = random_images(self.model, input_size, batch_size, device=self.device)
        if self.options.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images


@contextmanager
def prepared(
    model: nn.Module, device: torch.device | str | None, options: Options | None
) -> Iterator[Prepared]:
    """The model on `device` under `options` inside; model and process as they were afterwards.

    Raises:
        TypeError: `options` is no `Options`.
        ValueError: autocast doesn't know the device, or as `placed`.
    """
    options = Options() if options is None else options
    if not isinstance(options, Options):
        raise TypeError(f"options must be an Options, got {type(options).__name__}: {options!r}")
    with ExitStack() as stack:
        stack.enter_context(_cast(model, options))
        target = stack.enter_context(placed(model, device))
        if options.amp and not torch.amp.is_autocast_available(target.type):
            raise ValueError(f"amp={options.amp!r}: torch has no autocast for {target}")
        stack.enter_context(_process_set(options))
        stack.enter_context(_attention_set(model, options.fused_attention))
        run: Callable[[Tensor], Any] = model
        if options.compile:
            # Or the caller's next compiled model meets the limits that this one has used up.
            stack.callback(torch.compiler.reset)
            run = _Compiled(model, "default" if options.compile is True else options.compile)
        if options.amp:
            run = _autocast(run, target, getattr(torch, options.amp))
        yield Prepared(model, run, target, _in_force(model, options))


class _Compiled:
    """`torch.compile`, anew for each shape: more shapes than torch's limit would run uncompiled."""

    def __init__(self, model: nn.Module, mode: str) -> None:
        self.model, self.mode = model, mode
        self.compiled: Callable[[Tensor], Any] = model
        self.shape: torch.Size | None = None

    def __call__(self, images: Tensor) -> Any:
        if images.shape != self.shape:
            torch.compiler.reset()
            self.compiled = torch.compile(self.model, mode=self.mode, dynamic=False)
            self.shape = images.shape
        return self.compiled(images)


def _autocast(
    run: Callable[[Tensor], Any], device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Any]:
    def forward(images: Tensor) -> Any:
        # Entered for each batch, as a user does: inside, cast weights are kept and never renewed.
        with torch.autocast(device.type, dtype=dtype):
            return run(images)

    return forward


@contextmanager
def _cast(model: nn.Module, options: Options) -> Iterator[None]:
    """Parameters and buffers in another dtype or layout inside, the very same tensors after it."""
    if options.dtype is None and not options.channels_last:
        yield
        return
    parameters = [(p, p.data, p.grad) for p in model.parameters()]
    buffers = [(m, *b) for m in model.modules() for b in m.named_buffers(recurse=False)]
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None
        if options.dtype is not None:
            model.to(getattr(torch, options.dtype))
        if options.channels_last:
            model.to(memory_format=torch.channels_last)
        yield
    finally:
        for parameter, data, grad in parameters:
            parameter.data, parameter.grad = data, grad
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


@contextmanager
def _process_set(options: Options) -> Iterator[None]:
    """Threads and float32 precision of the process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if options.tf32 is not None:
            torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = options.tf32
        yield
    finally:
        if options.threads is not None:
            torch.set_num_threads(threads)
        if options.tf32 is not None:
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def _attention_set(model: nn.Module, fused: bool | None) -> Iterator[None]:
    """Fused attention on or off; modules read timm's switch when they are built only."""
    if fused is None:
        yield
        return
    switches: list[tuple[Any, bool]] = [(m, m.fused_attn) for m in _switched(model)]
    enabled, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    try:
        set_fused_attn(fused, experimental=fused and experimental)
        for module, _ in switches:
            module.fused_attn = fused
        yield
    finally:
        set_fused_attn(enabled, experimental=experimental)
        for module, value in switches:
            module.fused_attn = value


def _switched(model: nn.Module) -> Iterator[Any]:
    return (m for m in model.modules() if isinstance(getattr(m, "fused_attn", None), bool))


def _in_force(model: nn.Module, options: Options) -> Options:
    matrices = torch.get_float32_matmul_precision() != "highest"
    fused = {module.fused_attn for module in _switched(model)}
    return dataclasses.replace(
        options,
        dtype=str(dtype_of(model)).removeprefix("torch."),
        tf32=matrices if matrices == torch.backends.cudnn.allow_tf32 else None,
        compile="default" if options.compile is True else options.compile,
        fused_attention=fused.pop() if len(fused) == 1 else None,
        threads=torch.get_num_threads(),
    )


def _check(name: str, value: object, accepted: tuple[object, ...]) -> None:
    # By identity of type too: 1 == True, and a row should not say 1.
    if not any(type(value) is type(known) and value == known for known in accepted):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")
