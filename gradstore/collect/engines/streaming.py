"""Runs one ordinary backward pass for all rows; passes on each layer's gradients and frees them.

An identity function follows every layer that owns a trainable parameter. It keeps the layer's
input. When the gradient of the layer's output arrives, it computes each row's gradient of the
layer's weights from the two. Memory is therefore that of a plain training step plus one layer's
per-sample gradients. Products with the model's weights are computed once for all rows.
Parameters that a module uses outside of any layer are watched by `bare`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from gradstore.collect.engines.bare import Told, watched
from gradstore.collect.engines.kernels import KERNELS, is_layer, unknown
from gradstore.collect.models.parameters import trainable
from gradstore.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradstore.collect.engines.protocol import Receive
    from gradstore.collect.objectives.protocol import Batch, Objective


@dataclass(frozen=True)
class LayerGradients:
    """What one layer contributes to a backward pass.

    Attributes:
        layer: the layer.
        inputs: its input, `[rows × draws × …, …]`.
        grads: the gradient of its output, of as many.
        rows: number of rows.
        found: gradients of the layer's parameters by their names in it, `[rows, numel]`.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor
    rows: int
    found: dict[str, Tensor]


Transform: TypeAlias = Callable[[LayerGradients], dict[str, Tensor]]
"""Replaces a layer's gradients before they are passed on."""


class StreamingEngine:
    """For models whose trainable parameters have a kernel in `kernels`, or are bare.

    The model must not mix samples, and samples must be the leading dimension of every such layer's
    input, as in diffusers' models. `choice.require_agreement` tests this.

    Raises:
        EngineError: if layers have no kernel; names these layers.
    """

    thread_safe = True

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self._model = model
        self._objective = objective
        self._start: dict[nn.Parameter, int] = {}
        start = 0
        for parameter in trainable(model).values():
            self._start[parameter] = start
            start += parameter.numel()
        # Keyed by name within the layer; a shared parameter is in several layers.
        self._layers: dict[nn.Module, dict[str, nn.Parameter]] = {}
        self._bare: dict[nn.Module, dict[str, nn.Parameter]] = {}
        strange = []
        for name, layer in model.named_modules():
            own = {
                key: parameter
                for key, parameter in layer.named_parameters(recurse=False)
                if parameter in self._start
            }
            if own and not is_layer(layer):
                self._bare[layer] = own
            elif own:
                self._layers[layer] = own
                reason = unknown(layer)
                if reason is not None:
                    strange.append(f"{name or 'the model'} ({type(layer).__name__}: {reason})")
        if strange:
            shown = ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")
            raise EngineError(
                f"the streaming engine cannot differentiate {len(strange)} of "
                f"{len(self._layers)} layers: {shown}. Use --engine vmap, or exclude their "
                "parameters with --params."
            )

    def start(self, layer: nn.Module, name: str) -> int | None:
        """First entry of a layer's parameter in a gradient; None if it is not differentiated."""
        parameter = self._layers.get(layer, {}).get(name)
        return None if parameter is None else self._start[parameter]

    def __call__(
        self, batch: Batch, receive: Receive, transform: Transform | None = None
    ) -> Tensor:
        """See `GradientEngine`.

        Args:
            batch: the rows.
            receive: as in `GradientEngine`.
            transform: replaces each layer's gradients.
        """
        rows, draws = batch.noise.shape[:2]
        one = _Pass(self._start, self._layers, rows, receive, transform)

        def each(value: Tensor) -> Tensor:
            return value.repeat_interleave(draws, dim=0) if draws > 1 else value

        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_frozen(self._start))
            if self._bare:
                stack.enter_context(watched(self._bare, Told(rows, one.use, one.found)))
            for layer in self._layers:
                handle = layer.register_forward_hook(one.watch, with_kwargs=True)
                stack.callback(handle.remove)
            losses = self._objective.losses(
                self._model,
                each(batch.inputs),
                each(batch.timesteps),
                batch.noise.flatten(0, 1),
                {name: each(value) for name, value in batch.conditions.items()},
            )
            losses = losses.reshape(rows, draws).mean(1)
            one.backward(losses)
        return losses.detach()


class _Pass:
    """One forward and backward pass."""

    def __init__(
        self,
        start: dict[nn.Parameter, int],
        layers: dict[nn.Module, dict[str, nn.Parameter]],
        rows: int,
        receive: Receive,
        transform: Transform | None,
    ) -> None:
        self._transform = transform
        self._start = start
        self._layers = layers
        self._rows = rows
        self._receive = receive
        self._forward = True
        self._uses: Counter[nn.Parameter] = Counter()
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._done: set[nn.Parameter] = set()
        # Makes autograd call `_Tap.backward` even if a layer's input depends on no parameter.
        self._anchor = torch.zeros((), requires_grad=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def watch(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Forward hook: append the identity function to a layer."""
        for parameter in self._layers[layer].values():
            self.use(parameter)
        # A layer with a kernel takes exactly one tensor.
        inputs = args[0] if args else next(iter(kwargs.values()))
        tapped: Tensor = _Tap.apply(output, inputs, self._anchor, partial(self._add, layer))  # type: ignore[no-untyped-call]
        return tapped

    def backward(self, losses: Tensor) -> None:
        """Backpropagate the losses; pass on every parameter's gradient."""
        # Layers that gradient checkpointing runs again now do not count as uses.
        self._forward = False
        if losses.requires_grad:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        for parameter, start in self._start.items():
            if parameter not in self._done:
                # Unused in this loss, or used less often than called.
                zero = torch.zeros(self._rows, parameter.numel(), device=losses.device)
                self._receive(start, self._sums.get(parameter, zero))

    def _add(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> None:
        leading = len(inputs)
        if leading % self._rows:
            raise EngineError(
                f"a {type(layer).__name__} was given {leading} inputs for {self._rows} rows: the "
                "streaming engine cannot assign them to rows. Use --engine vmap."
            )
        if inputs.is_floating_point():
            inputs = inputs.to(grads.dtype)
        found = KERNELS[type(layer)](layer, inputs, grads, self._rows)
        if self._transform is not None:
            found = self._transform(LayerGradients(layer, inputs, grads, self._rows, found))
        for name, parameter in self._layers[layer].items():
            self.found(parameter, found[name])

    def use(self, parameter: nn.Parameter) -> None:
        """Count a use of a parameter: `found` is called for it."""
        if self._forward:
            self._uses[parameter] += 1

    def found(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add the gradient `[rows, numel]` of one use; pass on the sum after the last."""
        gradient = gradient.to(torch.float32)
        if parameter in self._sums:
            gradient = self._sums.pop(parameter).add_(gradient)
        self._uses[parameter] -= 1
        if self._uses[parameter] > 0:
            self._sums[parameter] = gradient
        else:
            self._done.add(parameter)
            self._receive(self._start[parameter], gradient)


class _Tap(torch.autograd.Function):
    """The identity; its backward pass reports a layer's input and its output's gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, tell: Any) -> Tensor:  # noqa: ARG004
        # Saved by autograd, so that gradient checkpointing can free it and in-place changes are
        # detected.
        ctx.save_for_backward(inputs)
        ctx.tell = tell
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.tell(inputs.detach(), grads[0].detach())
        return grads[0], None, None, None


@contextmanager
def _frozen(parameters: dict[nn.Parameter, int]) -> Iterator[None]:
    """Context in which autograd itself computes no gradients of the parameters."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
