"""Selects and orders the differentiated parameters of a model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The differentiated parameters by name, in the order that defines a gradient.

    A parameter that modules share appears once, under its first name.
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def num_parameters(model: nn.Module) -> int:
    """Length of a gradient."""
    return sum(p.numel() for p in trainable(model).values())


def select(model: nn.Module, pattern: str) -> None:
    """Freeze every parameter whose name contains no match of a regular expression.

    Raises:
        ConfigError: if it is not a regular expression, or no trainable parameter is left.
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
            f"parameters, such as {shown}. Give a regular expression that matches part of a name."
        )
