"""What the checkpoints are, read once before anything long starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradstore.collect import checkpoints as ckpt
from gradstore.collect.objective import DiffusionLoss, Objective, check_fits
from gradstore.errors import CheckpointError, ConfigError
from gradstore.spec import CheckpointSpec, Identity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect.samples import Samples

_log = logging.getLogger("gradstore")


@dataclass(frozen=True)
class Survey:
    """What a store needs to know of its checkpoints.

    Attributes:
        objective: what is differentiated.
        architecture: identity of the model's class and parameters, the same for all.
        num_parameters: length of a gradient.
        weights: digest of each checkpoint's weights.
        checkpoints: where each is, and its weight η_k.
    """

    objective: Objective
    architecture: Identity
    num_parameters: int
    weights: list[str]
    checkpoints: list[CheckpointSpec]


def survey(
    folders: Sequence[Path],
    samples: Samples,
    *,
    objective: Objective | str | None,
    scheduler: Any,
    etas: Sequence[float] | None,
) -> Survey:
    """Load each checkpoint once, and check that they belong together and fit the samples.

    Raises:
        CheckpointError: if one cannot be loaded, or differs from the first in more than weights.
        ConfigError: if there is not one eta for each.
        DatasetError: if the model does not take the first sample.
    """
    if etas is not None and len(etas) != len(folders):
        raise ConfigError(
            f"{len(etas)} etas were given for {len(folders)} checkpoints. Give one for each."
        )
    found: Survey | None = None
    rate_sum = 0.0
    for number, folder in enumerate(folders):
        checkpoint = ckpt.load(folder, scheduler=scheduler)
        record = checkpoint.record
        own = _objective(objective, checkpoint)
        if found is None:
            check_fits(checkpoint.model, tuple(samples.tensor(0).shape), samples.ids[0])
            found = Survey(own, checkpoint.architecture(), checkpoint.num_parameters, [], [])
            if etas is None and record is None:
                _log.warning(
                    "%s records no learning rate: every checkpoint weighs 1. Say otherwise with "
                    "--etas.",
                    folder,
                )
        _require_alike(found, checkpoint, own, first=folders[0])
        eta = 1.0
        if etas is not None:
            eta = float(etas[number])
        elif record is not None:
            # The weight of the steps since the checkpoint used before this one.
            eta, rate_sum = record.learning_rate_sum - rate_sum, record.learning_rate_sum
            if eta < 0:
                raise CheckpointError(
                    f"checkpoint {folder} comes after {folders[number - 1]} but was saved before "
                    "it. Give --checkpoints in training order."
                )
        found.weights.append(checkpoint.weights_digest())
        found.checkpoints.append(
            CheckpointSpec(
                path=str(folder.resolve()), eta=eta, epoch=record.epoch if record else None
            )
        )
    if found is None:
        raise CheckpointError("no checkpoint was given. Name at least one with --checkpoints.")
    return found


def _objective(objective: Objective | str | None, checkpoint: ckpt.Checkpoint) -> Objective:
    if objective is not None and not isinstance(objective, str):
        return objective
    recorded = checkpoint.record.loss if checkpoint.record else None
    return DiffusionLoss(checkpoint.scheduler, objective or recorded or "l2")


def _require_alike(
    found: Survey, checkpoint: ckpt.Checkpoint, objective: Objective, *, first: Path
) -> None:
    for section, mine, theirs, what in (
        ("model", found.architecture, checkpoint.architecture(), "architecture"),
        ("objective", found.objective.identity(), objective.identity(), "scheduler or loss"),
    ):
        if mine != theirs:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} has another {what} than {first}: "
                + "; ".join(
                    f"{key} is {theirs.get(key)!r}, not {mine.get(key)!r}"
                    for key in mine
                    if mine.get(key) != theirs.get(key)
                )
                + f". A store holds one {section} only: leave it out of --checkpoints."
            )
