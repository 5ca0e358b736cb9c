"""A typed view of what identifies a store's rows; the only module that reads its identity.

Unknown fields are ignored, because a store may come from another version or from custom objectives
and projectors. Torch is not imported, so mistakes are reported before it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradstore.errors import ConfigError, StoreError
from gradstore.store.format.spec import (
    EventSpec,
    MetricSpec,
    ObjectiveSpec,
    ProjectorSpec,
)

if TYPE_CHECKING:
    from gradstore.store.reader import Store


class Section(BaseModel):
    """A part of a record; a base class."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Model(Section):
    """The model.

    Attributes:
        num_parameters: length of a gradient.
    """

    num_parameters: int = Field(default=0, ge=0)


class Objective(Section):
    """The objective.

    Attributes:
        name: `diffusion`, `flow`, `edm`, or that of a custom objective.
        loss: its loss; None for a custom objective.
        weighting: weight of the loss by σ.
        num_train_timesteps: number of timesteps in training.
        autocast: arithmetic, in stores that record it here.
    """

    name: str = ""
    loss: str | None = None
    weighting: str | None = None
    num_train_timesteps: int | None = None
    autocast: str | None = None

    def spec(self) -> ObjectiveSpec:
        """The specification of the objective; the default for a custom one."""
        try:
            return ObjectiveSpec.model_validate(
                {"objective": self.name, "loss": self.loss, "weighting": self.weighting}
            )
        except ValidationError:
            return ObjectiveSpec()


class Projector(Section):
    """The projector.

    Attributes:
        name: `trak`, `sjlt`, `identity`, or the name of a custom projector.
        proj_dim: length of a direction.
        proj_type: distribution of the entries.
        seed: seed of the matrix.
        block_size: columns per block of the matrix.
        precision: arithmetic, in stores that record it here.
    """

    name: str = ""
    proj_dim: int | None = None
    proj_type: str | None = None
    seed: int | None = None
    block_size: int | None = None
    precision: str | None = None


class Events(Section):
    """The event plan.

    Attributes:
        kind: `planned`, `replayed`, or the name of a custom plan.
        timesteps: timestep grid of planned events.
        below: share of the scheduler's timesteps below which planned events lie.
        draws: noises per row of planned events.
        seed: seed of planned events.
        role: role of the samples with planned events.
    """

    kind: str = ""
    timesteps: list[int] = Field(default_factory=list)
    below: float = 1.0
    draws: int = 1
    seed: int = 0
    role: Literal["train", "query"] = "train"

    def spec(self) -> EventSpec:
        """The specification that plans the same events.

        Raises:
            ConfigError: if the events are custom.
        """
        if self.kind == "planned":
            return EventSpec(
                events="planned",
                timesteps=len(self.timesteps),
                draws=self.draws,
                timesteps_below=self.below,
                event_seed=self.seed,
            )
        if self.kind == "replayed":
            return EventSpec(events="replayed")
        raise ConfigError(f"the store has custom events {self.kind!r}. Pass them as events=.")


class Metric(Section):
    """The metric in which gradients are compared.

    Attributes:
        name: `adam`, `fisher`, `kfac`, `ekfac`, or the name of a custom metric; `none` without one.
        damping: damping of `fisher`, `kfac` and `ekfac`.
        samples: number of samples that it was fitted to.
    """

    name: str = "none"
    damping: float | None = None
    samples: int | None = None


class Checkpoint(Section):
    """A checkpoint.

    Attributes:
        weights: digest of its weights.
    """

    weights: str = ""


class Recorded(Section):
    """The identity of the rows of a store.

    Attributes:
        model: the model.
        objective: the objective.
        projector: the map from gradients to directions.
        events: timesteps and noises.
        metric: the metric.
        checkpoints: the checkpoints, in training order.

    Examples:
        >>> from gradstore.collect.recorded import Recorded
        >>> Recorded.model_validate({"projector": {"name": "sjlt", "proj_dim": 64}}).projected
        True
    """

    model: Model = Model()
    objective: Objective = Objective()
    projector: Projector = Projector()
    events: Events = Events()
    metric: Metric = Metric()
    checkpoints: list[Checkpoint] = Field(default_factory=list)

    @classmethod
    def of(cls, store: Store) -> Recorded:
        """Read a store's identity.

        Raises:
            StoreError: if the identity does not have this form.
        """
        try:
            return cls.model_validate(store.spec.identity)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise StoreError(
                f"{store.location}: identity.{where} is wrong: {first['msg']}. Restore zarr.json "
                "from a copy of the store."
            ) from error

    @property
    def projected(self) -> bool:
        """Whether directions are projections; otherwise they are full gradients."""
        return self.projector.name != "identity"

    def projector_spec(self) -> ProjectorSpec:
        """The specification of the projector; this machine chooses the arithmetic.

        Raises:
            ConfigError: if the projector is custom.
        """
        found = self.projector
        if found.name == "identity":
            return ProjectorSpec(projector="identity")
        if found.name not in {"sjlt", "trak"}:
            raise ConfigError(
                f"the store was made with projector {found.name!r}, which is not gradstore's "
                "own. Pass it as projector=."
            )
        given: dict[str, Any] = {
            "projector": found.name,
            "proj_dim": found.proj_dim,
            "proj_seed": found.seed,
        }
        if found.name == "trak":
            given |= {"proj_type": found.proj_type, "block_size": found.block_size}
        return ProjectorSpec.model_validate(given)

    def metric_spec(self) -> MetricSpec:
        """The specification of the metric.

        Raises:
            ConfigError: if the metric is custom.
        """
        found = self.metric
        try:
            return MetricSpec(
                metric=found.name,
                metric_samples=found.samples,
                **({} if found.damping is None else {"damping": found.damping}),
            )
        except ConfigError as error:
            raise ConfigError(
                f"the store was made in metric {found.name!r}, which is not gradstore's own. Pass "
                "it as metric=."
            ) from error
