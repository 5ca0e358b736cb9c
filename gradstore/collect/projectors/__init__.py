"""Projectors: map full gradients to directions, behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.collect.projectors.identity import IdentityProjector
from gradstore.collect.projectors.protocol import Projection, Projector
from gradstore.collect.projectors.sjlt import SjltProjector
from gradstore.collect.projectors.trak import TrakProjector

if TYPE_CHECKING:
    from gradstore.store.format.spec import ProjectorSpec

__all__ = [
    "IdentityProjector",
    "Projection",
    "Projector",
    "SjltProjector",
    "TrakProjector",
    "from_spec",
]


def from_spec(spec: ProjectorSpec) -> Projector:
    """The projector that a spec describes."""
    if spec.projector == "identity":
        return IdentityProjector()
    if spec.projector == "sjlt":
        return SjltProjector(spec)
    return TrakProjector(spec)
