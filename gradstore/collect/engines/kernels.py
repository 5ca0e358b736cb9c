"""Per-row weight gradients of single layers, from a layer's input and its output's gradient.

The gradient of a layer's weight is a sum over positions (pixels, tokens, noises of one row). For
all rows together it is one product. Here the rows are folded into the channels, so that torch's
grouped kernels keep each row's sum separate at nearly the same cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Kernel: TypeAlias = Callable[[Any, Tensor, Tensor, int], dict[str, Tensor]]
"""Takes a layer, its input `[rows × m, …]`, its output's gradient and the number of rows; returns
the gradient of each of the layer's own parameters by its name there, `[rows, numel]`."""


# A convolution with at least this many channels per position is differentiated by a product. There
# the product takes as long as the grouped kernel with AVX-512, and 0.7 of it with AVX2.
_FEW = 4


def _fold(tensor: Tensor, rows: int) -> Tensor:
    """Reshape `[rows × m, channels, …]` to `[m, rows × channels, …]`."""
    each = tensor.reshape(rows, -1, *tensor.shape[1:])
    return each.transpose(0, 1).reshape(each.shape[1], -1, *tensor.shape[2:])


def _linear(layer: nn.Linear, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    inputs = inputs.reshape(rows, -1, layer.in_features)
    grads = grads.reshape(rows, -1, layer.out_features)
    found = {"weight": torch.bmm(grads.transpose(1, 2), inputs).flatten(1)}
    if layer.bias is not None:
        found["bias"] = grads.sum(1)
    return found


def _convolution(layer: Any, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    seen = _seen(layer, inputs, grads, rows)
    if seen is not None:
        grads = grads.reshape(rows, -1, *grads.shape[1:]).transpose(1, 2).flatten(2)
        out = {"weight": torch.bmm(grads, seen).flatten(1)}
        if layer.bias is not None:
            out["bias"] = grads.sum(2)
        return out
    folded = _fold(grads, rows)
    out = {"weight": _convolved(layer, _fold(inputs, rows), folded, rows)}
    if layer.bias is not None:
        out["bias"] = folded.transpose(0, 1).flatten(1).sum(1).reshape(rows, -1)
    return out


def _transposed(layer: Any, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    # ⟨δ, convᵀ(x)⟩ = ⟨conv(δ), x⟩, so input and gradient change places in the weight's gradient.
    folded = _fold(grads, rows)
    out = {"weight": _convolved(layer, folded, _fold(inputs, rows), rows)}
    if layer.bias is not None:
        out["bias"] = folded.transpose(0, 1).flatten(1).sum(1).reshape(rows, -1)
    return out


def _convolved(layer: Any, inputs: Tensor, grads: Tensor, rows: int) -> Tensor:
    """Gradient of a convolution's weight `[rows, numel]`, from a folded input and gradient."""
    weight: Tensor = layer.weight
    _, found, _ = torch.ops.aten.convolution_backward(
        grads,
        inputs,
        # Only the shape matters. Untouched, it takes no memory; an expanded one would be copied.
        weight.new_empty(rows * weight.shape[0], *weight.shape[1:]),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,  # not transposed
        [0] * len(layer.stride),
        rows * layer.groups,
        [False, True, False],  # only the weight's gradient
    )
    kept: Tensor = found.reshape(rows, -1)
    return kept


def _seen(layer: Any, inputs: Tensor, grads: Tensor, rows: int) -> Tensor | None:
    """What each output position of a convolution sees, `[rows, positions, weight[0].numel()]`.

    None where the grouped kernel is faster than a product with this matrix. The kernel reorders
    the gradients that it writes, which costs more than the product where positions are few.
    """
    if layer.groups > 1:
        return None
    channels, one = len(grads[0]), layer.weight[0]
    positions = grads.numel() // (rows * channels)
    if one.numel() == len(one) and set(layer.stride) == {1} and set(layer.padding) == {0}:
        seen = inputs
    elif isinstance(layer, nn.Conv2d) and positions * _FEW <= channels:
        padding: Any = layer.padding
        seen = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    else:
        return None
    seen = seen.reshape(rows, -1, one.numel(), seen[0, 0].numel())
    return seen.transpose(2, 3).flatten(1, 2)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    # The backward kernel of torch 2.13 crashes if only the weight's gradient is requested.
    normal = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    shape = (rows, -1, layer.num_channels, inputs[0, 0].numel())
    return {
        "weight": (grads * normal).reshape(shape).sum((1, 3)),
        "bias": grads.reshape(shape).sum((1, 3)),
    }


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    size = layer.weight.numel()
    found = {"weight": (grads * normal).reshape(rows, -1, size).sum(1)}
    if layer.bias is not None:
        found["bias"] = grads.reshape(rows, -1, size).sum(1)
    return found


def _rms_norm(layer: Any, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    # torch's normalises over the axes of its weight, diffusers' over the last.
    shape = layer.weight.shape if type(layer) is nn.RMSNorm else inputs.shape[-1:]
    normal = F.rms_norm(inputs, shape, eps=layer.eps)
    size = layer.weight.numel()
    found = {"weight": (grads * normal).reshape(rows, -1, size).sum(1)}
    if getattr(layer, "bias", None) is not None:
        found["bias"] = grads.reshape(rows, -1, size).sum(1)
    return found


def _embedding(layer: nn.Embedding, inputs: Tensor, grads: Tensor, rows: int) -> dict[str, Tensor]:
    size = layer.num_embeddings
    offset = size * torch.arange(rows, device=inputs.device)
    entries = (inputs.reshape(rows, -1) + offset[:, None]).flatten()
    found = grads.new_zeros(rows * size, layer.embedding_dim)
    found.index_add_(0, entries, grads.reshape(-1, layer.embedding_dim))
    found = found.reshape(rows, size, -1)
    if layer.padding_idx is not None:
        found[:, layer.padding_idx] = 0
    return {"weight": found.flatten(1)}


KERNELS: Final[Mapping[type[nn.Module], Kernel]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed,
    nn.ConvTranspose2d: _transposed,
    nn.ConvTranspose3d: _transposed,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    RMSNorm: _rms_norm,
    nn.Embedding: _embedding,
}


# Names of the parameters of the layers above.
_OWN: Final = {"weight", "bias"}


def is_layer(module: nn.Module) -> bool:
    """Whether a module has a kernel, or is a layer of torch or derived from one, so needs one.

    The parameters of all other modules are bare, see `bare`.
    """
    return type(module) in KERNELS or any(
        one.__module__.startswith("torch.nn.modules.")
        and one.__module__ not in {"torch.nn.modules.module", "torch.nn.modules.container"}
        for one in type(module).__mro__
    )


def unknown(layer: nn.Module) -> str | None:
    """Why a layer has no kernel; None if it has one.

    Only exact classes count, because a subclass may use its weight differently.
    """
    if type(layer) not in KERNELS:
        return "its class is not known"
    more = [name for name, _ in layer.named_parameters(recurse=False) if name not in _OWN]
    if more:
        return f"it has a further parameter {more[0]}"
    if getattr(layer, "padding_mode", "zeros") != "zeros" or isinstance(
        getattr(layer, "padding", None), str
    ):
        return "its padding is not plain zeros"
    if isinstance(layer, nn.Embedding) and (
        layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        return "its max_norm, scale_grad_by_freq or sparse is set"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks, which may change what it computes"
    return None
