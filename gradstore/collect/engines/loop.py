"""Computes gradients with one backward pass per row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from gradstore.collect.models.parameters import trainable
from gradstore.collect.objectives.calling import stands_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradstore.collect.engines.protocol import Receive
    from gradstore.collect.objectives.protocol import Batch, Objective


class LoopEngine:
    """Slow and simple, for any model. The reference for the other engines."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self._objective = objective
        self._parameters = trainable(model)

        def call(*args: Any, **kwargs: Any) -> Any:
            # Copies the buffers: a model that counts its calls must not affect the next row.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            return functional_call(model, buffers, args, kwargs)

        self._call = stands_for(call, model)

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        """Use `backward()`; some gradient checkpointing does not allow `autograd.grad`."""
        before = [parameter.grad for parameter in self._parameters.values()]
        try:
            for parameter in self._parameters.values():
                parameter.grad = None
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            return [
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for parameter in self._parameters.values()
            ]
        finally:
            for parameter, grad in zip(self._parameters.values(), before, strict=True):
                parameter.grad = grad

    def __call__(self, batch: Batch, receive: Receive) -> Tensor:
        """See `GradientEngine`."""
        losses = []
        length = sum(parameter.numel() for parameter in self._parameters.values())
        rows = torch.empty(len(batch), length, device=batch.inputs.device)
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
            losses.append(loss.detach())
            start = 0
            for gradient in self._gradients(loss):
                rows[row, start : start + gradient.numel()] = gradient.flatten()
                start += gradient.numel()
        receive(0, rows)
        return torch.stack(losses)
