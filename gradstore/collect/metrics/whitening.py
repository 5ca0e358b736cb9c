"""A metric at one checkpoint: factors per layer, then a scale per parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradstore.collect.engines.kernels import KERNELS
from gradstore.collect.models.parameters import num_parameters, trainable
from gradstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from gradstore.collect.engines.streaming import LayerGradients

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIDES = ("outputs", "inputs", "taps")
# What a safetensors file says of a tensor besides its name, and the bounds of its header.
_ENTRY_BYTES: Final = 256


def has_factors(layer: nn.Module) -> bool:
    """Whether a layer's gradient is a sum of outer products that factors can whiten."""
    if type(layer) is nn.Linear:
        return True
    return type(layer) in _CONVOLUTIONS and getattr(layer, "groups", None) == 1


@dataclass(frozen=True)
class Factors:
    """A linear map of one layer's gradient, `outputs · G · (inputs ⊗ taps)`.

    The gradient is a sum over positions of `δ aᵀ`, of the output's gradient δ and the input a. The
    map is applied to δ and a, which costs about as much as one more such sum, however large the
    layer; applied to G it would cost up to seventy times the sum (a 512 → 512 convolution).

    Attributes:
        outputs: float32 `[out, out]`, for δ.
        inputs: float32 `[in, in]`, for a; `[in + 1, in + 1]` if the layer is linear with a bias,
            whose input is the constant 1 appended to a. The bias of a convolution is only mapped by
            `outputs`.
        taps: float32 `[taps, taps]` for the positions of a convolution's kernel; None if it has one
            position, and for a linear layer.
    """

    outputs: Tensor
    inputs: Tensor
    taps: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(one.nbytes for one in (self.outputs, self.inputs, self.taps) if one is not None)

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Sizes of `outputs`, `inputs` and `taps` (1 if None); None if one is not square."""
        sides = [one for one in (self.outputs, self.inputs, self.taps) if one is not None]
        if any(one.ndim != 2 or len(one) != one.shape[1] for one in sides):
            return None
        return len(self.outputs), len(self.inputs), 1 if self.taps is None else len(self.taps)

    def to(self, device: torch.device) -> Factors:
        """The factors on a device."""
        taps = None if self.taps is None else self.taps.to(device)
        return Factors(self.outputs.to(device), self.inputs.to(device), taps)

    def gradients(self, given: LayerGradients) -> dict[str, Tensor]:
        """The mapped gradients of a layer's parameters, by their names in it."""
        layer: Any = given.layer
        inputs, grads = given.inputs.float(), given.grads.float()
        if type(layer) is nn.Linear:
            return self._linear(layer, inputs, grads, given.rows)
        inputs, grads = (
            torch.matmul(factor, one.flatten(2)).reshape(one.shape)
            for factor, one in ((self.inputs, inputs), (self.outputs, grads))
        )
        found = KERNELS[type(layer)](layer, inputs, grads, given.rows)
        if self.taps is not None:
            weight = found["weight"]
            mapped = F.linear(weight.reshape(-1, len(self.taps)), self.taps)
            found["weight"] = mapped.reshape(weight.shape)
        return found

    def _linear(
        self, layer: nn.Linear, inputs: Tensor, grads: Tensor, rows: int
    ) -> dict[str, Tensor]:
        width = layer.in_features
        appended = len(self.inputs) > width
        constant = self.inputs[:, width] if appended else None
        inputs = F.linear(inputs, self.inputs[:, :width], constant)
        inputs = inputs.reshape(rows, -1, len(self.inputs))
        grads = F.linear(grads, self.outputs).reshape(rows, -1, layer.out_features)
        whole = torch.bmm(grads.transpose(1, 2), inputs)
        found = {"weight": whole[:, :, :width].flatten(1)}
        if appended:
            found["bias"] = whole[:, :, width]
        return found


@dataclass(frozen=True)
class Whitening:
    """A metric at one checkpoint, as a linear map of gradients.

    Attributes:
        scale: float32 `[parameters]`; the map multiplies by it, after the factors.
        factors: factors by the layer's name in the model.
    """

    scale: Tensor
    factors: Mapping[str, Factors] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.scale.nbytes + sum(one.nbytes for one in self.factors.values())

    def to(self, device: torch.device) -> Whitening:
        """The map on a device."""
        factors = {name: one.to(device) for name, one in self.factors.items()}
        return Whitening(self.scale.to(device), factors)

    def fits(self, model: nn.Module) -> bool:
        """Whether the map has the shapes that a map of the model's gradients has."""
        sizes = _sizes(model)
        return tuple(self.scale.shape) == (num_parameters(model),) and all(
            name in sizes and one.sizes == sizes[name] for name, one in self.factors.items()
        )

    def works(self) -> bool:
        """Whether all numbers are finite, and some gradient is not mapped to zero."""
        tensors = [self.scale]
        for one in self.factors.values():
            tensors += [side for side in (one.outputs, one.inputs, one.taps) if side is not None]
        return all(bool(one.isfinite().all()) for one in tensors) and bool(self.scale.any())

    def content(self) -> bytes:
        """The map as a safetensors file."""
        from safetensors.torch import save

        tensors = {"scale": self.scale.cpu().contiguous()}
        for name, one in self.factors.items():
            for side in _SIDES:
                tensor = getattr(one, side)
                if tensor is not None:
                    tensors[f"{side}:{name}"] = tensor.cpu().contiguous()
        return save(tensors)

    @classmethod
    def parse(cls, content: bytes, *, where: str) -> Whitening:
        """The map in a safetensors file.

        Raises:
            StoreError: if the file is damaged; `where` names it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(content)
            scale = tensors.pop("scale")
            if any(one.dtype != torch.float32 for one in (scale, *tensors.values())):
                raise ValueError("it is not float32")
            sides: dict[str, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                side, name = key.split(":", 1)
                sides.setdefault(name, {})[side] = tensor
            factors = {name: Factors(**own) for name, own in sides.items()}
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"{where} is damaged: {error}. Restore it from a copy of the store."
            ) from error
        return cls(scale, factors)


def neutral(model: nn.Module, *, layerwise: bool) -> Whitening:
    """A map that costs what a fitted one does, for a trial: it doubles every entry."""
    factors = {
        name: Factors(torch.eye(outputs), torch.eye(inputs), torch.eye(taps) if taps > 1 else None)
        for name, (outputs, inputs, taps) in (_sizes(model) if layerwise else {}).items()
    }
    return Whitening(torch.full((num_parameters(model),), 2.0), factors)


def fitting_nbytes(model: nn.Module, *, layerwise: bool) -> int:
    """Bytes that a fit holds besides the gradients.

    Moments and scale in float32, and of each factor its sum in float64 and its map in float32.
    """
    sizes = [side for sides in _sizes(model).values() for side in sides] if layerwise else []
    decomposing = 5 * 8 * max(sizes, default=0) ** 2  # matrix, vectors, LAPACK's work, product
    return 8 * num_parameters(model) + 12 * sum(side**2 for side in sizes) + decomposing


def most_bytes(model: nn.Module) -> int:
    """Bytes that the file of a model's map may have."""
    numbers, header = num_parameters(model), _ENTRY_BYTES
    for name, sides in _sizes(model).items():
        numbers += sum(side**2 for side in sides)
        header += len(_SIDES) * (_ENTRY_BYTES + 6 * len(name))  # \uXXXX takes 6 bytes
    return 4 * numbers + header


def _sizes(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Sizes of `outputs`, `inputs` and `taps` of each layer that may have factors."""
    mine = set(trainable(model).values())
    found = {}
    for name, layer in model.named_modules():
        if not has_factors(layer) or layer.weight not in mine:
            continue
        one: Any = layer
        if type(layer) is nn.Linear:
            found[name] = one.out_features, one.in_features + (one.bias in mine), 1
        else:
            found[name] = one.out_channels, one.in_channels, prod(one.kernel_size)
    return found
