"""The training record that a run saves with a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradstore.collect.models.folders import read_config
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


RECORD_NAME = "checkpoint.json"


class TrainingRecord(BaseModel):
    """The record that a training run saves with a checkpoint, `checkpoint.json`.

    Attributes:
        epoch: epochs trained so far.
        learning_rate_sum: sum of the learning rate over all visits of a sample so far. The
            difference between two checkpoints is the later one's weight η_k.
        loss: `l1` or `l2` of `DiffusionLoss`; None for another objective.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = Field(ge=0)
    learning_rate_sum: float = Field(ge=0, allow_inf_nan=False)
    loss: Literal["l1", "l2"] | None = None

    def save(self, folder: Path) -> None:
        """Write `checkpoint.json` into a checkpoint's folder."""
        (folder / RECORD_NAME).write_text(self.model_dump_json(indent=2) + "\n")


def load_record(folder: Path) -> TrainingRecord | None:
    """The record in a checkpoint's folder; None if there is none."""
    file = folder / RECORD_NAME
    if not file.exists():
        return None
    try:
        return TrainingRecord.model_validate(read_config(file))
    except ValidationError as error:
        raise CheckpointError(
            f"{file} is not a training record: {error.errors()[0]['msg']}. Restore it, or "
            "remove it and give the weights with --etas."
        ) from error
