"""Metrics: linear maps applied to gradients before they are projected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.collect.metrics.adam import Adam
from gradstore.collect.metrics.fisher import Fisher
from gradstore.collect.metrics.kronecker import Ekfac, Kfac
from gradstore.collect.metrics.protocol import Fitting, Metric
from gradstore.collect.metrics.whitening import Factors, Whitening

if TYPE_CHECKING:
    from gradstore.store.format.spec import MetricSpec

__all__ = [
    "Adam",
    "Ekfac",
    "Factors",
    "Fisher",
    "Fitting",
    "Kfac",
    "Metric",
    "Whitening",
    "from_spec",
]


def from_spec(spec: MetricSpec) -> Metric | None:
    """The metric that a specification describes; None for `none`."""
    if spec.metric == "none":
        return None
    if spec.metric == "adam":
        return Adam()
    kinds: dict[str, type[Fisher] | type[Kfac]] = {"fisher": Fisher, "kfac": Kfac, "ekfac": Ekfac}
    return kinds[spec.metric](spec.damping)
