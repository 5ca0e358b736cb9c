"""Opens or creates the stores that a job fills, and checks their configuration."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstore import __version__
from gradstore.collect import devices
from gradstore.collect.events.noise import noise_identity
from gradstore.collect.models.parameters import num_parameters
from gradstore.collect.objectives.wrappers import sigmas
from gradstore.errors import ConfigError, StoreError
from gradstore.store.changes.append import begun_part, open_part, part_path, require_new
from gradstore.store.format.fingerprint import (
    COMPARED,
    fingerprint,
    only_checkpoints,
    require_same,
    row_fingerprint,
)
from gradstore.store.format.layout import Layout, row_columns
from gradstore.store.format.spec import (
    FORMAT_VERSION,
    GradientSpec,
    Identity,
    LayoutSpec,
    PartSpec,
    StoreSpec,
)
from gradstore.store.opening import looks_like_store, open_store
from gradstore.store.part import Part
from gradstore.store.writer import create

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradstore.collect.data.samples import Samples
    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.pipeline.metric import JobMetric
    from gradstore.collect.pipeline.options import CollectOptions, Destination
    from gradstore.collect.pipeline.survey import Survey
    from gradstore.collect.projectors import Projector
    from gradstore.store.format.manifest import Manifest
    from gradstore.store.objects.protocol import Objects
    from gradstore.store.reader import Store


_log = logging.getLogger("gradstore")


@dataclass(frozen=True)
class StoreTarget:
    """A part of a store to fill.

    Attributes:
        objects: location of the store.
        projector: the projector of its directions.
        spec: specification of the store.
        part: specification of the part.
        fingerprints: fingerprint of the rows at each checkpoint, by checkpoint number.
    """

    objects: Objects
    projector: Projector
    spec: StoreSpec
    part: PartSpec
    fingerprints: Mapping[int, str]

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self.objects.location

    @property
    def layout(self) -> Layout:
        """Shapes and partition."""
        return self.part.layout.layout()

    def open(self, manifest: Manifest) -> Part:
        """Open the part; create it and its store if missing."""
        if not looks_like_store(self.objects):
            try:
                create(self.objects, self.spec, manifest)
            except StoreError:
                if not looks_like_store(self.objects):  # otherwise another rank created it
                    raise
            require_it(open_store(self.objects), self.spec)
        part = open_part(open_store(self.objects), self.part, manifest)
        # Since the check, another process may have made another store here.
        part.manifest.require_same(manifest, store=self.location)
        known = {
            number: part.fingerprints.get(number, own) for number, own in self.fingerprints.items()
        }
        if part.layout != self.layout or known != self.fingerprints:
            raise StoreError(
                f"{self.location} has just been made by another configuration; nothing was "
                "changed. Choose another --store."
            )
        return Part(self.objects, part.spec, self.fingerprints)


def versions() -> dict[str, str]:
    """Versions of the packages that compute the rows."""
    packages = ("torch", "diffusers", "traker", "numpy", "zarr")
    return {
        "gradstore": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


_version = cache(version)  # `version` reads and parses a file each time


def targets_of(
    stores: Sequence[tuple[Objects, Store | None, Projector]],
    loader: Loader,
    samples: Samples,
    plan: EventPlan,
    found: Survey,
    *,
    numbers: Sequence[int],
    given: CollectOptions,
    into: Destination,
    metric: JobMetric | None,
) -> list[StoreTarget]:
    """The targets of a job, one for each store, all with the same shards.

    Args:
        stores: location of each store, the existing store if there is one, and its projector.
        loader: the loader of the checkpoints.
        samples: the samples to collect.
        plan: their events.
        found: the checkpoints.
        numbers: the numbers of the checkpoints in the stores.
        given: the options.
        into: the part to fill.
        metric: the metric of the rows.

    Raises:
        GradstoreError: if an existing store has another configuration or other samples.
    """
    like = given["like"]
    length = num_parameters(found.model)
    widest_dim = max(projector.dim(length) for _, _, projector in stores)
    # All stores use the partition for the longest rows: a task fills the same shard of each.
    widest = Layout.choose(
        len(samples), plan.slots, widest_dim, given["dtype"], given["shard_samples"]
    )
    sources = _sources(metric, found)
    models = loader.spec()
    columns = row_columns(
        given["dtype"], metric=metric is not None, sigma=sigmas(found.objective) is not None
    )
    targets = []
    for objects, standing, projector in stores:
        identity: Identity = {
            "model": found.architecture,
            "checkpoints": [
                {"weights": digest, "number": number, **source}
                for digest, number, source in zip(
                    found.weight_digests, numbers, sources, strict=True
                )
            ],
            "objective": found.objective.identity(),
            "projector": projector.identity(length),
            "events": plan.identity(),
            "noise": noise_identity(),
            "storage": {"dtype": given["dtype"]},
        }
        if metric is not None:
            identity["metric"] = metric.identity
        if metric is not None and metric.source is not None and like is None:
            require_same(
                metric.source.spec.identity,
                identity,
                expected_name=metric.source.location,
                found_name="this collection",
                sections=("model", "checkpoints"),
            )
        if like is not None:
            require_same(
                like.spec.identity,
                identity,
                expected_name=like.location,
                found_name="this query",
                sections=COMPARED,
            )
        # An existing store keeps its format.
        old = standing is not None and standing.spec.format_version == 1
        layout = Layout.choose(
            len(samples),
            plan.slots,
            projector.dim(length),
            given["dtype"],
            widest.shard_samples,
            columns=() if old else columns,
        )
        part = PartSpec(
            path=part_path(standing, samples.manifest) if into.append and standing else "",
            layout=LayoutSpec.of(layout),
            made_by={
                "versions": versions(),
                "device": devices.choose(given["device"]).type,
                "gradients": (given["gradients"] or GradientSpec()).model_dump(),
                "models": None if models is None else models.located().model_dump(),
                "samples": samples.record(),
                "config": given["config"] or {},
            },
        )
        spec = StoreSpec(
            fingerprint=fingerprint(identity),
            identity=identity,
            checkpoints=[
                one.model_copy(update={"number": number})
                for one, number in zip(found.checkpoints, numbers, strict=True)
            ],
            parts=[part],
            format_version=1 if old else FORMAT_VERSION,
        )
        if standing is not None:
            part = _standing_part(standing, spec, samples.manifest, into)
            identity = _as_recorded(standing.spec.identity, identity, into)
            if given["shard_samples"] not in {None, part.layout.shard_samples}:
                _log.warning(
                    "%s keeps its %s samples per shard; shard_samples %s is ignored",
                    objects.location,
                    part.layout.shard_samples,
                    given["shard_samples"],
                )
            if into.number is None:
                spec = standing.spec
        fingerprints = {
            number: row_fingerprint(identity, place) for place, number in enumerate(numbers)
        }
        targets.append(StoreTarget(objects, projector, spec, part, fingerprints))
    if len({target.layout.shard_samples for target in targets}) > 1:
        sizes = ", ".join(f"{one.location}: {one.layout.shard_samples}" for one in targets)
        raise ConfigError(
            f"these stores have shards of different sizes and cannot be filled together ({sizes} "
            "samples). Collect them one by one, or again with the same --shard-samples."
        )
    return targets


def _sources(metric: JobMetric | None, found: Survey) -> list[Identity]:
    """What identifies each checkpoint besides its weights: the digest of what the metric reads.

    A query takes over the fits of its training store, which may be all that is left of them.
    """
    if metric is None:
        return [{} for _ in found.checkpoints]
    if metric.source is not None:
        known = metric.source.spec.identity["checkpoints"]
        own = [one if isinstance(one, dict) else {} for one in known]  # type: ignore[union-attr]
        return [{k: v for k, v in one.items() if k == "metric"} for one in own]
    digests = [metric.metric.source(Path(one.path)) for one in found.checkpoints]
    return [{} if digest is None else {"metric": digest} for digest in digests]


def _as_recorded(standing: Identity, identity: Identity, into: Destination) -> Identity:
    """The identity of new rows of a store, with the fields that the store records.

    The store may record fields that are not compared, and lack fields that are newer than it.
    """
    if into.number is None:
        return standing
    own = {**standing, "checkpoints": identity["checkpoints"]}
    events, found = own.get("events"), identity["events"]
    if isinstance(events, dict) and isinstance(found, dict) and "recorded" in events:
        own["events"] = {**events, "recorded": found["recorded"]}
    return own


def _standing_part(
    store: Store, spec: StoreSpec, manifest: Manifest, into: Destination
) -> PartSpec:
    """The part of an existing store to fill.

    Raises:
        GradstoreError: if the store has another configuration or other samples.
    """
    require_it(store, spec, checkpoint_more=into.number is not None)
    if into.part is not None:
        own = next(part for part in store.parts if part.spec.path == into.part.path)
        own.manifest.require_same(manifest, store=store.location)
        return into.part
    if into.append:
        path = spec.parts[0].path
        known = [part.spec for part in store.parts if part.spec.path == path]
        if known:
            return known[0]
        require_new(store, manifest)
        return begun_part(store, path) or spec.parts[0]
    for part in store.parts:
        if (part.manifest.ids, part.manifest.digests) == (manifest.ids, manifest.digests):
            return part.spec
    store.parts[0].manifest.require_same(manifest, store=store.location)
    return store.parts[0].spec


def require_it(store: Store, spec: StoreSpec, *, checkpoint_more: bool = False) -> None:
    """Raise unless a store matches a specification.

    Args:
        store: the existing store.
        spec: specification of the store to make.
        checkpoint_more: whether the specification has a checkpoint that the store lacks.
    """
    mine, theirs = store.spec.identity, spec.identity
    if checkpoint_more:
        mine = {**only_checkpoints(mine, [0]), "checkpoints": []}
        theirs = {**theirs, "checkpoints": []}
        if isinstance(mine.get("events"), dict) and "recorded" in mine["events"]:  # type: ignore[operator]
            mine["events"] = theirs["events"]
    require_same(
        mine,
        theirs,
        expected_name=store.location,
        found_name="this configuration",
        sections=tuple(mine | theirs),
        mend="restore the configuration that made the store to resume, or collect into "
        "another --store; nothing was changed",
    )
    etas = [checkpoint.eta for checkpoint in spec.checkpoints]
    if store.etas != etas and not checkpoint_more:
        raise ConfigError(
            f"{store.location} has checkpoint weights {store.etas}, not {etas}. Go on with its own "
            f"by --etas {','.join(map(str, store.etas))}; other weights are set when "
            "searching (indexer.build_index(etas=...))."
        )


def noting(target: StoreTarget, made_by: dict[str, Any]) -> StoreTarget:
    """The target with additional `made_by` entries in its part, and in its store if new."""
    part = target.part.model_copy(update={"made_by": {**target.part.made_by, **made_by}})
    parts = [part if one.path == part.path else one for one in target.spec.parts]
    return replace(target, part=part, spec=target.spec.model_copy(update={"parts": parts}))
