"""The protocol of a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import torch
    from torch import nn

    from gradstore.collect.engines import EngineMaker
    from gradstore.collect.metrics.whitening import Whitening
    from gradstore.collect.objectives.protocol import Batch, Objective
    from gradstore.store.format.spec import Identity


@dataclass(frozen=True)
class Fitting:
    """What a metric is fitted to: a checkpoint and a sample of training events.

    Attributes:
        folder: the checkpoint's folder.
        model: its model, on the device of the gradients.
        objective: the loss.
        engine: makes the engine of per-sample gradients.
        batches: makes the batches of the sample of events, anew at each call, each event a row
            with one noise.
        device: device of the gradients.
    """

    folder: Path
    model: nn.Module
    objective: Objective
    engine: EngineMaker
    batches: Callable[[], Iterable[Batch]]
    device: torch.device


class Metric(Protocol):
    """A linear map of gradients, applied to training and query rows alike before projection."""

    name: str

    passes: int
    """Number of passes over the sample of training events that a fit takes; 0 if none."""

    layerwise: bool
    """Whether it maps inputs and output gradients of layers, which the streaming engine has."""

    def identity(self) -> Identity:
        """The identity of the metric, as JSON: all that determines it besides the sample."""

    def source(self, folder: Path) -> str | None:
        """Digest of what the metric reads of a checkpoint besides its weights; None if nothing.

        Raises:
            CheckpointError: if it is missing or does not fit. Called before long work.
        """

    def fit(self, fitting: Fitting) -> Whitening:
        """The metric at a checkpoint."""
