"""TRAK's own package as a contestant."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

from benchmarks.contestants.peers import peers
from benchmarks.contestants.protocol import TRAK, Asked, Kernel, Trial, on_disk
from gradstore.collect.devices import choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.worlds.denoiser import Tensors

    Scores: TypeAlias = NDArray[np.float32]


class Loss(AbstractModelOutput):  # type: ignore[misc]
    """The loss as the output function of `TRAKer`, with the same gradients as TracIn."""

    def __init__(self) -> None:
        pass

    def get_output(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        *event: Tensor,
    ) -> Tensor:
        """Mean loss of one sample's slots: noisy, timestep and label, `[slots, …]` each."""
        noisy, timestep, label = event
        predicted = functional_call(model, (weights, buffers), (noisy, timestep)).sample
        loss: Tensor = (predicted - label).abs().mean()
        return loss

    def get_out_to_loss_grad(self, *given: Any) -> Tensor:
        """Ones `[samples, 1]`, because the output is the loss; the last argument is the batch."""
        noisy = given[-1][0]
        return torch.ones(len(noisy), 1, device=noisy.device)


class Traker:
    """TRAK's own `TRAKer`, with the loss as output.

    Args:
        trial: the inputs.
        ridge: λ, for gradients neither scaled nor projected.
    """

    name = "TRAKer"
    measure = TRAK
    where = "disk"

    def __init__(self, trial: Trial, ridge: float) -> None:
        self._trial, self._ridge = trial, ridge
        self._folder = trial.folder / "traker"
        self.computes = (
            f"a normal matrix to {trial.proj_dim:,} dimensions, float32; each checkpoint's kernel "
            "divided by the mean size of its entries"
        )

    def set_up(self) -> None:
        """See `Contestant`."""
        trial = self._trial
        self._model = trial.denoiser()
        count = sum(one.numel() for one in self._model.parameters())
        # TRAKer divides gradients by √parameters, but projections not by √dimensions.
        self._scale = trial.proj_dim / count
        self._traker = TRAKer(
            model=self._model.unet,
            task=Loss(),
            train_set_size=len(trial.train),
            save_dir=str(self._folder),
            device=str(choose(None)),
            proj_dim=trial.proj_dim,
            # Half precision has no fast product on a CPU and is too coarse for the kernel.
            use_half_precision=False,
            lambda_reg=self._ridge * self._scale,
            logging_level=logging.ERROR,
        )
        self._kernel: Kernel | None = None

    def collect(self) -> None:
        """See `Contestant`."""
        with peers():
            for checkpoint, weights in enumerate(self._model.weights):
                self._traker.load_checkpoint(weights, model_id=checkpoint)
                # Large batches: the matrix is redrawn for each.
                for start in range(0, len(self._trial.train), self._trial.batch):
                    batch = _at(self._trial.training, checkpoint, start, self._trial.batch)
                    self._traker.featurize(batch, num_samples=len(batch[0]))
            self._traker.finalize_features()

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        count = len(asked.samples)
        with peers():
            for checkpoint, weights in enumerate(self._model.weights):
                self._traker.start_scoring_checkpoint(asked.name, weights, checkpoint, count)
                self._traker.score(_at(asked.events, checkpoint, 0, count), num_samples=count)
            found = self._traker.finalize_scores(asked.name)
        return np.array(found.T)

    def nbytes(self) -> int:
        """See `Contestant`. Excludes training gradients, which scoring does not need."""
        files = [self._folder / f"{k}" / "grads.mmap" for k in range(len(self._trial.etas))]
        return on_disk(self._folder) - sum(file.stat().st_size for file in files)

    def kernel(self) -> Kernel:
        """See `Contestant`."""
        count, weights = len(self._trial.etas), []
        for checkpoint in range(count):
            rows = np.load(self._folder / f"{checkpoint}" / "grads.mmap").astype(np.float64)
            gram = rows.T @ rows
            gram[np.diag_indices(len(gram))] += self._ridge * self._scale
            weights.append(1 / (count * float(np.abs(np.linalg.inv(gram)).mean())))
        return Kernel([self._ridge] * count, weights)


def _at(events: Tensors, checkpoint: int, start: int, count: int) -> list[Tensor]:
    """A batch of one checkpoint's events, each `[samples, slots, …]`."""
    return [tensor[start : start + count, checkpoint].to(choose(None)) for tensor in events]
