"""Inputs and outputs of a peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.worlds.denoiser import Denoiser, Tensors
from gradstore.collect.devices import choose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.collect import Samples

    Scores: TypeAlias = NDArray[np.float32]


TRACIN: Final = "TracIn"

TRAK: Final = "TRAK"


@dataclass(frozen=True)
class Trial:
    """The inputs of every contestant.

    Attributes:
        folder: folder for stored results; removed after the trial.
        checkpoints: folders, in training order.
        etas: their weights η.
        train: the training samples.
        training: their events at each checkpoint, one slot.
        timesteps: of every query.
        proj_dim: dimension of projections.
        batch: number of training gradients that a peer holds at once.
        few: the same for captum, whose backward passes each run through the whole batch.
    """

    folder: Path
    checkpoints: Sequence[Path]
    etas: Sequence[float]
    train: Samples
    training: Tensors
    timesteps: int
    proj_dim: int
    batch: int
    few: int

    def denoiser(self) -> Denoiser:
        """The model with all checkpoints in memory, so that no timing includes the disk."""
        return Denoiser(self.checkpoints, "l1").to(choose(None))


@dataclass(frozen=True)
class Asked:
    """Some queries.

    Attributes:
        name: name of the batch.
        samples: input of gradstore.
        events: input of the others, one slot per timestep.
    """

    name: str
    samples: Samples
    events: Tensors


@dataclass(frozen=True)
class Kernel:
    """Formula of TRAK scores: `Σ_k w_k φ_k(z')ᵀ (Φ_kᵀΦ_k + λ_k I)⁻¹ φ_k(z)`.

    Attributes:
        lambdas: λ at each checkpoint, for gradients neither scaled nor projected.
        weights: w at each checkpoint.
    """

    lambdas: Sequence[float]
    weights: Sequence[float]


class Contestant(Protocol):
    """A method that computes scores.

    Attributes:
        name: name of the contestant.
        measure: `TracIn` or `TRAK`.
        computes: its method, in words.
        where: where it keeps its data: `disk`, `memory`, or empty.
    """

    name: str
    measure: str
    computes: str
    where: str

    def set_up(self) -> None:
        """Load models and make objects."""

    def collect(self) -> None:
        """Do all work that needs no query."""

    def ask(self, asked: Asked) -> Scores:
        """Influence of every training sample on each query, float32 `[queries, samples]`."""

    def nbytes(self) -> int:
        """Bytes kept between queries, without models and projections."""

    def kernel(self) -> Kernel | None:
        """Weights of its TRAK scores; None under TracIn."""


def gradients(model: Denoiser, events: Tensors) -> Iterator[Tensor]:
    """Whole gradients of each sample's mean loss at the loaded checkpoint, float32 `[P]`."""
    parameters = list(model.parameters())
    device = parameters[0].device
    for row in range(len(events[0])):
        noisy, timestep, label = (tensor[row : row + 1].to(device) for tensor in events)
        loss = model.losses(model(noisy, timestep), label)
        found = torch.autograd.grad(loss[0], parameters)
        yield torch.cat([one.flatten() for one in found])


def on_disk(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def dataset_of(events: Tensors) -> TensorDataset:
    """A dataset of events, on the device."""
    return TensorDataset(*(tensor.to(choose(None)) for tensor in events))
