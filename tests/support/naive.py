"""The definitions, computed with one backward pass at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gradstore.collect import EventPlan, Samples, load
from gradstore.collect.events.noise import noise


def full_gradients(
    checkpoint: Path, samples: Samples, plan: EventPlan, number: int, *, loss: str = "l1"
) -> Tensor:
    """Gradients of each row's mean L1 loss over its noises, float64 `[samples, slots, P]`.

    With `square`, of D-TRAK's output function: the mean square of the model's prediction.
    """
    loaded = load(checkpoint)
    model, levels = loaded.model, loaded.scheduler.alphas_cumprod
    events = plan.at(number, samples.ids)
    rows = []
    for row in range(len(samples)):
        image = samples[row].tensor[None]
        slots = []
        for slot in range(plan.slots):
            timestep = int(events.timestep[row, slot])
            total = torch.zeros(())
            for key in events.key[row, slot].tolist():
                epsilon = torch.from_numpy(noise(key, image.shape[1:]))[None]
                noisy = levels[timestep].sqrt() * image + (1 - levels[timestep]).sqrt() * epsilon
                predicted = model(noisy, timestep).sample
                off = predicted.square() if loss == "square" else (predicted - epsilon).abs()
                total = total + off.mean()
            gradients = torch.autograd.grad(
                total / events.key.shape[2], list(model.parameters()), materialize_grads=True
            )
            slots.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
        rows.append(torch.stack(slots))
    return torch.stack(rows)


def influence(
    train: Sequence[Tensor], queries: Sequence[Tensor], etas: Sequence[float], *, retrac: bool
) -> Tensor:
    """TracIn or ReTrac of each (query, training sample), from full gradients per checkpoint."""
    total = torch.zeros(len(queries[0]), len(train[0]), dtype=torch.float64)
    for eta, trained, asked in zip(etas, train, queries, strict=True):
        for q in range(len(asked)):
            for z in range(len(trained)):
                left, right = asked[q], trained[z]
                if retrac:
                    left = torch.stack([g / g.norm() for g in left])
                    right = torch.stack([g / g.norm() for g in right])
                total[q, z] += eta * (left.mean(0) @ right.mean(0))
    return total
