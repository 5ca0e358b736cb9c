"""What a store records of its making, read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.config import DatasetSpec
from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.reader import Store
    from gradstore.spec import PartSpec


def require_recorded(store: Store, parts: Sequence[PartSpec]) -> None:
    """Raise `ConfigError` unless `gradstore collect` made these parts: Python leaves no dataset."""
    for part in parts:
        if not part.made_by.get("config"):
            raise ConfigError(
                f"{store.location} was collected from Python and does not know its dataset. Call "
                "append, add_checkpoint or repair of gradstore.collect with the dataset."
            )


def recorded_dataset(store: Store, part: PartSpec) -> DatasetSpec:
    """The dataset of a part of a store, as `gradstore collect` or `gradstore query` recorded it.

    Raises:
        ConfigError: if Python made it, which does not know.
    """
    config = part.made_by.get("config") or {}
    if not config.get("dataset"):
        raise ConfigError(
            f"{store.location} was collected from Python and does not know its dataset, which true "
            "gradients are computed from. Call query.rerank with it."
        )
    return DatasetSpec.model_validate(
        {name: config[name] for name in DatasetSpec.model_fields if name in config}
    )
