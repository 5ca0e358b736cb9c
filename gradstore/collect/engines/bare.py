"""Per-row gradients of bare parameters: those that a module uses itself, outside any layer.

Examples are `scale_shift_table` of PixArt's blocks and `mix_factor` of video models. Such a
parameter is broadcast over the events when it meets a tensor of the events, and autograd sums its
gradient over them at once. During a pass it is therefore replaced by a tensor that watches where
it goes: what is computed from parameters alone stays watched; where that meets the events, it is
broadcast in sight, and the gradient is taken per row before it is summed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradstore.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Names of the functions that broadcast their tensors and compute each entry by itself.
_ELEMENTWISE: Final = frozenset(
    {
        *("add", "radd", "sub", "rsub", "subtract", "mul", "rmul", "multiply"),
        *("div", "truediv", "true_divide", "rdiv", "rtruediv", "divide", "pow", "rpow"),
        *("where", "maximum", "minimum", "addcmul", "addcdiv", "lerp"),
    }
)


@dataclass(frozen=True)
class Told:
    """Whom bare parameters tell.

    Attributes:
        rows: number of rows of the pass.
        use: called when a parameter meets the events.
        found: called once per use with the gradient of that use, `[rows, numel]`.
    """

    rows: int
    use: Callable[[nn.Parameter], None]
    found: Callable[[nn.Parameter, Tensor], None]


@contextmanager
def watched(bare: Mapping[nn.Module, Mapping[str, nn.Parameter]], told: Told) -> Iterator[None]:
    """Context in which bare parameters are watched.

    Args:
        bare: the parameters by module and name there.
        told: whom they tell.
    """
    substitutes: dict[nn.Parameter, _Watched] = {}
    for module, own in bare.items():
        for name, parameter in own.items():
            leaf = parameter.detach().requires_grad_(True)
            root = _Root(parameter, leaf, f"{name} of a {type(module).__name__}")
            substitutes.setdefault(parameter, _Watched.of(leaf, (root,), told))
    try:
        for module, own in bare.items():
            for name, parameter in own.items():
                module._parameters[name] = substitutes[parameter]  # type: ignore[assignment]
        yield
    finally:
        for module, own in bare.items():
            module._parameters.update(own)


@dataclass(frozen=True, eq=False)
class _Root:
    """A bare parameter.

    Attributes:
        parameter: the parameter.
        leaf: stands for it in autograd's graph.
        name: its name in error messages.
    """

    parameter: nn.Parameter
    leaf: Tensor
    name: str


class _Watched(Tensor):
    """A bare parameter, or what was computed from bare parameters alone."""

    plain: Tensor  # the same without a watch
    roots: tuple[_Root, ...]  # what it was computed from
    told: Told

    @classmethod
    def of(cls, plain: Tensor, roots: tuple[_Root, ...], told: Told) -> _Watched:
        """Watch a tensor that was computed from some parameters."""
        one = plain.detach().as_subclass(cls)
        one.plain, one.roots, one.told = plain, roots, told
        return one

    @classmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        ours = [one for one in tensors if isinstance(one, _Watched)]
        told = ours[0].told

        def call(change: Callable[[_Watched], Tensor]) -> Any:
            def changed(one: Any) -> Any:
                return change(one) if isinstance(one, _Watched) else one

            return func(*tree_map(changed, args), **tree_map(changed, kwargs or {}))

        if len(ours) < len(tensors):
            shape = _meeting(func, [_plain(one) for one in tensors], ours)
            if shape is not None:
                return call(lambda one: _met(one, shape))
        roots = tuple(dict.fromkeys(root for one in ours for root in one.roots))

        def wrapped(one: Any) -> Any:
            constant = not isinstance(one, Tensor) or (
                torch.is_grad_enabled() and not one.requires_grad
            )
            return one if constant else _Watched.of(one, roots, told)

        return tree_map(wrapped, call(_plain))


def _plain(one: Tensor) -> Tensor:
    return one.plain if isinstance(one, _Watched) else one


def _meeting(func: Any, tensors: list[Tensor], ours: list[_Watched]) -> torch.Size | None:
    """Shape in which watched tensors meet the events; None if the other tensors have no events.

    Raises:
        EngineError: if the function is not known to keep events apart.
    """
    rows = ours[0].told.rows
    names = " and ".join(dict.fromkeys(root.name for one in ours for root in one.roots))
    name = getattr(func, "__name__", str(func)).strip("_")
    if name not in _ELEMENTWISE:
        raise EngineError(
            f"the parameter {names} goes into {name!r} together with other tensors. Of parameters "
            "outside of known layers, the streaming engine knows sums, products and the like. Use "
            "--engine vmap, or exclude the parameter with --params."
        )
    shape: torch.Size = torch.broadcast_shapes(*(one.shape for one in tensors))  # type: ignore[no-untyped-call]
    if rows == 1:
        return shape  # whatever the other tensor is, the gradient is that of the one row
    if all(one.plain.shape == shape for one in ours):
        return None  # a tensor of the parameter's shape, such as the norm of a weight
    first = max(one.plain.shape[0] if one.plain.ndim == len(shape) else 1 for one in ours)
    if first > 1 or shape[0] % rows:
        raise EngineError(
            f"the parameter {names} meets another tensor in shape {tuple(shape)}, whose first axis "
            f"is not that of {rows} rows: the streaming engine cannot assign it to rows. Use "
            "--engine vmap."
        )
    return shape


def _met(one: _Watched, shape: torch.Size) -> Tensor:
    """A watched tensor, broadcast to the events; its gradient is taken there."""
    value, roots, told = one.plain, one.roots, one.told
    for root in roots:
        told.use(root.parameter)
    padded = [1] * (len(shape) - value.ndim) + list(value.shape)

    def tell(grads: Tensor) -> None:
        rows = told.rows
        if rows > 1:
            grads = grads.reshape(rows, -1, *shape[1:]).sum(1).sum_to_size(rows, *padded[1:])
        else:
            grads = grads.sum_to_size(padded)
        grads = grads.reshape(rows, *value.shape)
        found: tuple[Tensor, ...] = (grads,)
        if value is not roots[0].leaf:
            leaves = [root.leaf for root in roots]
            found = torch.autograd.grad(
                value, leaves, grads, retain_graph=True, is_grads_batched=True
            )
        for root, gradient in zip(roots, found, strict=True):
            # A copy: it may be autograd's own tensor.
            told.found(root.parameter, gradient.reshape(rows, -1).clone())

    met: Tensor = _Met.apply(value.expand(shape), tell)  # type: ignore[no-untyped-call]
    return met


class _Met(torch.autograd.Function):
    """The identity; its backward pass reports the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, tell: Any) -> Tensor:
        ctx.tell = tell
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.tell(grads[0].detach())
        return grads[0], None
