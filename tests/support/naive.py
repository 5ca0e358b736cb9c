"""The definitions, computed with one backward pass at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor

from gradstore.collect import EventPlan, EventSpec, PlannedEvents, Samples, load
from gradstore.collect.events.noise import noise
from gradstore.store.reader import Store


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


def own_gradients(
    model: Any,
    scheduler: Any,
    samples: Samples,
    store: Store,
    *,
    checkpoint: int,
    adapters: int = 0,
) -> NDArray[np.float64]:
    """Gradients of the rows of a store of planned events under a model, by diffusers' own calls.

    Args:
        model: the model.
        scheduler: says how noise is added, and what is predicted.
        samples: the samples, with their conditions.
        store: the store.
        checkpoint: index of the checkpoint.
        adapters: number of LoRA's parameters, which alone are differentiated; 0 for all.

    Returns:
        `[samples, slots, parameters]`, of the mean square error.
    """
    scheduler = DDPMScheduler.from_config(scheduler.config)  # as scripts train
    plan = PlannedEvents(
        EventSpec(events="planned", timesteps=store.slots), scheduler.config.num_train_timesteps
    )
    wanted = [
        one.requires_grad_() for name, one in model.named_parameters()
        if not adapters or "lora_" in name
    ]  # fmt: skip
    assert not adapters or len(wanted) == adapters
    events = plan.at(store.numbers[checkpoint], samples.ids)
    rows = []
    for row in range(len(samples)):
        sample = samples[row]
        given = {name: one[None] for name, one in sample.conditions.items()}
        slots = []
        for slot in range(store.slots):
            timestep = torch.tensor([int(events.timestep[row, slot])])
            clean = sample.tensor[None]
            drawn = torch.from_numpy(noise(int(events.key[row, slot, 0]), clean.shape[1:]))[None]
            noisy = scheduler.add_noise(clean, drawn, timestep)
            predicted = model(noisy, timestep, **given).sample
            target = drawn
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(clean, drawn, timestep)
            loss = (predicted - target).square().mean()
            found = torch.autograd.grad(loss, wanted, materialize_grads=True)
            slots.append(torch.cat([one.flatten() for one in found]).double().numpy())
        rows.append(np.stack(slots))
    return np.stack(rows)


def rows_of(store: Store, checkpoint: int) -> NDArray[np.float64]:
    """The whole gradients of a store that does not project, `[samples, slots, parameters]`."""
    rows = store.rows(checkpoint)
    whole: NDArray[np.float64] = rows.direction.astype(np.float64) * rows.norm[:, :, None]
    return whole
