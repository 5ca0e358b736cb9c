"""Rows in a metric of models with RMSNorm and bare parameters are what its definition says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import gradstore as gs
from gradstore.collect import Recorder
from gradstore.collect.events.planned import PlannedEvents
from gradstore.collect.models.loaders import load
from gradstore.store.format.spec import EventSpec
from tests.support import naive_metrics as naive
from tests.support.families import FAMILIES, given, made

COUNT = 4


@dataclass
class Trained:
    """A checkpoint of a family, its training set, loss and optimiser."""

    folder: Path
    samples: gs.Samples
    objective: Any
    moments: dict[str, Tensor]

    def events(self, timesteps: int, role: Any) -> list[naive.Event]:
        """The gradients of every sample at some timesteps."""
        model = load(self.folder).model
        plan = PlannedEvents(EventSpec(events="planned", timesteps=timesteps), 1000, role)
        return [
            event
            for row, name in enumerate(self.samples.ids)
            for event in naive.differentiated(
                model,
                self.objective,
                self.samples[row].tensor,
                plan.at(0, [name]),
                self.samples[row].conditions,
            )
        ]


@pytest.fixture(scope="module", params=["SD3.5", "Flux", "PixArt-α"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name = request.param
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    objective: Any = gs.FlowLoss(scheduler)
    if name == "PixArt-α":
        scheduler = DDIMScheduler()
        objective = gs.DiffusionLoss(scheduler)
    model: Any = made(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.99))
    for step in range(3):
        batch = given(name, COUNT, 1)
        conditions = {
            key: one.float() if one.is_floating_point() else one
            for key, one in batch.conditions.items()
        }
        optimizer.zero_grad()
        noise = batch.noise[:, 0].float().roll(step, 0)
        objective.losses(
            model, batch.inputs.float(), batch.timesteps, noise, conditions
        ).mean().backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("family") / "epoch-1"
    model.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    items = [
        {
            "image": batch.inputs[row].float(),
            "conditions": {
                key: value[row] for key, value in FAMILIES[name].conditions(COUNT).items()
            },
        }
        for row in range(COUNT)
    ]
    samples = gs.Samples(items)
    Recorder(0, 1000).save(
        folder, ids=samples.ids, epoch=1, learning_rate_sum=0.1, optimizer=optimizer, model=model
    )
    moments = {
        key: optimizer.state[one]["exp_avg_sq"].double() / (1 - 0.99**3)
        if one in optimizer.state
        else torch.zeros_like(one).double()
        for key, one in model.named_parameters()
    }
    return Trained(folder, samples, objective, moments)


def collected(trained: Trained, metric: str, tmp_path: Path) -> np.ndarray:
    """Rows times their norms, `[samples × slots, parameters]`."""
    store = gs.collect(
        trained.samples,
        [trained.folder],
        tmp_path / "s.gradstore",
        objective=trained.objective,
        metric=metric,
        events=EventSpec(events="planned", timesteps=2),
        projector="identity",
        dtype="float32",
        engine="streaming",
    )
    rows = store.rows(0)
    whole: np.ndarray = rows.direction * rows.norm[:, :, None]
    return whole.reshape(-1, whole.shape[2]).astype(np.float64)


def flat(gradients: dict[str, Tensor]) -> np.ndarray:
    found: np.ndarray = torch.cat([one.flatten() for one in gradients.values()]).numpy()
    return found


def require_close(found: np.ndarray, expected: np.ndarray, error: float) -> None:
    # Most of the error is that of a model in float32; the definition is in float64.
    off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() < error


def scales(trained: Trained, metric: str) -> dict[str, Tensor]:
    """What each entry is multiplied by, where a metric has no factors."""
    if metric == "none":
        return {name: torch.ones_like(one) for name, one in trained.moments.items()}
    if metric == "adam":
        still = naive.without_gradient(trained.events(10, "metric"))
        steps = {
            name: 0 * one if name in still else 1 / (one.sqrt() + 1e-8)
            for name, one in trained.moments.items()
        }
        every = np.sort(flat(steps))
        most = every[int(0.99 * len(every)) - 1]
        return {name: one.clamp(max=most) for name, one in steps.items()}
    events = trained.events(10, "metric")
    moments = {
        name: torch.stack([event.gradients[name] for event in events]).square().mean(0)
        for name in trained.moments
    }
    means = {name: one.mean() for name, one in moments.items()}
    if metric == "fisher":
        means = dict.fromkeys(moments, torch.as_tensor(flat(moments).mean()))
    return {
        name: torch.where(one + means[name] == 0, 0, (one + naive.DAMPING * means[name]) ** -0.5)
        for name, one in moments.items()
    }


def entries(scale: dict[str, Tensor], chosen: Callable[[str], bool]) -> np.ndarray:
    """Which entries of a gradient belong to chosen parameters."""
    return flat({name: torch.full_like(one, chosen(name)) for name, one in scale.items()})


@pytest.mark.parametrize("metric", ["none", "adam", "fisher"])
def test_rows_in_a_diagonal_metric(trained: Trained, metric: str, tmp_path: Path) -> None:
    scale = scales(trained, metric)
    expected = [
        flat({name: one * scale[name] for name, one in event.gradients.items()})
        for event in trained.events(2, "train")
    ]
    require_close(collected(trained, metric, tmp_path), np.stack(expected), 1e-4)


@pytest.mark.parametrize("metric", ["kfac", "ekfac"])
def test_what_has_no_factors_goes_by_its_diagonal(
    trained: Trained, metric: str, tmp_path: Path
) -> None:
    model = load(trained.folder).model
    scale = scales(trained, metric)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    factored = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    kept = entries(scale, lambda name: name not in factored)
    assert 10 < kept.sum() < kept.size / 4
    expected = [
        flat({name: one * scale[name] for name, one in event.gradients.items()})
        for event in trained.events(2, "train")
    ]
    require_close(collected(trained, metric, tmp_path) * kept, np.stack(expected) * kept, 1e-4)


def test_layers_with_factors_are_mapped_as_before(trained: Trained, tmp_path: Path) -> None:
    model = load(trained.folder).model
    scale = scales(trained, "kfac")
    fitted = trained.events(10, "metric")
    maps = {
        name: (layer, [naive.power(one) for one in naive.layer_matrices(layer, name, fitted)])
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and bool(fitted[0].gradients[f"{name}.weight"].any())
    }
    owned = {f"{name}.{kind}" for name in maps for kind in ("weight", "bias")}
    expected = []
    for event in trained.events(2, "train"):
        gradients = dict(event.gradients)
        for name, (layer, own) in maps.items():
            naive.mapped(layer, name, gradients, own)
        expected.append(
            flat({
                name: one if name in owned else one * scale[name]
                for name, one in gradients.items()
            })
        )  # fmt: skip
    require_close(collected(trained, "kfac", tmp_path), np.stack(expected), 1e-3)
