"""Differentiates all rows at once: `vmap` over `grad` of the functional model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradstore.collect.models.parameters import trainable
from gradstore.collect.objectives.calling import stands_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradstore.collect.engines.protocol import Receive
    from gradstore.collect.objectives.protocol import Batch, Objective


class VmapEngine:
    """For any model whose operations vmap can batch; holds all gradients of a batch at once."""

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
                stands_for(call, model),
                sample.expand(draws, *sample.shape),
                timestep.expand(draws),
                noise,
                {name: value.expand(draws, *value.shape) for name, value in conditions.items()},
            ).mean()

        self._differentiate = vmap(
            grad_and_value(row_loss), in_dims=(None, 0, 0, 0, 0), randomness="error"
        )

    def __call__(self, batch: Batch, receive: Receive) -> Tensor:
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
        start = 0
        for gradient in gradients.values():
            piece = gradient.detach().flatten(1)
            receive(start, piece)
            start += piece.shape[1]
        detached: Tensor = losses.detach()
        return detached
