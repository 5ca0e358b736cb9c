"""Which parameters of a model are differentiated, and in what order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are differentiated, by name, in the order that defines a gradient.

    A parameter that modules share is there once, by its first name.
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def num_parameters(model: nn.Module) -> int:
    """Length of a gradient."""
    return sum(p.numel() for p in trainable(model).values())


def select(model: nn.Module, pattern: str) -> None:
    """Freeze every parameter in whose name a regular expression is not found.

    Raises:
        ConfigError: if it is no regular expression, or no trainable parameter is left.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--params {pattern!r} is not a regular expression: {error}.") from error
    before = list(trainable(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and wanted.search(name) is not None)
    if not trainable(model):
        shown = ", ".join(before[:3])
        raise ConfigError(
            f"--params {pattern!r} is found in none of the model's {len(before)} trainable "
            f"parameters, such as {shown}. Give a regular expression that is part of their names."
        )
