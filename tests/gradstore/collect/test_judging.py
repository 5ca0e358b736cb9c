from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import gradstore as gs
from gradstore.collect import DiffusionLoss, PlannedEvents, load, losses
from gradstore.collect.events.noise import noise

if TYPE_CHECKING:
    from tests.support.worlds import World


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_a_loss_is_the_mean_over_timesteps_and_noises(world: World, batch_size: int) -> None:
    spec = gs.EventSpec(events="planned", timesteps=3, draws=2, event_seed=5)
    folder = world.checkpoints[0]
    found = losses(world.queries, folder, events=spec, objective="l2", batch_size=batch_size)
    loaded = load(folder)
    objective = DiffusionLoss(loaded.scheduler, "l2")
    model = loaded.model.double()
    events = PlannedEvents(spec, 1000, "query").at(0, world.queries.ids)
    for row in range(len(world.queries)):
        image = world.queries[row].tensor
        each = [
            objective.losses(
                model,
                image[None].double(),
                torch.tensor([int(events.timestep[row, slot])]),
                torch.from_numpy(noise(int(key), tuple(image.shape)))[None].double(),
                {},
            ).item()
            for slot in range(3)
            for key in events.key[row, slot]
        ]
        assert found[row] == pytest.approx(np.mean(each), rel=1e-5)


def test_the_loss_is_the_recorded_one_by_default(world: World) -> None:
    spec = gs.EventSpec(events="planned", timesteps=2)
    folder = world.checkpoints[0]
    by_default, l1 = (
        losses(world.queries, folder, events=spec, objective=one) for one in (None, "l1")
    )
    np.testing.assert_array_equal(by_default, l1)
