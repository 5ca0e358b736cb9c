"""The gradient of every row by one ordinary backward pass, float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradstore.collect import Batch
from gradstore.collect.models.parameters import trainable


def naive_rows(model: nn.Module, objective: Any, batch: Batch) -> dict[str, Tensor]:
    """Gradients `[rows, numel]` by the parameter's name."""
    found: dict[str, list[Tensor]] = {name: [] for name in trainable(model)}
    for row in range(len(batch)):
        draws = batch.noise.shape[1]
        model.zero_grad()
        objective.losses(
            model,
            batch.inputs[row : row + 1].repeat_interleave(draws, 0),
            batch.timesteps[row : row + 1].repeat(draws),
            batch.noise[row],
            {
                name: value[row : row + 1].repeat_interleave(draws, 0)
                for name, value in batch.conditions.items()
            },
        ).mean().backward()
        for name, parameter in trainable(model).items():
            zero = torch.zeros_like(parameter)
            found[name].append((zero if parameter.grad is None else parameter.grad).flatten())
    model.zero_grad()
    return {name: torch.stack(rows) for name, rows in found.items()}


def streamed_rows(engine: Any, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The same of an engine, each entry received exactly once."""
    length = sum(parameter.numel() for parameter in trainable(model).values())
    whole = torch.full((len(batch), length), torch.nan, dtype=torch.float64)

    def receive(start: int, piece: Tensor) -> None:
        own = whole[:, start : start + piece.shape[1]]
        assert own.isnan().all()
        own.copy_(piece)
        piece.fill_(torch.nan)  # the receiver's to change: no later gradient may depend on it

    engine(batch, receive)
    assert not whole.isnan().any()
    sizes = [parameter.numel() for parameter in trainable(model).values()]
    return dict(zip(trainable(model), torch.split(whole, sizes, dim=1), strict=True))


def largest_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Largest error of a parameter's gradient in a row, relative to its length.

    A parameter whose gradient vanishes by symmetry, such as the bias of keys in attention, is
    rounding noise alone: what is below 10⁻⁶ of a row's length counts as that.
    """
    whole = torch.cat(list(exact.values()), dim=1).norm(dim=1)
    return max(
        float(((found[name] - one).norm(dim=1) / (one.norm(dim=1) + 1e-6 * whole)).max())
        for name, one in exact.items()
    )
