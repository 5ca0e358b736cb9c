"""Flags of `gradstore append`."""

from __future__ import annotations

from pydantic import Field

from gradstore.flags.dataset import DatasetSpec, Device


class AppendConfig(DatasetSpec):
    """Configuration of an append: more samples for an existing store."""

    store: str = Field(description="the store to append to")
    checkpoints: list[str] | None = Field(
        None, description="the store's checkpoints, if they moved [default: their recorded paths]"
    )
    base: str | None = Field(
        None, description="the base of the store's checkpoints, if it moved [default: as recorded]"
    )
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB to use in addition to the model")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")

    def dataset_spec(self) -> DatasetSpec:
        """The new samples."""
        return DatasetSpec.model_validate(self.model_dump(include=set(DatasetSpec.model_fields)))
