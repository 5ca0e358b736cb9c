"""Reads a job's samples: as its store did before, encoded for the model, each checked once."""

from __future__ import annotations

import logging
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from gradstore.collect.data.encoding import Encoding, encoders_for
from gradstore.collect.models.encoders import autoencoder_folder
from gradstore.collect.models.folders import PLANNED
from gradstore.collect.pipeline.batches import check_sample, check_sizes
from gradstore.collect.provenance import Provenance
from gradstore.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gradstore.collect.data.sample import Sample
    from gradstore.collect.data.samples import Samples
    from gradstore.collect.events.protocol import EventPlan
    from gradstore.collect.models.encoders import Encoders
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.pipeline.options import Destination
    from gradstore.collect.pipeline.survey import Survey
    from gradstore.store.reader import Store

_log = logging.getLogger("gradstore")


def as_collected_before(samples: Samples, standing: Store | None, into: Destination) -> Samples:
    """The samples as those of the part to fill were read, if it exists."""
    if standing is None or into.append:
        return samples
    reading = Provenance.of(into.part or standing.spec.parts[0]).reading
    found = samples.read_as(reading)
    if found is not samples:
        _log.info(
            "%s was collected by version %d of the rules that read datasets, and so is the rest "
            "of it: see docs/how-to.md, Data",
            standing.location,
            reading,
        )
    return found


def encoded(
    samples: Samples, loader: Loader, found: Survey, device: torch.device
) -> tuple[Samples, Survey, Encoders | None]:
    """Samples that are encoded for the model if they must be; what encodes identifies rows."""
    encoders = encoders_for(samples, loader, found.model, device)
    if encoders is None:
        return samples, found, None
    architecture = {**found.architecture, "encoders": encoders.identity()}
    samples = samples.encoded(Encoding(encoders), encoders.pictures)
    return samples, replace(found, architecture=architecture), encoders


def scanned(
    samples: Samples,
    found: Survey,
    encoders: Encoders | None,
    *,
    loader: Loader,
    plan: EventPlan,
    numbers: Sequence[int],
    device: torch.device,
) -> float:
    """Read, encode and check all samples; return the seconds it took.

    Raises:
        DatasetError: if one cannot be read, does not fit the model, or cannot be flipped.
    """
    start, first = perf_counter(), samples[0]
    samples.scan(lambda sample: check_sample(sample, found.model, first))
    if getattr(plan, "flips", False):
        _require_pictures(first, loader)
        flips = [plan.at(number, samples.ids).flip for number in numbers]
        turned = np.any([one for one in flips if one is not None], axis=0)
        for row in np.flatnonzero(turned) if encoders is not None else ():
            samples.flipped(int(row))  # while the encoders are there: they are asked once
    if encoders is not None:
        encoders.release()
    check_sizes(samples, plan, numbers[0], found.model.to(device), found.objective)
    samples.manifest.content()  # rejects what cannot be stored before the first batch
    return perf_counter() - start


def _require_pictures(first: Sample, loader: Loader) -> None:
    """Raise `DatasetError` if samples are latents, whose flipping is not that of pictures."""
    spec = loader.spec()
    base = None if spec is None else spec.base
    if first.picture is None and autoencoder_folder(loader.folders[0], base) is not None:
        raise DatasetError(
            f"the training run flipped pictures at random, and sample {first.name!r} is an array "
            "of latents: flipped latents are not those of a flipped picture. Give pictures, or use "
            f"{PLANNED}."
        )
