"""A diffusion model and its events in other libraries' form: a module, batches, a loss.

Most data attribution libraries give every checkpoint the same batch, but a sample has different
events at each checkpoint. A batch therefore holds all events, and each checkpoint picks its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from gradstore.collect.events.noise import noise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect import EventPlan

# Noisy samples, timesteps, and noise as the label, each `[samples, checkpoints, slots, …]`.
Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Denoiser(nn.Module):
    """Predicts the noises of all of a sample's events at the loaded checkpoint.

    Args:
        folders: the checkpoints; their weights are read once and kept.
        loss: `l1` or `l2`.

    Attributes:
        unet: the model.
        weights: its state at each checkpoint.
        checkpoint: position of the loaded checkpoint.
    """

    def __init__(self, folders: Sequence[Path], loss: str) -> None:
        super().__init__()
        saved = [UNet2DModel.from_pretrained(folder / "unet") for folder in folders]
        self.unet: Any = saved[-1].eval()
        # Copies: loading overwrites the model's own tensors.
        self.weights = [
            {name: tensor.clone() for name, tensor in one.state_dict().items()} for one in saved
        ]
        self.checkpoint = -1
        self._loss = loss

    def load(self, checkpoint: int) -> None:
        """Switch to the weights and the events of a checkpoint."""
        self.unet.load_state_dict(self.weights[checkpoint])
        self.checkpoint = checkpoint

    def forward(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Predicted noises `[samples, slots, …]` of a batch of `Tensors`."""
        noisy, timestep = noisy[:, self.checkpoint], timestep[:, self.checkpoint]
        predicted: Tensor = self.unet(noisy.flatten(0, 1), timestep.flatten()).sample
        return predicted.reshape(noisy.shape)

    def losses(self, predicted: Tensor, label: Tensor) -> Tensor:
        """Loss of each sample, `[samples]`.

        The loss contains the mean over slots: its gradient is the mean of the rows' gradients.
        """
        error = predicted - label[:, self.checkpoint]
        distance = error.abs() if self._loss == "l1" else error.square()
        return distance.flatten(1).mean(1)


def event_tensors(
    images: Tensor, plan: EventPlan, ids: Sequence[str], folders: Sequence[Path]
) -> Tensors:
    """A plan's events of some samples at every checkpoint, one noise to a slot.

    diffusers adds the noise, so the comparison covers gradstore's own noise arithmetic as well.
    """
    scheduler = DDIMScheduler.from_pretrained(folders[0] / "scheduler")
    inputs, timesteps, labels = [], [], []
    for checkpoint in range(len(folders)):
        events = plan.at(checkpoint, ids)
        timestep = torch.from_numpy(events.timestep)
        drawn = np.stack([noise(key, images.shape[1:]) for key in events.key.reshape(-1).tolist()])
        label = torch.from_numpy(drawn).reshape(*timestep.shape, *images.shape[1:])
        clean = images[:, None].expand_as(label)
        noisy = scheduler.add_noise(
            clean.flatten(0, 1), label.flatten(0, 1), timestep.flatten()
        ).reshape(label.shape)
        inputs.append(noisy)
        timesteps.append(timestep)
        labels.append(label)
    return torch.stack(inputs, 1), torch.stack(timesteps, 1), torch.stack(labels, 1)
