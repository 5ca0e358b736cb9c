"""Measures the peak tensor memory of a computation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors that `run` holds, in addition to those allocated before.

    On a CPU, only tensors that operations return are counted. Temporary memory within a kernel is
    not.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _Counter() as counter:
        run()
    return int(counter.peak)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {
            one.untyped_storage()._cdata
            for one in tree_leaves((args, kwargs or {}))
            if isinstance(one, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if not isinstance(one, torch.Tensor):
                continue
            storage = one.untyped_storage()
            key = storage._cdata
            if key in before or key in self._known:  # a view or an in-place result
                continue
            self._known.add(key)
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            # torch keeps a storage's Python object as long as the storage itself.
            finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self._live -= nbytes
