"""Wrappers of objectives: autocast, frozen weights in bfloat16, and compilation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from gradstore.collect.objectives.calling import stands_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gradstore.collect.objectives.protocol import Objective
    from gradstore.store.format.spec import Identity


class _Wrapper(ABC):
    """An objective that calls its model in another way; a base class."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.num_train_timesteps = objective.num_train_timesteps
        self.sigmas = sigmas(objective)

    def identity(self) -> Identity:
        """The objective's identity: how a model is called is recorded elsewhere."""
        return self._objective.identity()

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """See `Objective.losses`."""
        called = self._called(model, inputs)
        return self._objective.losses(called, inputs, timesteps, noise, conditions)

    @abstractmethod
    def _called(self, model: Callable[..., Any], inputs: Tensor) -> Callable[..., Any]:
        """What the objective calls in place of the model."""


class Autocast(_Wrapper):
    """An objective whose forward pass runs in bfloat16 where torch's autocast allows it.

    Mixed precision as in training: torch's autocast sets the dtypes of weights, activations between
    layers and gradients; the loss is float32.
    """

    precision: Final = "bfloat16"

    def _called(self, model: Callable[..., Any], inputs: Tensor) -> Callable[..., Any]:
        def cast(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(inputs.device.type, torch.bfloat16):
                return model(*args, **kwargs)

        return stands_for(cast, model)


class InBfloat16(_Wrapper):
    """An objective of models whose frozen weights are bfloat16.

    The noisy sample and the conditions are rounded to bfloat16, timesteps are not; the loss is
    float32.
    """

    precision: Final = "bfloat16"

    def _called(self, model: Callable[..., Any], inputs: Tensor) -> Callable[..., Any]:  # noqa: ARG002
        def rounded(noisy: Tensor, *args: Any, **kwargs: Any) -> Any:
            told = {name: one for name, one in kwargs.items() if name == "timestep"}
            return model(_rounded(noisy), *args, **{**_rounded(kwargs), **told})

        return stands_for(rounded, model)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(torch.bfloat16) if floating else value


def sigmas(objective: Objective) -> Tensor | None:
    """The noise levels σ of an objective by timestep; None if it has none."""
    return getattr(objective, "sigmas", None)


def precision(objective: Objective) -> str:
    """The arithmetic of an objective: `float32`, or `bfloat16` in part of the model."""
    return getattr(objective, "precision", "float32")


class Compiled(_Wrapper):
    """An objective that compiles its model by `torch.compile`, if the engine passes a module."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.precision = precision(objective)
        self._models: dict[nn.Module, Callable[..., Any]] = {}

    def _called(self, model: Callable[..., Any], inputs: Tensor) -> Callable[..., Any]:  # noqa: ARG002
        if not isinstance(model, nn.Module):
            return model
        if model not in self._models:
            self._models = {model: torch.compile(model)}
        return self._models[model]
