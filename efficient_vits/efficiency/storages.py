"""Which tensors are alive, and the most that they took at one time.

A dispatch mode sees the result of every operator, and a weak reference to its storage says when the
last tensor on it is gone, autograd's included. It works on fake tensors, which have sizes and no
memory, and on real ones.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a storage can be kept for; everything that is nothing else is an activation.
WEIGHTS, INPUTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, WORKSPACE = KINDS = (
    "weights",
    "inputs",
    "gradients",
    "optimizer",
    "activations",
    "workspace",
)

# Bytes that an operator takes beyond its results, from its name, arguments and result.
WorkspaceRule = Callable[[str, Sequence[Any], Any], int]


class StorageTracker(TorchDispatchMode):
    """Adds up the storages that are alive by kind, and keeps the sums of the highest moment.

    Args:
        block: every storage takes a multiple of so many bytes, as an allocator may demand.
        workspace: what operators take for themselves; by default nothing.

    Attributes:
        alive: bytes by kind, now.
        peak: bytes by kind at the moment when their sum was highest.
    """

    def __init__(self, block: int = 1, workspace: WorkspaceRule | None = None) -> None:
        super().__init__()
        self._workspace = workspace
        self.alive = dict.fromkeys(KINDS, 0)
        self.peak = dict(self.alive)
        self._block = block
        self._held: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        if self._workspace is not None:
            self._consider(self._workspace(str(func), args, out))
        return out

    def add(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Says what these tensors are, be they known or new."""
        for tensor in tensors:
            self._see(tensor, kind)

    def reset_peak(self) -> None:
        """Forgets all moments but this one."""
        self.peak = dict(self.alive)

    def _see(self, tensor: Tensor, kind: str | None = None) -> None:
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            return  # neither has a storage with bytes in it
        storage = tensor.untyped_storage()
        # The address of the storage itself: unlike the id of its Python object it is nobody else's
        # until the finalizer has run.
        key = storage._cdata
        size = -(-storage.nbytes() // self._block) * self._block
        known = self._held.get(key)
        if known is None:
            weakref.finalize(storage, self._forget, key).atexit = False
        elif known == (kind or known[0], size):
            return
        else:
            self.alive[known[0]] -= known[1]  # another kind, or resized in place
        kind = kind or (known[0] if known else ACTIVATIONS)
        self._held[key] = (kind, size)
        self.alive[kind] += size
        self._consider(0)

    def _consider(self, workspace: int) -> None:
        if sum(self.alive.values()) + workspace > sum(self.peak.values()):
            self.peak = {**self.alive, WORKSPACE: workspace}

    def _forget(self, key: int) -> None:
        kind, size = self._held.pop(key)
        self.alive[kind] -= size
