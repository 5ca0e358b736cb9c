"""Losses of samples under a checkpoint, without gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gradstore.collect import devices
from gradstore.collect.data.encoding import Encoding, encoders_for
from gradstore.collect.data.samples import Samples
from gradstore.collect.events.planned import PlannedEvents
from gradstore.collect.models.loaders import loader_of
from gradstore.collect.pipeline.batches import event_rows
from gradstore.collect.pipeline.survey import objective_of

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.objectives.protocol import Objective
    from gradstore.store.format.spec import EventSpec, ObjectiveSpec


@torch.inference_mode()
def losses(
    dataset: Any,
    checkpoint: str | Path | Loader,
    *,
    events: EventSpec,
    objective: Objective | ObjectiveSpec | str | None = None,
    device: str | None = None,
    batch_size: int = 256,
) -> NDArray[np.float64]:
    """Mean loss of each sample over planned timesteps and noises.

    Args:
        dataset: the samples; anything that `gradstore.collect.collect` accepts.
        checkpoint: folder of the checkpoint, or a loader, of whose checkpoints the last is taken.
        events: timesteps and noises; planned.
        objective: as in `gradstore.collect.collect`.
        device: torch device; by default cuda if there is one.
        batch_size: maximum number of events in one call of the model.

    Returns:
        float64 `[samples]`.

    Raises:
        GradstoreError: if the samples do not fit the model, or the checkpoint cannot be read.

    Examples:
        >>> import gradstore as gs
        >>> grid = gs.EventSpec(events="planned", timesteps=5)
        >>> gs.losses("asked_images", "run/checkpoints/epoch-02", events=grid).shape
        (3,)
    """
    samples, place, loader = Samples.of(dataset), devices.choose(device), loader_of(checkpoint)
    loaded = loader.load(loader.folders[-1])
    encoders = encoders_for(samples, loader, loaded.model, place)
    if encoders is not None:
        samples = samples.encoded(Encoding(encoders), encoders.pictures)
    chosen = objective_of(objective, loaded)
    model = loaded.model.to(place)
    plan = PlannedEvents(events, chosen.num_train_timesteps, "query")
    found = np.empty(len(samples))
    for row in range(len(samples)):
        rows = event_rows(samples, [row], model, plan, number=0, device=place)
        total = 0.0
        for start, stop in rows.cuts(0, len(rows), max(1, batch_size // rows.draws)):
            batch = rows.batch(slice(start, stop))
            each = chosen.losses(
                model,
                batch.inputs.repeat_interleave(rows.draws, 0),
                batch.timesteps.repeat_interleave(rows.draws),
                batch.noise.flatten(0, 1),
                {
                    name: value.repeat_interleave(rows.draws, 0)
                    for name, value in batch.conditions.items()
                },
            )
            total += float(each.double().sum())
        found[row] = total / (len(rows) * rows.draws)
    return found
