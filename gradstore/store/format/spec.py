"""The contents of a store as data: specs of projector, events, objective and checkpoints.

A spec is small, frozen, validated by pydantic, and the same in YAML, in flags, in Python and in the
store's attributes. Everything that *identifies a row* goes into the fingerprint (`fingerprint.py`).
"""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from gradstore.errors import ConfigError
from gradstore.store.format.layout import Layout, row_columns

FORMAT_VERSION: Final = 2

Identity = dict[str, JsonValue]

# Prefixes that a store may remove; a hostile file cannot name anything outside the store.
_OWN_PREFIX: Final = (
    r"^(parts/[0-9a-f]{32}|samples|(parts/[0-9a-f]{32}/)?(checkpoints|seals)(/[0-9]{1,7})?"
    r"|deleted/[0-9a-f]{32}\.parquet|metrics/[0-9a-f]{64}\.[0-9]{1,16}\.safetensors)$"
)

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# Marks a field that few users need; `--help` shows it last.
ADVANCED: Final[dict[str, JsonValue]] = {"advanced": True}
# Marks a list whose values contain no commas, so that one flag can give several.
COMMAS: Final[dict[str, JsonValue]] = {"commas": True}
# What a store records and no flag sets.
INTERNAL: Final[dict[str, JsonValue]] = {"internal": True}


if TYPE_CHECKING:
    _Base = BaseModel
else:

    class _RaisesConfigError(type(BaseModel)):
        """Makes models whose calls raise `ConfigError`, not pydantic's own error."""

        def __call__(cls, *arguments, **fields):
            try:
                return super().__call__(*arguments, **fields)
            except ValidationError as error:
                message = "; ".join(
                    f"{'.'.join(map(str, one['loc'])) or 'the value'} is {one['input']!r}: "
                    f"{one['msg'].removeprefix('Value error, ')}"
                    for one in error.errors()
                )
                raise ConfigError(f"{cls.__name__}: {message}") from error

    class _Base(BaseModel, metaclass=_RaisesConfigError):
        pass


class Spec(_Base):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectorSpec(Spec):
    """Projection of full gradients to directions."""

    projector: Literal["trak", "sjlt", "identity"] = Field(
        "trak",
        description="trak: the matrix of TRAK's BasicProjector; sjlt: one signed bucket per "
        "parameter, much cheaper for large models; identity: no projection",
    )
    proj_dim: int = Field(4096, ge=1, le=1 << 20, description="projection dimension")
    proj_type: Literal["rademacher", "normal"] = Field(
        "rademacher",
        description="distribution of the entries of the trak matrix",
        json_schema_extra=ADVANCED,
    )
    proj_seed: int = Field(
        0, ge=0, le=2**31 - 1, description="seed of the projection", json_schema_extra=ADVANCED
    )
    block_size: int | None = Field(
        None,
        ge=1,
        description="columns per block of the trak matrix; part of its identity "
        "[default: 128, more for large proj_dim]",
        json_schema_extra=ADVANCED,
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of the product with the trak matrix; auto: the fastest on this "
        "machine. bfloat16 changes a row by 0.24%, much less than the projection does. Rows of "
        "both can be compared",
    )

    @property
    def resolved_block_size(self) -> int:
        """Columns per block, chosen so that no two checkpoints share a block.

        BasicProjector seeds block `i` of model `k` with `seed + 1000 i + 100000 k`, so block 100 of
        one model equals block 0 of the next.
        """
        if self.block_size is not None:
            return min(self.block_size, self.proj_dim)
        return min(self.proj_dim, max(128, ceil(self.proj_dim / 64)))


class EventSpec(Spec):
    """Events that become rows."""

    events: Literal["replayed", "planned"] = Field(
        "planned",
        description="planned: evenly spaced timesteps; replayed: each sample's timestep and noise "
        "as recorded by the training run, as in the paper",
    )
    timesteps: int = Field(10, ge=1, le=10_000, description="planned timesteps per sample")
    draws: int = Field(
        1, ge=1, le=10_000, description="noise draws averaged in the row of each planned timestep"
    )
    timesteps_below: float = Field(
        1.0,
        gt=0,
        le=1,
        description="planned timesteps lie below this share of the scheduler's",
        json_schema_extra=ADVANCED,
    )
    event_seed: int = Field(
        0, ge=0, description="seed of the noise of planned events", json_schema_extra=ADVANCED
    )


class ObjectiveSpec(Spec):
    """The function of model and event whose gradient is a row."""

    objective: Literal["diffusion", "flow", "edm"] | None = Field(
        None,
        description="diffusion: a model of noise, sample or velocity; flow: flow matching; edm: "
        "EDM's preconditioning [default: by the scheduler]",
    )
    weighting: Literal["none", "sigma_sqrt", "cosmap", "sample", "edm"] | None = Field(
        None,
        description="weight of the loss by σ, as in training; of flow: none, sigma_sqrt, cosmap or "
        "sample; of edm: edm or none [default: none of flow, edm of edm]",
    )
    loss: Literal["l1", "l2", "square"] | None = Field(
        None,
        description="distance between prediction and target, or the prediction's own square "
        "(D-TRAK) [default: as recorded by the checkpoint, else l2]",
    )


class GradientSpec(Spec):
    """Parameters and arithmetic of the gradients."""

    params: str | None = Field(
        None,
        description="regular expression: only parameters whose name contains a match are "
        "differentiated [default: all trainable ones]",
    )
    autocast: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="bfloat16: mixed precision in the forward and backward pass; auto: if it is "
        "faster on this machine and changes gradients less than the projection does",
    )

    @field_validator("params")
    @classmethod
    def _regular(cls, params: str | None) -> str | None:
        try:
            re.compile(params or "")
        except re.error as error:
            raise ValueError(f"it is not a regular expression: {error}") from error
        return params

    compile: bool = Field(
        False, description="compile the model with torch.compile, for the streaming engine"
    )


class ModelSpec(Spec):
    """How the models of checkpoints are read from their folders."""

    base: str | None = Field(
        None,
        description="pipeline that the training began with: the model under LoRA adapters, and "
        "whatever else the checkpoints' folders lack (scheduler, VAE, text encoders)",
    )
    base_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the model under LoRA adapters, which stay float32"
    )
    ema: bool = Field(False, description="take the averaged weights, unet_ema or transformer_ema")
    variant: str | None = Field(
        None,
        pattern=r"^\w{1,32}$",
        description="variant of the files of weights, such as fp16",
    )

    def located(self) -> ModelSpec:
        """The same with the full path of the base."""
        base = None if self.base is None else str(Path(self.base).resolve())
        return self.model_copy(update={"base": base})


class MetricSpec(Spec):
    """The metric in which gradients are compared."""

    metric: Literal["none", "adam", "fisher", "kfac", "ekfac"] = Field(
        "kfac",
        description="linear map of gradients before projection. none: as in the paper; adam: the "
        "training run's own step sizes, from its optimizer state; fisher: the diagonal of the "
        "Fisher matrix; kfac, ekfac: its Kronecker factors, per layer",
    )
    metric_samples: int | None = Field(
        None,
        ge=1,
        description="training samples to which fisher, kfac and ekfac are fitted "
        "[default: a tenth, at least 32 and at most 1,000]",
    )
    damping: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="added to the eigenvalues of fisher, kfac and ekfac, relative to their mean",
        json_schema_extra=ADVANCED,
    )


class CheckpointSpec(Spec):
    """A checkpoint as recorded in a store.

    Attributes:
        path: path that it was read from. Provenance: it may have moved since.
        eta: its weight η_k, learning rate × visits of each sample since the previous checkpoint.
        epoch: the epoch after which it was saved, if the training run recorded it.
        learning_rate_sum: learning rate × visits since training began, if the run recorded it; η is
            the difference of two such sums. None if weights were given by hand.
        number: names its arrays in the store and seeds its projection. It stays the same when
            another checkpoint is dropped.
        metric: name of the file of the fitted metric, its SHA-256 and a generation (see
            `gradstore.store.metrics`); None if there is no metric, or not yet, or in a query store,
            whose training store has the file.
    """

    path: str
    eta: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    epoch: int | None = None
    learning_rate_sum: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    number: Annotated[int, Field(ge=0, lt=1 << 20)]
    metric: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.[0-9]{1,16}$")] | None = None

    @property
    def metric_sha256(self) -> str | None:
        """SHA-256 of the fitted metric."""
        return None if self.metric is None else self.metric.split(".")[0]


ColumnName = Literal["norm", "raw_norm", "loss", "timestep", "sigma", "scale"]


class LayoutSpec(Spec):
    """`Layout` in a store's attributes, with bounds because files are not trusted."""

    samples: Annotated[int, Field(ge=1, le=1 << 40)]
    slots: Annotated[int, Field(ge=1, le=1 << 20)]
    dim: Annotated[int, Field(ge=1, le=1 << 32)]
    dtype: Literal["float16", "float32", "int8"]
    chunk_samples: Annotated[int, Field(ge=1, le=1 << 32)]
    shard_samples: Annotated[int, Field(ge=1, le=1 << 32)]
    columns: Annotated[list[ColumnName], Field(max_length=16)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _known_columns(self) -> LayoutSpec:
        some = {"metric": "raw_norm" in self.columns, "sigma": "sigma" in self.columns}
        expected = list(row_columns(self.dtype, **some))
        if self.columns and self.columns != expected:
            raise ValueError(f"columns are {self.columns}, not {expected}")
        return self

    @classmethod
    def of(cls, layout: Layout) -> LayoutSpec:
        """The spec of `layout`."""
        values = {name: getattr(layout, name) for name in cls.model_fields}
        return cls.model_validate({**values, "columns": list(layout.columns)})

    def layout(self) -> Layout:
        """The layout that this spec describes."""
        return Layout(**{**self.model_dump(), "columns": tuple(self.columns)})


class ManifestSpec(Spec):
    """The file of a part's manifest, for readers of pieces of it.

    Attributes:
        nbytes: its bytes.
        footer_nbytes: bytes of the footer at its end, which tells where its pieces are.
        footer_sha256: SHA-256 of the footer.
    """

    nbytes: Annotated[int, Field(ge=0, lt=1 << 53)]
    footer_nbytes: Annotated[int, Field(ge=0, le=64 << 20)]
    footer_sha256: Sha256


class PartSpec(Spec):
    """A part of a store: samples that were collected together.

    Attributes:
        path: path below the store's root: usually empty for the first part; for an appended part,
            `parts/` and the hash of its ids and digests.
        layout: shapes and partition.
        manifest_sha256: SHA-256 of its manifest. None in older stores.
        manifest: the manifest's file. None in older stores.
        made_by: versions and resolved configuration. Provenance, never compared.
    """

    path: Annotated[str, Field(pattern="^(parts/[0-9a-f]{32})?$")] = ""
    layout: LayoutSpec
    manifest_sha256: Sha256 | None = None
    manifest: ManifestSpec | None = None
    made_by: dict[str, Any] = Field(default_factory=dict)


ChangeName = Literal[
    "create", "append", "merge", "delete", "vacuum", "add-checkpoint", "drop-checkpoint", "fit"
]
"""Names of changes, as the root object records them; `fit` names a fitted metric."""


class StoreSpec(Spec):
    """The attributes of a store's root group: one small object, replaced as a whole.

    Every change of a store (append, delete, vacuum, adding or dropping a checkpoint) first writes
    its new objects beside the existing ones, and then replaces this object. The replacement makes
    the change effective.

    Attributes:
        format_version: version of the store format, independent of the library's version.
        fingerprint: hash of `identity`.
        identity: all that identifies a row: model, checkpoints, objective, projector, events.
        checkpoints: original paths of the checkpoints, and their weights η_k.
        parts: the samples, in order.
        deleted: key of the table of deleted rows, if there are any.
        retired: prefixes and tables that no longer belong to the store and are to be removed.
        revision: number of changes of the store. It makes each root object unique, so that a
            conditional replacement detects every change.
        generation: number of changes that retired a part or a metric. New parts and metrics have
            it in their names, so that no retired name is used again.
        next_number: no number from this one on was ever a checkpoint's; 0 in a new store.
        change: the last change. See `gradstore.store.commits`.
        previous: digest of the root object before it; None in the first one.
        digest: digest of this root object, from `root_digest`; computed when it is written.
        samples_hash: names the samples and their order. A new store has `Manifest.hash`; a change
            of the samples hashes the one before with what it changed, so that no one hashes all
            ids again. None in older stores; see `Store.samples_hash`.
    """

    format_version: Literal[1, 2] = FORMAT_VERSION
    fingerprint: Sha256
    identity: Identity
    checkpoints: Annotated[list[CheckpointSpec], Field(min_length=1, max_length=10_000)]
    parts: Annotated[list[PartSpec], Field(min_length=1, max_length=100_000)]
    deleted: Annotated[str, Field(pattern=r"^deleted/[0-9a-f]{32}\.parquet$")] | None = None
    retired: list[Annotated[str, Field(pattern=_OWN_PREFIX)]] = Field(default_factory=list)
    revision: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    generation: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    next_number: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    change: ChangeName = "create"
    previous: Sha256 | None = None
    digest: Sha256 | None = None
    samples_hash: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> StoreSpec:
        numbers = [checkpoint.number for checkpoint in self.checkpoints]
        if len(set(numbers)) < len(numbers):
            raise ValueError("two checkpoints have the same number")
        if len({part.path for part in self.parts}) < len(self.parts):
            raise ValueError("two parts have the same path")
        if any(bool(part.layout.columns) != (self.format_version > 1) for part in self.parts):
            raise ValueError("its parts are not of its format version")
        rows = {(p.layout.slots, p.layout.dim, p.layout.dtype) for p in self.parts}
        if len(rows) > 1:
            raise ValueError("its parts have rows of different shapes or dtypes")
        return self
