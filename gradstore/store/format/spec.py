"""What a store is made of, as data: the specs of projector, events, objective and checkpoints.

A spec is small, frozen, validated by pydantic, and the same in YAML, in flags, in Python and in the
store's attributes. What *identifies a row* goes into the fingerprint (`gradstore.fingerprint`).
"""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from gradstore.store.format.layout import Layout

FORMAT_VERSION: Final = 1

Identity = dict[str, JsonValue]

# What a store may remove of itself: nothing that a hostile file could lead elsewhere.
_OWN_PREFIX: Final = (
    r"^(parts/[0-9a-f]{32}|samples|(parts/[0-9a-f]{32}/)?(checkpoints|seals)(/[0-9]{1,7})?"
    r"|deleted/[0-9a-f]{32}\.parquet)$"
)


class Spec(BaseModel):
    """A frozen model that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectorSpec(Spec):
    """How full gradients become directions."""

    projector: Literal["trak", "sjlt", "identity"] = Field(
        "trak",
        description="trak: the matrix of TRAK's BasicProjector; sjlt: one signed bucket per "
        "parameter, far cheaper for large models; identity: no projection",
    )
    proj_dim: int = Field(4096, ge=1, le=1 << 20, description="projection dimension")
    proj_type: Literal["rademacher", "normal"] = Field(
        "rademacher", description="distribution of the entries of the trak matrix"
    )
    proj_seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the projection")
    block_size: int | None = Field(
        None,
        ge=1,
        description="columns per block of the trak matrix; part of its identity "
        "[default: 128, more for large proj_dim]",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of the product with the trak matrix; auto: what is fast on this "
        "machine. bfloat16 moves a row by 0.24%, far less than the projection does. Rows of either "
        "can be compared",
    )

    @property
    def resolved_block_size(self) -> int:
        """Columns per block, such that no two checkpoints share a block.

        BasicProjector seeds block `i` of model `k` with `seed + 1000 i + 100000 k`: from 100
        blocks on, block 100 of one model is block 0 of the next.
        """
        if self.block_size is not None:
            return min(self.block_size, self.proj_dim)
        return min(self.proj_dim, max(128, ceil(self.proj_dim / 64)))


class EventSpec(Spec):
    """Which events become rows."""

    events: Literal["replayed", "planned"] = Field(
        "replayed",
        description="replayed: each sample's timestep and noise as the training run recorded "
        "them; planned: evenly spaced timesteps",
    )
    timesteps: int = Field(10, ge=1, le=10_000, description="planned timesteps per sample")
    draws: int = Field(
        1, ge=1, le=10_000, description="noises averaged into each planned timestep's row"
    )
    event_seed: int = Field(0, ge=0, description="seed of the planned noises")


class ObjectiveSpec(Spec):
    """The function of model and event whose gradient is a row."""

    loss: Literal["l1", "l2", "square"] | None = Field(
        None,
        description="distance between prediction and target, or the prediction's own square "
        "(D-TRAK) [default: what the checkpoint recorded, else l2]",
    )


class GradientSpec(Spec):
    """What is differentiated, and how."""

    params: str | None = Field(
        None,
        description="regular expression: only parameters in whose name it is found are "
        "differentiated [default: all that are trainable]",
    )
    autocast: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="bfloat16: mixed precision in the forward and backward pass; auto: where it "
        "is faster on this machine and moves gradients less than the projection does",
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


class CheckpointSpec(Spec):
    """A checkpoint as a store remembers it.

    Attributes:
        path: where it was read from. Provenance: it may have moved since.
        eta: its weight η_k, learning rate × visits of each sample since the checkpoint before.
        epoch: the epoch after which it was saved, where the training run recorded one.
        learning_rate_sum: learning rate × visits since training began, where the run recorded it:
            what η is the difference of. None where weights were given by hand.
        number: names its arrays in the store and seeds its projection. It stays the same when
            another checkpoint is dropped.
    """

    path: str
    eta: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    epoch: int | None = None
    learning_rate_sum: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    number: Annotated[int, Field(ge=0, lt=1 << 20)]


class LayoutSpec(Spec):
    """`Layout` as it stands in a store's attributes, bounded because files are not trusted."""

    samples: Annotated[int, Field(ge=1, le=1 << 40)]
    slots: Annotated[int, Field(ge=1, le=1 << 20)]
    dim: Annotated[int, Field(ge=1, le=1 << 32)]
    dtype: Literal["float16", "float32", "int8"]
    chunk_samples: Annotated[int, Field(ge=1, le=1 << 32)]
    shard_samples: Annotated[int, Field(ge=1, le=1 << 32)]

    @classmethod
    def of(cls, layout: Layout) -> LayoutSpec:
        """The spec of `layout`."""
        return cls.model_validate({name: getattr(layout, name) for name in cls.model_fields})

    def layout(self) -> Layout:
        """The layout that this spec describes."""
        return Layout(**self.model_dump())


class PartSpec(Spec):
    """A part of a store: samples that were collected together.

    Attributes:
        path: where it lies below the store's root: nowhere else (the first part, as a rule), or in
            `parts/`, under the hash of its ids and digests where it was appended.
        layout: shapes and partition.
        manifest_sha256: SHA-256 of its manifest. None in stores that were made before it was kept.
        made_by: versions and resolved configuration. Provenance, never compared.
    """

    path: Annotated[str, Field(pattern="^(parts/[0-9a-f]{32})?$")] = ""
    layout: LayoutSpec
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    made_by: dict[str, Any] = Field(default_factory=dict)


class StoreSpec(Spec):
    """The attributes of a store's root group: one small object, replaced as a whole.

    Whatever changes a store (append, delete, vacuum, a checkpoint more or less) first writes all
    that is new beside what is there, and then replaces this object: that is the moment at which
    the store is another.

    Attributes:
        format_version: version of the store format, apart from the library's.
        fingerprint: hash of `identity`.
        identity: all that identifies a row: model, checkpoints, objective, projector, events.
        checkpoints: where the checkpoints were, and their weights η_k.
        parts: the samples, in order.
        deleted: the table of deleted rows, if there are any.
        retired: what belongs to the store no more and is to be removed.
        revision: how often the store was changed: so that it never is again what it was, and
            whoever replaces it on the condition that it is what they read notices any change.
    """

    format_version: Literal[1] = FORMAT_VERSION
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    identity: Identity
    checkpoints: Annotated[list[CheckpointSpec], Field(min_length=1, max_length=10_000)]
    parts: Annotated[list[PartSpec], Field(min_length=1, max_length=100_000)]
    deleted: Annotated[str, Field(pattern=r"^deleted/[0-9a-f]{32}\.parquet$")] | None = None
    retired: list[Annotated[str, Field(pattern=_OWN_PREFIX)]] = Field(default_factory=list)
    revision: Annotated[int, Field(ge=0, lt=1 << 53)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> StoreSpec:
        numbers = [checkpoint.number for checkpoint in self.checkpoints]
        if len(set(numbers)) < len(numbers):
            raise ValueError("two checkpoints have one number")
        if len({part.path for part in self.parts}) < len(self.parts):
            raise ValueError("two parts have one path")
        rows = {(p.layout.slots, p.layout.dim, p.layout.dtype) for p in self.parts}
        if len(rows) > 1:
            raise ValueError("its parts have rows of different shapes or dtypes")
        return self
