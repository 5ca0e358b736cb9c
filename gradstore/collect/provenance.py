"""How the parts of a store were made, and which of their paths are followed.

`Provenance` reads the `made_by` of a part; it ignores unknown fields, as `recorded` does, and does
not import torch either. Paths and datasets in it are followed as `named` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from gradstore.collect.named import follow, may_follow
from gradstore.collect.recorded import Recorded, Section
from gradstore.errors import ConfigError, StoreError, UnknownNameError
from gradstore.flags.collect import CollectConfig
from gradstore.flags.dataset import READING, DatasetSpec
from gradstore.store.format.spec import (
    GradientSpec,
    ModelSpec,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.format.spec import PartSpec
    from gradstore.store.reader import Store


class Provenance(Section):
    """Record of how a part was made; never compared.

    Attributes:
        config: configuration of the command that made the part; empty if made from Python.
        samples: how the samples were read; empty in stores older than this record.
        gradients: specification of the gradients.
        models: how the models were read; None if a loader of code read them.
        arithmetic: arithmetic of gradients and projections.
        engine: the gradient engine.
        events: events per gradient computation.
        versions: versions of the packages that compute the rows.
        device: type of the torch device.
    """

    config: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, Any] = Field(default_factory=dict)
    gradients: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, Any] | None = Field(default_factory=dict)
    arithmetic: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    engine: str | None = None
    events: int | None = None
    device: str | None = None

    @field_validator("config", "samples", "gradients", "arithmetic", "versions", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {}

    @field_validator("models", mode="before")
    @classmethod
    def _mapping_or_none(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else None

    @field_validator("engine", "device", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return value if isinstance(value, str) else None

    @field_validator("events", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return value if isinstance(value, int) and value > 0 else None

    @classmethod
    def of(cls, part: PartSpec) -> Provenance:
        """Read a part's `made_by`; unexpected values count as unknown."""
        return cls.model_validate(part.made_by)

    @property
    def reading(self) -> int:
        """Version of the rules by which the samples were read."""
        found = self.samples.get("reading")
        return found if isinstance(found, int) and 1 <= found <= READING else 1

    @property
    def skipped(self) -> int:
        """Number of damaged samples that were left out."""
        found = self.samples.get("skipped")
        return found if isinstance(found, int) and found > 0 else 0

    def dataset(self) -> DatasetSpec | None:
        """The dataset that the part was made from; None if it was made from Python.

        Raises:
            ConfigError: if the record names no valid dataset.
        """
        if not self.config.get("dataset"):
            return None
        names = DatasetSpec.model_fields.keys() & self.config.keys()
        try:
            given = {name: self.config[name] for name in names}
            # The samples that were damaged are known: they need not be looked for again.
            given |= {"reading": self.reading, "skip_unreadable": False}
            return DatasetSpec.model_validate(given)
        except ValidationError as error:
            raise ConfigError(
                f"made_by.config does not name a dataset: {error.errors()[0]['msg']}"
            ) from error


def require_recorded(store: Store, parts: Sequence[PartSpec]) -> None:
    """Raise `ConfigError` unless `gradstore collect` made the parts; Python records no dataset."""
    for part in parts:
        if not Provenance.of(part).config:
            raise ConfigError(
                f"{store.location} was collected from Python and does not know its dataset. Call "
                "append, add_checkpoint or repair of gradstore.collect with the dataset."
            )


def recorded_folders(store: Store) -> list[str]:
    """The checkpoints' folders that a store records, which the user follows.

    Raises:
        UnknownNameError: if the user does not: see `gradstore.collect.named`.
    """
    folders = [one.path for one in store.spec.checkpoints]
    for folder in folders:
        _require_followed(store, "checkpoint", folder, "--checkpoints (in Python, checkpoints=)")
    return folders


def recorded_models(store: Store) -> ModelSpec:
    """How the models of a store's checkpoints were read.

    Raises:
        ConfigError: if a loader of code read them.
        StoreError: if the record is not what gradstore writes.
    """
    found = Provenance.of(store.spec.parts[0]).models
    if found is None:
        raise ConfigError(
            f"{store.location} was made from checkpoints that code loads, such as Module. Ask from "
            "Python, and pass the loader as checkpoints=."
        )
    try:
        return ModelSpec.model_validate(found)
    except ValidationError as error:
        raise StoreError(
            f"{store.location}: made_by.models is not what gradstore writes: "
            f"{error.errors()[0]['msg']}. Pass a loader as checkpoints=."
        ) from error


def followed_models(store: Store, base: str | None = None) -> ModelSpec:
    """`recorded_models`, with the base that the user gives, or a recorded one that they follow.

    Raises:
        UnknownNameError: if the user does not follow it.
    """
    found = recorded_models(store)
    if base is not None:
        return found.model_copy(update={"base": base})
    if found.base is not None:
        _require_followed(store, "base", found.base, "--base")
    return found


def follow_recorded(store: Store) -> None:
    """Follow all names that a store records, now and later: the user trusts its maker."""
    made_by = [Provenance.of(part) for part in store.spec.parts]
    names = [one.config.get("dataset") for one in made_by]
    names += [(one.models or {}).get("base") for one in made_by]
    names += [one.path for one in store.spec.checkpoints]
    follow(name for name in names if isinstance(name, str) and name)


def part_dataset(store: Store, part: PartSpec) -> DatasetSpec | None:
    """The dataset that a part records, which the user follows; None if it was made from Python.

    Raises:
        ConfigError: if the record names no valid dataset.
        UnknownNameError: if the user does not follow it.
    """
    try:
        found = Provenance.of(part).dataset()
    except ConfigError as error:
        raise ConfigError(
            f"{store.location}: {error}. Name the dataset in Python: datasets= or Sources."
        ) from error
    if found is not None:
        _require_followed(store, "dataset", found.dataset, "datasets= in Python")
    return found


def _require_followed(store: Store, what: str, name: str, other: str) -> None:
    if not may_follow(name, store.location):
        raise UnknownNameError(
            f"{store.location} records {what} {name!r}, which is not in the folder of the store, "
            "and which you never gave to gradstore on this machine, so it was not looked at. If "
            f"you trust the store, add --follow-recorded; or name your own by {other}."
        )


def recorded_dataset(store: Store, part: PartSpec) -> DatasetSpec:
    """The dataset of a part of a store, as recorded by `gradstore collect` or `gradstore query`.

    Raises:
        ConfigError: if the part was made from Python, which records no dataset.
    """
    found = part_dataset(store, part)
    if found is None:
        raise ConfigError(
            f"{store.location} was collected from Python and does not know its dataset, which "
            "full gradients require. Call query.rerank with the dataset."
        )
    return found


def recorded_config(store: Store, part: PartSpec, **changes: Any) -> CollectConfig:
    """The configuration that made a part, with the store's current location and checkpoints.

    Args:
        store: the store.
        part: the part.
        changes: settings that replace recorded ones; `dataset` may be a `DatasetSpec`.

    Raises:
        ConfigError: if the store, made from Python, records none.
    """
    require_recorded(store, [part])
    dataset = changes.pop("dataset", None) or part_dataset(store, part)
    given = {name: value for name, value in changes.items() if value is not None}
    if dataset is not None:
        given |= {name: getattr(dataset, name) for name in type(dataset).model_fields}
    try:
        return CollectConfig.model_validate(
            {
                "metric": "none",  # of a store older than metrics
                **Provenance.of(part).config,
                "precision": "auto",  # this machine chooses the arithmetic
                "autocast": "auto",
                "store": store.location,
                "checkpoints": given.get("checkpoints") or recorded_folders(store),
                "etas": store.etas,
                **followed_models(store, given.get("base")).model_dump(),
                **given,
            }
        )
    except ValidationError as error:
        raise ConfigError(
            f"{store.location}: made_by.config is not valid for `gradstore collect`: "
            f"{error.errors()[0]['msg']}. Collect again into another store."
        ) from error


def recorded_gradients(store: Store) -> GradientSpec:
    """The gradient specification of a store; the fingerprint reveals a mismatch.

    This machine chooses the arithmetic.

    Raises:
        StoreError: if the record is not what `gradstore collect` writes.
    """
    try:
        found = GradientSpec.model_validate(Provenance.of(store.spec.parts[0]).gradients)
    except ValidationError as error:
        raise StoreError(
            f"{store.location}: made_by.gradients is not what `gradstore collect` writes: "
            f"{error.errors()[0]['msg']}. Pass gradients=."
        ) from error
    return found.model_copy(update={"autocast": "auto"})


def recorded_options(store: Store) -> dict[str, Any]:
    """Options of `collect` that reproduce a store's rows, if gradstore's own classes made it.

    Raises:
        ConfigError: if the store has a custom projector or custom events.
    """
    found = Recorded.of(store)
    return {
        "objective": found.objective.spec(),
        "projector": found.projector_spec(),
        "events": found.events.spec(),
        "gradients": recorded_gradients(store),
        "metric": found.metric_spec(),
        "etas": store.etas,
        "dtype": store.dtype,
    }
