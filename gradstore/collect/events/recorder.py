"""Records a training run's events, so that collecting can replay them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gradstore.collect.events.noise import noise, noise_key
from gradstore.collect.events.replayed import flips_of, save_events
from gradstore.collect.models.record import TrainingRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Recorder:
    """Draws the timesteps and noises of a training run, and saves them with its checkpoints.

    An event is a pure function of seed, sample and epoch. Drawing therefore needs no state, and a
    replayed row has exactly the noise of training. In your own training loop::

        recorder = Recorder(seed=0, num_train_timesteps=1000)
        timesteps, noise = recorder.draw(ids, epoch, images.shape[1:])
        ...
        pipeline.save_pretrained(folder)
        recorder.save(folder, ids=all_ids, epoch=epoch, learning_rate_sum=..., loss="l2")

    A run that flips pictures at random (`--random_flip` of diffusers' scripts) lets the recorder
    choose which, before they are encoded::

        flips = torch.from_numpy(recorder.flips(ids, epoch))
        images[flips] = images[flips].flip(-1)

    Args:
        seed: seed of the run.
        num_train_timesteps: timesteps are uniform in 0 … num_train_timesteps − 1.
        flip: whether each sample is flipped from left to right in half of the epochs.

    Examples:
        >>> import gradstore as gs
        >>> recorder = gs.Recorder(seed=0, num_train_timesteps=1000)
        >>> timesteps, noise = recorder.draw(["cat-1", "dog-1"], epoch=1, shape=(3, 32, 32))
        >>> timesteps.shape, noise.shape
        ((2,), (2, 3, 32, 32))
    """

    def __init__(self, seed: int, num_train_timesteps: int, *, flip: bool = False) -> None:
        self._seed = seed
        self._flip = flip
        self._num_train_timesteps = num_train_timesteps

    def event(self, name: str, epoch: int) -> tuple[int, int]:
        """Timestep and noise key of a sample in an epoch (counted from 1)."""
        timestep = noise_key("timestep", self._seed, name, epoch)
        key = noise_key("train", self._seed, name, epoch)
        return timestep * self._num_train_timesteps >> 64, key

    def draw(
        self, ids: Sequence[str], epoch: int, shape: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Timesteps `[samples]` and noises `[samples, *shape]` of some samples in an epoch."""
        drawn = [self.event(name, epoch) for name in ids]
        return (
            np.array([timestep for timestep, _ in drawn], dtype=np.int64),
            np.stack([noise(key, shape) for _, key in drawn]),
        )

    def flips(self, ids: Sequence[str], epoch: int) -> NDArray[np.bool_]:
        """Which samples to flip from left to right in an epoch, bool `[samples]`."""
        found = flips_of([self.event(name, epoch)[1] for name in ids])
        return found if self._flip else np.zeros_like(found)

    def save(
        self,
        folder: Path,
        *,
        ids: Sequence[str],
        epoch: int,
        learning_rate_sum: float,
        loss: Literal["l1", "l2"] | None = None,
        optimizer: Any = None,
        model: Any = None,
    ) -> None:
        """Write the events of an epoch and the training record into a checkpoint's folder.

        Args:
            folder: the checkpoint, already saved.
            ids: all samples of the training set.
            epoch: the epoch that ends with this checkpoint.
            learning_rate_sum: sum of the learning rate over all epochs so far.
            loss: `l1` or `l2`; None for a custom objective.
            optimizer: the `torch.optim.Adam` (or `AdamW`) that trains the model. Its second moments
                are saved, for `--metric adam`.
            model: the model that it trains.
        """
        drawn = [self.event(name, epoch) for name in ids]
        timesteps, keys = [t for t, _ in drawn], [key for _, key in drawn]
        save_events(folder, ids, timesteps, keys, flips=self._flip)
        TrainingRecord(epoch=epoch, learning_rate_sum=learning_rate_sum, loss=loss).save(folder)
        if optimizer is not None:
            from gradstore.collect.models.optimizer import save_moments

            save_moments(folder, optimizer, model)
