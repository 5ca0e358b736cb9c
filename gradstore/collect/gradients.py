"""Per-sample gradients: engines behind one protocol.

An engine yields a batch's gradients in pieces of the flattened parameter vector, so that one which
never holds a whole gradient fits the same protocol as one which does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from gradstore.collect.objective import Batch, Objective


class GradientEngine(Protocol):
    """Computes the gradient of each row's loss with respect to the model's parameters."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Iterator[tuple[int, Tensor]]]:
        """Differentiate a batch.

        Args:
            batch: the rows.

        Returns:
            Losses `[rows]`, and pieces `(start, gradients)` that together cover the flattened
            parameters once: `gradients` is `[rows, n]`, of parameters `start` to `start + n`.
        """


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are differentiated, by name, in the order that defines a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class LoopEngine:
    """One backward pass per row: slow, simple, for any model. The oracle of the others."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self._model = model
        self._objective = objective
        self._parameters = trainable(model)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        # On copies of the buffers: a model that counts its calls must not change the next row.
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        return functional_call(self._model, buffers, args, kwargs)

    def __call__(self, batch: Batch) -> tuple[Tensor, Iterator[tuple[int, Tensor]]]:
        """See `GradientEngine`."""
        losses, rows = [], []
        for row in range(len(batch)):
            draws = batch.noise.shape[1]
            loss = self._objective.losses(
                self._call,
                batch.inputs[row].expand(draws, *batch.inputs.shape[1:]),
                batch.timesteps[row].expand(draws),
                batch.noise[row],
                {
                    name: value[row].expand(draws, *value.shape[1:])
                    for name, value in batch.conditions.items()
                },
            ).mean()
            gradients = torch.autograd.grad(
                loss, list(self._parameters.values()), materialize_grads=True
            )
            losses.append(loss.detach())
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(losses), iter([(0, torch.stack(rows))])


class VmapEngine:
    """All rows at once: `vmap` over `grad` of the functional model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self._parameters = {name: p.detach() for name, p in trainable(model).items()}
        fixed = {
            name: tensor.detach()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if name not in self._parameters
        }

        def row_loss(
            parameters: dict[str, Tensor],
            sample: Tensor,
            timestep: Tensor,
            noise: Tensor,
            conditions: dict[str, Tensor],
        ) -> Tensor:
            def call(*args: Any, **kwargs: Any) -> Any:
                return functional_call(model, (parameters, fixed), args, kwargs)

            draws = len(noise)
            return objective.losses(
                call,
                sample.expand(draws, *sample.shape),
                timestep.expand(draws),
                noise,
                {name: value.expand(draws, *value.shape) for name, value in conditions.items()},
            ).mean()

        self._differentiate = vmap(
            grad_and_value(row_loss), in_dims=(None, 0, 0, 0, 0), randomness="error"
        )

    def __call__(self, batch: Batch) -> tuple[Tensor, Iterator[tuple[int, Tensor]]]:
        """See `GradientEngine`."""
        # Fused attention kernels have no batching rule; plain matrix products do.
        with sdpa_kernel(SDPBackend.MATH):
            gradients, losses = self._differentiate(
                self._parameters,
                batch.inputs,
                batch.timesteps,
                batch.noise,
                dict(batch.conditions),
            )
        return losses.detach(), _pieces(gradients)


def _pieces(gradients: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for gradient in gradients.values():
        piece = gradient.detach().flatten(1)
        yield start, piece
        start += piece.shape[1]
