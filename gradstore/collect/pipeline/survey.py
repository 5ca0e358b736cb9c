"""Reads all checkpoints once, before long work starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradstore.collect.models.folders import require_etas
from gradstore.collect.models.rates import ScriptRates, script_rates
from gradstore.collect.models.record import RECORD_NAME
from gradstore.collect.objectives.calling import require_kind
from gradstore.collect.objectives.choice import objective_for
from gradstore.collect.objectives.wrappers import InBfloat16
from gradstore.errors import CheckpointError
from gradstore.store.format.fingerprint import differences
from gradstore.store.format.spec import CheckpointSpec, Identity, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect.models.loading import Checkpoint
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.objectives.protocol import Objective

_log = logging.getLogger("gradstore")


@dataclass(frozen=True)
class Survey:
    """What a store needs to know about its checkpoints.

    Attributes:
        model: the first checkpoint's model.
        objective: the objective.
        architecture: identity of the model's class and parameters, the same for all.
        weight_digests: digest of each checkpoint's weights.
        checkpoints: path and weight η_k of each checkpoint.
    """

    model: Any
    objective: Objective
    architecture: Identity
    weight_digests: list[str]
    checkpoints: list[CheckpointSpec]


def survey(
    loader: Loader,
    *,
    objective: Objective | ObjectiveSpec | str | None,
    scheduler: Any,
    etas: Sequence[float] | None,
    params: str | None = None,
) -> Survey:
    """Load each checkpoint once and check that they belong together.

    Raises:
        CheckpointError: if one cannot be loaded, or differs from the first in more than weights.
        ConfigError: if there is not one valid eta for each.
    """
    folders = loader.folders
    require_etas(etas, len(folders))
    found: Survey | None = None
    rates: ScriptRates | None = None
    rate_sum = 0.0
    recorded = False
    for number, folder in enumerate(folders):
        checkpoint = loader.load(folder, scheduler=scheduler, params=params)
        record = checkpoint.record
        own = objective_of(objective, checkpoint)
        architecture = {**checkpoint.architecture(), **loader.identity()}
        if found is None:
            found = Survey(checkpoint.model, own, architecture, [], [])
            recorded = record is not None
            if etas is None and not recorded:
                rates = _told(script_rates(folders))
        if etas is None and recorded != (record is not None):
            raise CheckpointError(
                f"some checkpoints have a {RECORD_NAME} and some, such as "
                f"{folders[0] if recorded is False else folder}, have none: their weights are "
                "unknown. Give them with --etas."
            )
        _require_alike(found, folder, architecture, own, first=folders[0])
        eta, own_sum = 1.0, None
        if etas is not None:
            eta = float(etas[number])
        elif record is not None:
            own_sum = record.learning_rate_sum
        elif rates is not None and rates.sums is not None:
            own_sum = rates.sums[number]
        if own_sum is not None:
            # The weight covers the steps since the previous checkpoint.
            eta, rate_sum = own_sum - rate_sum, own_sum
            if eta <= 0:
                raise CheckpointError(
                    f"checkpoint {folder} was not trained further than the one before it. Give "
                    "--checkpoints in training order, each once."
                )
        found.weight_digests.append(checkpoint.weights_digest())
        found.checkpoints.append(
            CheckpointSpec(
                path=str(folder.resolve()),
                eta=eta,
                epoch=record.epoch if record else None,
                learning_rate_sum=own_sum,
                number=number,
            )
        )
    if found is None:
        raise CheckpointError("no checkpoint was given. Name at least one with --checkpoints.")
    return found


def _told(rates: ScriptRates) -> ScriptRates:
    """Tell where the weights of checkpoints are from."""
    if rates.sums is None:
        _log.warning(
            "the weights of the checkpoints are not known (%s): every checkpoint weighs 1. Set "
            "weights with --etas.",
            rates.told,
        )
    else:
        _log.info("the weights of the checkpoints are %s", rates.told)
    return rates


def objective_of(
    objective: Objective | ObjectiveSpec | str | None, checkpoint: Checkpoint
) -> Objective:
    """The objective that is given, by its loss or itself; by default that of the scheduler.

    Raises:
        CheckpointError: if the checkpoint has no scheduler to make one with.
    """
    found = _objective_of(objective, checkpoint)
    return InBfloat16(found) if checkpoint.rounded else found


def _objective_of(
    objective: Objective | ObjectiveSpec | str | None, checkpoint: Checkpoint
) -> Objective:
    if isinstance(objective, str):
        objective = ObjectiveSpec(loss=require_kind(objective))
    objective = objective or ObjectiveSpec()
    if not isinstance(objective, ObjectiveSpec):
        return objective
    if checkpoint.scheduler is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has no scheduler/scheduler_config.json, which defines "
            "the noise levels. Put the pipeline's scheduler/ into it or next to it, or pass "
            "scheduler= to collect()."
        )
    recorded = checkpoint.record.loss if checkpoint.record else None
    return objective_for(checkpoint.scheduler, objective, recorded)


def _require_alike(
    found: Survey, folder: Path, architecture: Identity, objective: Objective, *, first: Path
) -> None:
    for section, mine, theirs, what in (
        ("model", found.architecture, architecture, "architecture"),
        ("objective", found.objective.identity(), objective.identity(), "scheduler or loss"),
    ):
        if mine != theirs:
            raise CheckpointError(
                f"checkpoint {folder} has another {what} than {first}: "
                + "; ".join(
                    f"{where} is {there!r}, not {here!r}"
                    for where, here, there in differences(mine, theirs)[:5]
                )
                + f". A store holds one {section} only: omit this checkpoint from --checkpoints."
            )
