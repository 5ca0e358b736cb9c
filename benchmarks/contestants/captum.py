"""captum's TracIn as a contestant."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.contestants.peers import peers
from benchmarks.contestants.protocol import TRACIN, Asked, Trial, dataset_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.worlds.denoiser import Denoiser

    Scores: TypeAlias = NDArray[np.float32]


class Captum:
    """captum's `TracInCP`."""

    name = "captum, TracInCP"
    measure = TRACIN
    computes = "recomputes all training gradients for every call, by backward passes; unprojected"
    where = ""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def set_up(self) -> None:
        """See `Contestant`."""
        with peers(vmap=False):
            from captum.influence import TracInCP

            model, etas = self._trial.denoiser(), self._trial.etas
            for parameter in model.parameters():
                # captum calls view() on gradients; a convolution's may be channels-last.
                parameter.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]

            def load(module: Denoiser, checkpoint: int) -> float:
                module.load(checkpoint)
                return etas[checkpoint]

            # `sample_wise_grads_per_batch` would compute all at once, but it supports only
            # convolutions and linear layers, and this model also trains normalisations.
            self._tracin = TracInCP(
                model,
                dataset_of(self._trial.training),
                # Not strings: captum reorders those.
                list(range(len(etas))),
                checkpoints_load_func=load,
                loss_fn=model.losses,
                batch_size=self._trial.few,
            )

    def collect(self) -> None:
        """See `Contestant`."""

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        with peers(vmap=False):
            # Each query is a batch of its own: its timesteps.
            found = self._tracin.influence(DataLoader(dataset_of(asked.events), batch_size=1))
        scores: Scores = found.detach().cpu().numpy()
        return scores

    def nbytes(self) -> int:
        """See `Contestant`."""
        return 0

    def kernel(self) -> None:
        """See `Contestant`."""
