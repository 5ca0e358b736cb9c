"""A small denoiser and its per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from gradstore.collect import (
    Batch,
    DiffusionLoss,
)

OBJECTIVE = DiffusionLoss(DDIMScheduler(beta_schedule="squaredcos_cap_v2"), "l1")


def batch(rows: int, draws: int, shape: tuple[int, ...] = (1, 8, 8), **conditions: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        inputs=torch.rand(rows, *shape, generator=generator) * 2 - 1,
        timesteps=torch.randint(0, 1000, (rows,), generator=generator),
        noise=torch.randn(rows, draws, *shape, generator=generator),
        conditions=conditions,
    )


class Denoiser(nn.Module):
    """A user-defined network: `body` on `[events, width]`."""

    def __init__(self, body: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._body = body

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self._body(noisy + timesteps[:, None] / 1000)


def vectors(rows: int, draws: int) -> Batch:
    return batch(rows, draws, (6,))
