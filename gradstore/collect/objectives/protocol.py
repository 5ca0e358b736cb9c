"""The protocol of an objective: the losses of a batch of events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gradstore.store.format.spec import Identity


@dataclass(frozen=True)
class Batch:
    """Events ready for the model.

    A row is the gradient of the mean loss over `draws` noises at one timestep of one sample.

    Attributes:
        inputs: clean samples, `[rows, *shape]`.
        timesteps: int64 `[rows]`.
        noise: standard normal, `[rows, draws, *shape]`.
        conditions: further inputs of the model by keyword, each `[rows, …]`.
    """

    inputs: Tensor
    timesteps: Tensor
    noise: Tensor
    conditions: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.inputs)


class Objective(Protocol):
    """The loss to differentiate. It must not mix samples: each loss depends on its own sample.

    An objective whose noise level is σ has an attribute `sigmas`, σ by timestep, float
    `[num_train_timesteps]`, which stores record.
    """

    num_train_timesteps: int

    def identity(self) -> Identity:
        """The identity of the objective, as JSON."""

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """Loss of each event.

        Args:
            model: the model, called as `model(noisy, timesteps, **conditions)`, or by
                `calling.predict`, which knows what the classes of diffusers want.
            inputs: clean samples `[events, *shape]`.
            timesteps: int64 `[events]`.
            noise: standard normal `[events, *shape]`.
            conditions: further inputs by keyword, `[events, …]` each.

        Returns:
            float `[events]`.
        """
