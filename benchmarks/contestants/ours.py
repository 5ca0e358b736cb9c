"""gradstore and a plain loop as contestants."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from benchmarks.contestants.protocol import TRACIN, TRAK, Asked, Kernel, Trial, gradients, on_disk
from gradstore.collect import EventSpec, ProjectorSpec, SjltProjector, TrakProjector
from gradstore.collect import collect as collect_rows
from gradstore.collect.devices import choose
from indexer import ExactEngine, Features, TracIn, Trak
from indexer.trak_kernel import build_kernel, fitted_by_kernel, kernel_path
from query import collect_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.collect import Projector
    from gradstore.store.reader import Store

    Scores: TypeAlias = NDArray[np.float32]


class Plain:
    """A loop over samples with one backward pass each."""

    name = "plain PyTorch loop"
    measure = TRACIN
    computes = "one backward pass per sample and checkpoint, nothing kept"
    where = ""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def set_up(self) -> None:
        """See `Contestant`."""
        self._model = self._trial.denoiser()

    def collect(self) -> None:
        """See `Contestant`."""

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        trial, model = self._trial, self._model
        total = torch.zeros(len(asked.samples), len(trial.train), device=choose(None))
        for checkpoint, eta in enumerate(trial.etas):
            model.load(checkpoint)
            left = torch.stack(list(gradients(model, asked.events)))
            for row, right in enumerate(gradients(model, trial.training)):
                total[:, row] += eta * (left @ right)
        return total.cpu().numpy()

    def nbytes(self) -> int:
        """See `Contestant`."""
        return 0

    def kernel(self) -> None:
        """See `Contestant`."""


class Gradstore:
    """gradstore: training rows are collected once; a query costs only its own rows.

    Args:
        trial: the inputs.
        projector: `identity`, `sjlt` or `trak`.
        measure: `TracIn` or `TRAK`.
    """

    where = "disk"

    def __init__(self, trial: Trial, projector: str, measure: str = TRACIN) -> None:
        self._trial = trial
        self._path = trial.folder / f"{projector}-{measure}.gradstore"
        self._spec = ProjectorSpec.model_validate(
            {"projector": projector, "proj_dim": trial.proj_dim}
        )
        self.name = f"gradstore, {projector}" + (", measure trak" if measure == TRAK else "")
        self.measure = measure
        dims = "unprojected" if projector == "identity" else f"{trial.proj_dim:,} dimensions"
        kept = "float32" if projector == "identity" else "float16"
        self.computes = f"a row for each timestep, {dims}, {kept} directions; all scores exactly"

    def set_up(self) -> None:
        """See `Contestant`."""
        # The store and its queries share one object, which keeps TRAK's matrices.
        self._projector: Projector | None = None
        if self._spec.projector != "identity":
            made = SjltProjector if self._spec.projector == "sjlt" else TrakProjector
            self._projector = made(self._spec)

    def collect(self) -> None:
        """See `Contestant`."""
        trial = self._trial
        self.store = collect_rows(
            trial.train,
            trial.checkpoints,
            self._path,
            projector=self._projector or self._spec,
            events="replayed",
            metric="none",
            dtype=self._dtype,
        )
        self.engine = ExactEngine(self.store, Features.of(self.store, TracIn()))
        self._trak = None
        if self.measure == TRAK:
            build_kernel(self.store)
            self._trak = fitted_by_kernel(Trak(), self.store)

    @property
    def _dtype(self) -> str:
        return "float32" if self._spec.projector == "identity" else "float16"

    def rows(self, asked: Asked, name: str) -> Store:
        """The rows of queries."""
        return collect_queries(
            self.store,
            asked.samples,
            self._trial.folder / f"{self._path.stem}-{name}.gradstore",
            events=EventSpec(events="planned", timesteps=self._trial.timesteps),
            projector=self._projector,
            dtype=self._dtype,
        )

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        features = self.engine.features.range(self.rows(asked, asked.name))
        if self._trak is not None:
            features = self._trak.prepared(features)
        return np.concatenate([block for _, block in self.engine.scores(features)], axis=1)

    def nbytes(self) -> int:
        """See `Contestant`."""
        return self.store.nbytes + (on_disk(kernel_path(self.store)) if self._trak else 0)

    def kernel(self) -> Kernel | None:
        """See `Contestant`."""
        if self._trak is None:
            return None
        return Kernel(self._trak.lambdas or (), self._trial.etas)
