"""The options of collecting, and the part of a store that it fills."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

from pydantic import ValidationError

from gradstore.errors import ConfigError
from gradstore.store.format.spec import (
    EventSpec,
    GradientSpec,
    MetricSpec,
    ObjectiveSpec,
    ProjectorSpec,
    Spec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from gradstore.collect.engines import EngineMaker
    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.metrics import Metric
    from gradstore.collect.models.cache import CheckpointCache
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.objectives.protocol import Objective
    from gradstore.collect.projectors import Projector
    from gradstore.store.format.spec import (
        PartSpec,
    )
    from gradstore.store.reader import Store

    Projected: TypeAlias = ProjectorSpec | Projector | str | None
    Checkpoints: TypeAlias = str | Path | Sequence[str | Path] | Loader | CheckpointCache


class CollectOptions(TypedDict, total=False):
    """Options of `collect`, `collect_each` and `plan`, besides dataset, checkpoints and store.

    Attributes:
        objective: an objective; an `ObjectiveSpec`; or its loss, `l1`, `l2` or `square`, by default
            as the checkpoints record, else `l2`. The scheduler chooses `DiffusionLoss`, `FlowLoss`
            or `EDMLoss`.
        events: the events of the rows: `planned` (10 timesteps, one noise each; the default),
            `replayed` (as the training run recorded them), an `EventSpec`, or a custom plan.
        gradients: which parameters are differentiated, and in which arithmetic.
        metric: the metric in which gradients are compared: `kfac` (the default), `ekfac`, `adam`,
            `fisher`, `none` (as in the paper), a `MetricSpec`, a custom metric, or a store whose
            metric is taken over.
        etas: weight η_k of each checkpoint; by default as recorded, else 1.
        scheduler: used instead of the checkpoints' own.
        dtype: dtype of the stored directions, `float16` (the default), `float32` or `int8`.
        batch_size: events (rows × draws) per gradient computation, at most; 32 by default.
        memory: GiB that collecting may use, without the model and the program; 4 by default.
        shard_samples: samples per shard.
        device: torch device; by default cuda if available.
        engine: `auto` (the default), `streaming`, `vmap`, `loop`, or a callable that makes an
            engine from model and objective.
        like: a training store for which the new rows are queries. Queries that are not comparable
            with its rows are rejected before any work.
        only: indices of the checkpoints whose rows are collected now; by default all. The store
            is the same; the same call without `only` collects the rest.
        config: the configuration to record in the store as provenance.
        quiet: whether to hide progress bars.
    """

    objective: Objective | ObjectiveSpec | str | None
    events: EventSpec | EventPlan | str
    gradients: GradientSpec | None
    metric: Metric | MetricSpec | Store | str | None
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
    quiet: bool


# Options whose fields users pass directly by mistake.
_SPECS: Final[dict[str, type[Spec]]] = {
    "projector": ProjectorSpec,
    "events": EventSpec,
    "gradients": GradientSpec,
    "metric": MetricSpec,
    "objective": ObjectiveSpec,
}

DEFAULTS: Final[CollectOptions] = {
    "objective": None,
    "events": "planned",
    "gradients": None,
    "metric": None,
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
    "quiet": False,
}


@dataclass(frozen=True)
class Destination:
    """The part of a store to fill; by default the first part of a new store.

    Attributes:
        append: whether to fill a new part.
        part: the existing part to fill.
        number: number of the only checkpoint to collect, if a store gets one more.
    """

    append: bool = False
    part: PartSpec | None = None
    number: int | None = None

    @classmethod
    def new_store(cls) -> Destination:
        """The first part of a new store, or the part of an existing one with these samples."""
        return cls()

    @classmethod
    def new_part(cls) -> Destination:
        """A new part of an existing store."""
        return cls(append=True)

    @classmethod
    def existing_part(cls, part: PartSpec, number: int | None = None) -> Destination:
        """A part of an existing store; if `number` is given, the new checkpoint of that number."""
        return cls(part=part, number=number)


def require_known(given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an unknown option, and name the right one."""
    for name in sorted(given.keys() - CollectOptions.__annotations__.keys()):
        for option, spec in _SPECS.items():
            if name in spec.model_fields:
                mend = f"Give it as {option}={spec.__name__}({name}=…)."
                break
        else:
            near = get_close_matches(name, CollectOptions.__annotations__, 1)
            mend = f"Did you mean {near[0]!r}?" if near else "See `CollectOptions`."
        raise ConfigError(f"collecting has no option {name!r}. {mend}")


def projector_of(given: Projected) -> ProjectorSpec | Projector:
    """The given projector or specification, or the specification with the given name.

    Raises:
        ConfigError: if gradstore has no projector with that name.
    """
    if given is None:
        return ProjectorSpec()
    if not isinstance(given, str):
        return given
    try:
        return ProjectorSpec.model_validate({"projector": given})
    except ValidationError as error:
        raise ConfigError(
            f"there is no projector {given!r}; use 'trak', 'sjlt' or 'identity', or a "
            "ProjectorSpec."
        ) from error
