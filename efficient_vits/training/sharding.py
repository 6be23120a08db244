"""Parameters, gradients and optimizer state spread over the processes: FSDP2.

torch's `fully_shard`, which Accelerate offers on accelerators only, also runs on the CPU. What it
spreads becomes a `DTensor`; checkpoints have whole tensors, the same as those of other runs.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, model: nn.Module, device: torch.device, *, also: str = "") -> None:
    """Spreads the parameters of a module over all processes, in place.

    A block's are gathered when it runs, and freed after it; all others when the module runs.

    Args:
        module: What is called, with the model in it or the model itself.
        model: Its blocks, or the parts of its stages, are gathered one by one.
        device: Where it is.
        also: A method of the module that runs the model too.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    if also:
        register_fsdp_forward_method(module, also)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of a model's lists of modules, each once.

    Left out are those without parameters, and those that share some with another (CoaT's).
    """
    lists = [one for one in model.children() if isinstance(one, nn.ModuleList | nn.Sequential)]
    members = {id(block): block for one in lists for block in one.children()}.values()
    users = Counter(id(p) for block in members for p in block.parameters())
    return [
        block
        for block in members
        if {users[id(p)] for p in block.parameters()} == {1}  # an empty set is not
    ]


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor as it is, or gathered from all processes; then all of them must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(value: Any) -> Any:
    """Nested dictionaries and lists with every spread tensor whole, on the CPU."""
    return _mapped(value, lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, of the first process, spread as another one is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def spread_weights(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict as the model's own is spread."""
    own = model.state_dict()
    return {name: spread(value, own[name]) for name, value in weights.items()}


def spread_optimizer_state(state: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """An optimizer's state dict as its parameters are spread."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    entries = {
        number: _mapped(entry, functools.partial(spread, like=like[number]))
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change) for part in value]
    return value
