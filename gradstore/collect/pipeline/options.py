"""What collecting can be told, and which part of a store it fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gradstore.collect.engines import EngineMaker
    from gradstore.collect.events.plan import EventPlan
    from gradstore.collect.objectives.protocol import Objective
    from gradstore.collect.projectors import Projector
    from gradstore.store.format.spec import (
        EventSpec,
        GradientSpec,
        PartSpec,
        ProjectorSpec,
    )
    from gradstore.store.reader import Store

    Projected: TypeAlias = ProjectorSpec | Projector | None


class CollectOptions(TypedDict, total=False):
    """What `collect`, `collect_each` and `plan` can be told beside dataset, checkpoints and store.

    Attributes:
        objective: an objective, or the loss of `DiffusionLoss`: `l1`, `l2` or `square`. By default
            what the checkpoints recorded, else `l2`.
        events: which events become rows: `replayed` (as the training run recorded them, the
            default), `planned` (10 timesteps, one noise each), an `EventSpec`, or a plan of your
            own.
        gradients: which parameters are differentiated, and in what arithmetic.
        etas: weight η_k of each checkpoint; by default as recorded, else 1.
        scheduler: for checkpoints that hold none.
        dtype: dtype of the stored directions, `float16` (the default), `float32` or `int8`.
        batch_size: events (rows × draws) per gradient computation, at most; 32 by default.
        memory: GiB that collecting may take beside the model and the program itself; 4 by default.
        shard_samples: samples per shard.
        device: torch device; by default cuda if there is one.
        engine: `auto` (the default), `streaming`, `vmap`, `loop`, or what makes an engine from
            model and objective.
        like: a training store of which the new rows are queries; they must be comparable with
            its own, and are refused before any work if they would not be.
        only: places of the checkpoints whose rows are collected now; by default all. The store is
            the same, and the others' rows can follow: the same call without it collects the rest.
        config: the configuration to record in the store as provenance.
    """

    objective: Objective | str | None
    events: EventSpec | EventPlan | str
    gradients: GradientSpec | None
    etas: Sequence[float] | None
    scheduler: Any
    dtype: str
    batch_size: int
    memory: float
    shard_samples: int | None
    device: str | torch.device | None
    engine: str | EngineMaker
    like: Store | None
    only: Sequence[int] | None
    config: dict[str, Any] | None


DEFAULTS: Final[CollectOptions] = {
    "objective": None,
    "events": "replayed",
    "gradients": None,
    "etas": None,
    "scheduler": None,
    "dtype": "float16",
    "batch_size": 32,
    "memory": 4.0,
    "shard_samples": None,
    "device": None,
    "engine": "auto",
    "like": None,
    "only": None,
    "config": None,
}


@dataclass(frozen=True)
class Into:
    """What of a store is to be filled, if not the part that a new store begins with.

    Attributes:
        append: a new part.
        part: this part.
        number: number of the only checkpoint that is collected, where a store gets one more.
    """

    append: bool = False
    part: PartSpec | None = None
    number: int | None = None
