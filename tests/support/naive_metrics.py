"""Metrics by definition, in float64, one event and one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gradstore.collect.events.noise import noise
from gradstore.collect.events.protocol import Events

DAMPING = 0.1


@dataclass
class Layer:
    """What a layer sees of one event."""

    inputs: Tensor
    grads: Tensor


@dataclass
class Event:
    """The gradients of one event, float64 by parameter name, and what its layers saw."""

    gradients: dict[str, Tensor]
    layers: dict[str, Layer] = field(default_factory=dict)


def differentiated(
    model: nn.Module,
    objective: Any,
    image: Tensor,
    events: Events,
    conditions: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[Event]:
    """Each event of one sample, `events` of shape [1, slots], by an ordinary backward pass."""
    model = deepcopy(model).double()
    found = []
    for timestep, keys in zip(events.timestep[0], events.key[0], strict=True):
        seen: dict[str, Any] = {}
        handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):

                def keep(
                    _: Any, given: Any, output: Tensor, name: str = name, seen: Any = seen
                ) -> None:
                    output.retain_grad()
                    seen[name] = given[0], output

                handles.append(layer.register_forward_hook(keep))
        model.zero_grad()
        drawn = torch.from_numpy(np.stack([noise(int(key), image.shape) for key in keys])).double()
        times = torch.full((len(drawn),), int(timestep))
        images = image.double().expand(len(drawn), *image.shape)
        given = {
            name: one.expand(len(drawn), *one.shape)
            if not one.is_floating_point()
            else one.double().expand(len(drawn), *one.shape)
            for name, one in conditions.items()
        }
        objective.losses(model, images, times, drawn, given).mean().backward()
        for handle in handles:
            handle.remove()
        found.append(
            Event(
                {
                    name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
                    for name, one in model.named_parameters()
                },
                {
                    name: Layer(inputs.detach(), output.grad)
                    for name, (inputs, output) in seen.items()
                },
            )
        )
    return found


def without_gradient(events: list[Event]) -> set[str]:
    """Parameters that the loss does not depend on, such as the biases of an attention's keys.

    In float64 their gradients are 1e-16 of the others', in float32 up to 2e-8.
    """
    sizes = {
        name: torch.stack([event.gradients[name] for event in events]).square().mean().sqrt()
        for name in events[0].gradients
    }
    return {name for name, size in sizes.items() if size < 1e-12 * max(sizes.values())}


def power(matrix: Tensor, exponent: float = -0.5) -> Tensor:
    """(M + damping · mean eigenvalue)^exponent."""
    size = len(matrix)
    damped = matrix + DAMPING * matrix.trace() / size * torch.eye(size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(damped)
    found: Tensor = vectors @ torch.diag(values**exponent) @ vectors.T
    return found


def layer_matrices(layer: Any, name: str, events: list[Event]) -> list[Tensor]:
    """S and A of a linear layer; S, C and T of a convolution."""
    inputs, patches, outputs = [], [], []
    for event in events:
        seen = event.layers[name]
        if isinstance(layer, nn.Linear):
            rows = seen.inputs.flatten(0, -2)
            inputs.append(torch.cat([rows, torch.ones(len(rows), 1)], 1))
            outputs.append(seen.grads.flatten(0, -2))
        else:
            inputs.append(seen.inputs.flatten(2).transpose(1, 2).flatten(0, 1))
            outputs.append(seen.grads.flatten(2).transpose(1, 2).flatten(0, 1))
            unfolded = F.unfold(seen.inputs, layer.kernel_size, padding=layer.padding,
                                stride=layer.stride)  # fmt: skip
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            patches.append(unfolded.reshape(layer.in_channels, taps, -1))
    every = torch.cat(inputs)
    a = every.T @ every / len(every)
    s = torch.stack([one.T @ one for one in outputs]).mean(0)
    if not patches or patches[0].shape[1] == 1:
        return [s, a]
    t = torch.stack([torch.einsum("cil,cjl->ij", one, one) for one in patches]).sum(0)
    return [s, a, t / t.diagonal().mean()]


def mapped(layer: Any, name: str, gradients: dict[str, Tensor], maps: list[Tensor]) -> None:
    """Map the gradients of a layer's weight and bias, in place."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    if isinstance(layer, nn.Linear):
        both = torch.cat([gradients[weight], gradients[bias][:, None]], 1)
        both = maps[0] @ both @ maps[1].T
        gradients[weight], gradients[bias] = both[:, :-1], both[:, -1]
        return
    whole = torch.einsum("po,qi,oikl->pqkl", maps[0], maps[1], gradients[weight])
    if len(maps) > 2:
        flat = whole.flatten(2) @ maps[2].T
        whole = flat.reshape(whole.shape)
    gradients[weight] = whole
    gradients[bias] = maps[0] @ gradients[bias]
