"""Peak memory without running anything: fake tensors have shapes, and no values."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from efficient_vits.efficiency.cpu_rules import cpu_workspace
from efficient_vits.efficiency.cuda_rules import CudaRules
from efficient_vits.efficiency.inputs import check_arguments, dtype_of, masked
from efficient_vits.efficiency.memory import MemoryUse
from efficient_vits.efficiency.named import build, own_input_size
from efficient_vits.efficiency.storages import (
    ACTIVATIONS,
    GRADIENTS,
    INPUTS,
    OPTIMIZER,
    WEIGHTS,
    WORKSPACE,
    StorageTracker,
)
from efficient_vits.efficiency.training_step import (
    Step,
    amp_dtype,
    chosen_optimizer,
    create_optimizer,
    set_checkpointing,
    track,
)

DEVICES = ("cuda", "cpu")
_CUDA_BLOCK = 512  # bytes; its allocator gives out multiples of it


class _EqualShares(TorchFunctionMode):
    """Counts of values that there are not: as many of each.

    Experts that take the tokens which chose them ask for these counts. How the tokens are divided
    makes little difference to what all of them take together.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.bincount, Tensor.bincount):
            return _counts(*args, **kwargs)
        return func(*args, **kwargs)


def _counts(values: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    if weights is not None or not minlength:
        return torch.bincount(values, weights, minlength)
    share, rest = divmod(values.numel(), minlength)
    with unset_fake_temporarily():
        return torch.tensor([share + (i < rest) for i in range(minlength)])


def estimate_memory(
    model: nn.Module | str,
    batch_size: int = 1,
    *,
    input_size: Sequence[int] | None = None,
    training: bool = True,
    optimizer: str | None = None,
    amp: bool | str | None = True,
    grad_checkpointing: bool = False,
    fused_attention: bool | None = None,
    device: str = "cuda",
) -> MemoryUse:
    """Estimates the peak memory of a forward pass or a training step. No device is needed.

    The model is copied without its values and run on tensors that have a shape and no memory; the
    storages that are alive at one time are added up. In training the second step counts, when the
    optimizer has its state. Nothing is fitted. Where a model counts values (`torch.bincount`
    with a `minlength`), as experts count their tokens, it finds as many of each. Not in it, as no
    tensor of the model's: what the allocator loses between blocks, on CUDA the context (some
    hundred MiB) and the workspaces of its libraries, and what kernels take for themselves, but for
    the copies of convolutions on the CPU. Those depend on whether torch has one thread or several.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)`, also one on the meta
            device, or a name that timm knows. A module is left as it was.
        batch_size: images in the batch.
        input_size: size of one image, `(channels, height, width)`; by default the one the model was
            built for, or `(3, 224, 224)` where it doesn't say.
        training: a training step with cross entropy; otherwise a forward pass in eval mode.
        optimizer: timm's name of it, for training only; "lamb" by default.
        amp: autocast, "float16" or "bfloat16"; True for torch's own choice on the device, False or
            None for none.
        grad_checkpointing: whether blocks keep their input only in training, as timm's models can.
        fused_attention: whether attention keeps no matrix of weights. None leaves that to the
            model and the device; False also turns it off in modules with timm's switch
            `fused_attn`; True turns it on there.
        device: "cuda" for the rules of CUDA in autocast, attention and the allocator's blocks, or
            "cpu".

    Raises:
        TypeError, ValueError: an argument is not of the kind above, timm knows no model or
            optimizer of this name, a forward pass is to have what only training has, or the model
            asks tensors for their values, which an estimate lacks.
    """
    if device not in DEVICES:
        raise ValueError(f"device is one of {', '.join(map(repr, DEVICES))}, got {device!r}")
    dtype = amp_dtype(amp, device)
    optimizer = chosen_optimizer(training, optimizer, grad_checkpointing)
    if isinstance(model, str):
        model = build(model, input_size, meta=True)
    if isinstance(model, nn.Module) and input_size is None:
        input_size = own_input_size(model)
    check_arguments(model, input_size or (), batch_size)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = _shadow(model, mode)
    shadow.train(training)
    if grad_checkpointing:
        set_checkpointing(shadow)
    if fused_attention is not None:
        for module in shadow.modules():
            if hasattr(module, "fused_attn"):
                vars(module)["fused_attn"] = fused_attention
    step = Step(
        shadow,
        _empty_images(shadow, (batch_size, *(input_size or ())), mode),
        create_optimizer(shadow, optimizer) if optimizer else None,
        dtype,
    )
    with warnings.catch_warnings(), _rules(device, fused_attention), masked(shadow):
        # Warnings of a model about its arguments come from building it, those of autocast on the
        # CPU are about kernels that don't run here.
        warnings.simplefilter("ignore")
        try:
            peak = _peak(step, device, mode)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ValueError(
                f"{type(model).__name__} asks tensors for their values ({error}), which an "
                f"estimate lacks; measure_memory runs the model"
            ) from error
    return MemoryUse(
        weights_bytes=peak[WEIGHTS],
        input_bytes=peak[INPUTS],
        activation_bytes=peak[ACTIVATIONS],
        gradient_bytes=peak[GRADIENTS],
        optimizer_bytes=peak[OPTIMIZER],
        workspace_bytes=peak[WORKSPACE],
        peak_bytes=sum(peak.values()),
        batch_size=batch_size,
        device=device,
        method="estimate",
        training=training,
        optimizer=optimizer,
        amp=None if dtype is None else str(dtype).removeprefix("torch."),
        grad_checkpointing=grad_checkpointing,
    )


def _shadow(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the model whose tensors have no memory; on the CPU, whatever it is called."""
    fakes: dict[int, object] = {}
    with mode:
        for module in model.modules():
            named = {**vars(module), **module._parameters, **module._buffers}
            for value in named.values():
                if isinstance(value, Tensor) and id(value) not in fakes:
                    fakes[id(value)] = _fake(value)
    return copy.deepcopy(model, fakes)


def _fake(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _empty_images(model: nn.Module, size: Sequence[int], mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty(*size, dtype=dtype_of(model), device="cpu")


@contextlib.contextmanager
def _rules(device: str, fused_attention: bool | None) -> Iterator[None]:
    """Autocast and attention as on the device."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_EqualShares())
        if fused_attention is False:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if device == "cuda":
            stack.enter_context(CudaRules(fused_attention=fused_attention is not False))
        yield


def _peak(step: Step, device: str, mode: FakeTensorMode) -> dict[str, int]:
    """Bytes by kind at the highest moment of the second step."""
    with mode:
        step.differentiate()
    step.update()
    tracker = StorageTracker(_CUDA_BLOCK) if device == "cuda" else StorageTracker(1, cpu_workspace)
    return track(step, tracker, mode)
