"""Flags of `gradstore collect` and `gradstore plan`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gradstore.flags.dataset import DatasetSpec, Device
from gradstore.store.format.spec import (
    ADVANCED,
    EventSpec,
    GradientSpec,
    MetricSpec,
    ModelSpec,
    ObjectiveSpec,
    ProjectorSpec,
)


class CollectConfig(
    ProjectorSpec, GradientSpec, MetricSpec, ObjectiveSpec, EventSpec, ModelSpec, DatasetSpec
):
    """Configuration of a collection, from samples and checkpoints to stored rows."""

    checkpoints: list[str] = Field(
        description="diffusers folders or LoRA adapters in training order, or one folder that "
        "holds them"
    )
    etas: list[float] | None = Field(
        None,
        description="weight η_k of each checkpoint [default: as recorded, or by the optimizer that "
        "the script saved beside it, else 1]",
    )
    store: str = Field(description="the store to create or resume: NAME.gradstore")
    dtype: Literal["float16", "float32", "int8"] = Field(
        "float16",
        description="stored dtype of directions; int8: half the bytes of float16, plus a scale "
        "per row",
    )
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(
        4.0, gt=0, lt=1e6, description="GiB to use in addition to the model and the program itself"
    )
    engine: Literal["auto", "streaming", "vmap", "loop"] = Field(
        "auto",
        description="method for per-sample gradients; auto: the fastest that works and fits in "
        "memory",
    )
    shard_samples: int | None = Field(
        None, ge=1, description="samples per shard", json_schema_extra=ADVANCED
    )
    device: Device = Field(None, description="torch device [default: cuda if there is one]")
