"""Reads a job's samples: as its store did before, encoded for the model, each checked once."""

from __future__ import annotations

import logging
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from gradstore.collect.data.encoding import Encoding, encoders_for
from gradstore.collect.pipeline.batches import check_sample, check_sizes
from gradstore.collect.provenance import Provenance

if TYPE_CHECKING:
    import torch

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
    plan: EventPlan,
    number: int,
    device: torch.device,
) -> float:
    """Read, encode and check all samples; return the seconds it took."""
    start, first = perf_counter(), samples[0]
    samples.scan(lambda sample: check_sample(sample, found.model, first))
    if encoders is not None:
        encoders.release()
    check_sizes(samples, plan, number, found.model.to(device), found.objective)
    samples.manifest.content()  # rejects what cannot be stored before the first batch
    return perf_counter() - start
