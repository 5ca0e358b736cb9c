"""dattri's TracIn and TRAK as contestants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader

from benchmarks.contestants.peers import peers
from benchmarks.contestants.protocol import TRACIN, TRAK, Asked, Kernel, Trial, dataset_of
from gradstore.collect.devices import choose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.worlds.denoiser import Denoiser, Tensors

    Scores: TypeAlias = NDArray[np.float32]


# dattri's default projection dimension.
DATTRI_DIM: Final = 512


class DattriTracIn:
    """dattri's `TracInAttributor`.

    Args:
        trial: the inputs.
        proj_dim: dimension of its projection; None for no projection.
    """

    measure = TRACIN
    where = ""

    def __init__(self, trial: Trial, proj_dim: int | None = None) -> None:
        self._trial = trial
        self._projection = _projection(proj_dim)
        self.name = "dattri, TracIn" + (f" in {proj_dim} dimensions" if proj_dim else "")
        dims = f"a normal matrix to {proj_dim}" if proj_dim else "unprojected"
        self.computes = f"recomputes all training gradients for every call, by vmap; {dims}"

    def set_up(self) -> None:
        """See `Contestant`."""
        with peers():
            from dattri.algorithm.tracin import TracInAttributor

            self._attributor = TracInAttributor(
                _task(self._trial),
                weight_list=torch.tensor(self._trial.etas),
                normalized_grad=False,
                projector_kwargs=self._projection,
                device=str(choose(None)),
            )
        # All attributors share the dictionary of defaults, and a later one changes it.
        self._attributor.projector_kwargs = dict(self._projection)

    def collect(self) -> None:
        """See `Contestant`."""

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        # Large batches: each batch of training samples recomputes all query gradients.
        with peers():
            found = self._attributor.attribute(
                DataLoader(dataset_of(self._trial.training), batch_size=self._trial.batch),
                DataLoader(dataset_of(asked.events), batch_size=len(asked.samples)),
            )
        scores: Scores = found.T.contiguous().numpy()
        return scores

    def nbytes(self) -> int:
        """See `Contestant`."""
        return 0

    def kernel(self) -> None:
        """See `Contestant`."""


class DattriTrak:
    """dattri's `TRAKAttributor`, with the loss as output.

    Args:
        trial: the inputs.
        ridge: λ, for gradients neither scaled nor projected.
    """

    name = "dattri, TRAK"
    measure = TRAK
    where = "memory"

    def __init__(self, trial: Trial, ridge: float) -> None:
        self._trial, self._ridge = trial, ridge
        self._projection = _projection(trial.proj_dim)
        self.computes = (
            f"a normal matrix to {trial.proj_dim:,} dimensions, float32; the kernel of training "
            "samples is cached"
        )

    def set_up(self) -> None:
        """See `Contestant`."""
        with peers():
            from dattri.algorithm.trak import TRAKAttributor

            task = _task(self._trial)
            count = sum(one.numel() for one in task.get_model().parameters())
            self._attributor = TRAKAttributor(
                task,
                # The output is the loss, with derivative 1; dattri derives 1 from this function.
                correct_probability_func=lambda _, data: data[0].sum() * 0.0,
                projector_kwargs=self._projection,
                device=str(choose(None)),
                # dattri divides gradients by √parameters, and its projection preserves lengths.
                regularization=self._ridge / count,
            )
        self._attributor.projector_kwargs = dict(self._projection)

    def collect(self) -> None:
        """See `Contestant`."""
        # Large batches: the matrix is redrawn for each.
        with peers():
            self._attributor.cache(
                DataLoader(dataset_of(self._trial.training), batch_size=self._trial.batch)
            )

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        with peers():
            found = self._attributor.attribute(
                DataLoader(dataset_of(asked.events), batch_size=len(asked.samples))
            )
        scores: Scores = found.T.contiguous().cpu().numpy()
        return scores

    def nbytes(self) -> int:
        """See `Contestant`."""
        return sum(one.nbytes for one in self._attributor.inv_XTX_XT_list)

    def kernel(self) -> Kernel:
        """See `Contestant`."""
        count = len(self._trial.etas)
        return Kernel([self._ridge] * count, [1 / count] * count)


def _task(trial: Trial) -> Any:
    """The model and its loss as dattri's task."""
    from dattri.task import AttributionTask

    model = trial.denoiser()

    def loss(parameters: dict[str, Tensor], data: Tensors) -> Tensor:
        noisy, timestep, label = (tensor[None] for tensor in data)
        predicted = functional_call(model, parameters, (noisy, timestep))
        return model.losses(predicted, label)[0]

    def load(module: Denoiser, checkpoint: int) -> Denoiser:
        module.load(checkpoint)
        return module

    return AttributionTask(
        loss_func=loss,
        model=model,
        checkpoints=list(range(len(trial.etas))),
        checkpoints_load_func=load,
    )


def _projection(proj_dim: int | None) -> dict[str, Any]:
    """All settings of dattri's projection."""
    return {
        # None would mean a projection to 512 dimensions.
        "proj_type": "normal" if proj_dim else "identity",
        "proj_dim": proj_dim or DATTRI_DIM,
        "proj_max_batch_size": 32,
        "proj_seed": 0,
        "device": str(choose(None)),
    }
