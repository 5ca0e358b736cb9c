"""How the models of diffusers are called: they name and nest their inputs in different ways.

An objective calls `predict`, which reads from the names of the model's arguments what they want.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gradstore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Call = TypeVar("Call", bound="Callable[..., Any]")

# Condition whose channels follow those of the noisy sample in the model's input.
FURTHER: Final = "further_channels"
# What only Flux's transformer takes: latents as a sequence of 2 × 2 patches, with positions.
_PACKED: Final = frozenset({"img_ids", "txt_ids", "pooled_projections"})
# Flux multiplies its timestep by this; other models take it multiplied.
_FULL: Final = 1000


def stands_for(call: Call, model: Callable[..., Any]) -> Call:
    """Mark `call` as a way to call `model`, so that `predict` sees the model's arguments."""
    call.__wrapped__ = model  # type: ignore[attr-defined]
    return call


def predict(
    model: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor]
) -> Tensor:
    """The prediction of a model, called as its class wants it.

    Condition `further_channels` is put behind the noisy sample's own channels: the latents of the
    picture to edit (InstructPix2Pix), or a mask and the latents of the masked picture (inpainting).

    The timestep is the second argument, or `timestep` by name where a model has that elsewhere
    (SD3, PixArt). Conditions that a model does not name are collected in `added_cond_kwargs` if it
    has that argument: `text_embeds` and `time_ids` of SDXL, `resolution` and `aspect_ratio` of
    PixArt. Flux's transformer is given 2 × 2 patches of the latents as a sequence, their positions
    (`img_ids`, `txt_ids`), and timesteps divided by 1000; its prediction is put together again.

    Of a model with a learned variance, which returns twice the channels (DiT, PixArt), this is the
    first half; the other half has gradient 0 (the term L_vlb of arXiv 2102.09672 is left out).

    Args:
        model: a model of diffusers, or anything called as `model(noisy, timesteps, **conditions)`.
        noisy: `[events, *shape]`.
        timesteps: `[events]`.
        conditions: further inputs by keyword, `[events, …]` each.

    Returns:
        As `noisy`.

    Raises:
        CheckpointError: if the model predicts another shape.
    """
    names = arguments(model)
    given: dict[str, Any] = dict(conditions)
    shown = torch.cat([noisy, given.pop(FURTHER)], 1) if FURTHER in given else noisy
    if "added_cond_kwargs" in names:
        added = {name: given.pop(name) for name in [*given] if name not in names}
        if added:
            given["added_cond_kwargs"] = added
    if takes_patches(model):
        found = _packed(model, shown, timesteps, given)
    elif "timestep" in names and list(names).index("timestep") != 1:
        found = _sample(model(shown, timestep=timesteps, **given))
    else:
        found = _sample(model(shown, timesteps, **given))
    if noisy.ndim > 2 and found.shape[1:] == (2 * noisy.shape[1], *noisy.shape[2:]):
        found = found[:, : noisy.shape[1]]
    if found.shape != noisy.shape:
        raise CheckpointError(
            f"the model predicts shape {tuple(found.shape[1:])} for samples of shape "
            f"{tuple(noisy.shape[1:])}: it is no denoiser of these. Pass a custom objective to "
            "collect()."
        )
    return found


def distance(kind: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over each event's elements of |predicted − target| (`l1`) or its square (`l2`).

    Of `square`: the mean of the prediction's square.
    """
    error = predicted if kind == "square" else predicted - target
    each: Tensor = error.abs() if kind == "l1" else error.square()
    return each.flatten(1).mean(1)


def require_kind(kind: str) -> str:
    """Return the kind of a distance.

    Raises:
        ConfigError: if there is none of that name.
    """
    if kind not in {"l1", "l2", "square"}:
        raise ConfigError(f"there is no loss {kind!r}; use 'l1', 'l2' or 'square'.")
    return kind


def at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """Entries of a table by timestep, `[events]`, in the dtype of `like`."""
    # Cast before moving: not every device has float64.
    return table.to(like.dtype).to(like.device)[timesteps]


def along(entries: Tensor, like: Tensor) -> Tensor:
    """Entries `[events]`, shaped to multiply `like`."""
    return entries.reshape(-1, *[1] * (like.ndim - 1))


def arguments(model: Any) -> Collection[str]:
    """Names of the arguments of a model, in order."""
    while not isinstance(model, nn.Module) and hasattr(model, "__wrapped__"):
        model = model.__wrapped__
    model = getattr(model, "_orig_mod", model)  # one that torch compiled
    return signature(getattr(model, "forward", model)).parameters.keys()


def takes_patches(model: Any) -> bool:
    """Whether a model is Flux's transformer, which takes 2 × 2 patches as a sequence."""
    return _PACKED.issubset(arguments(model))


def _sample(output: Any) -> Tensor:
    found: Tensor = output.sample if hasattr(output, "sample") else output
    return found


def _packed(
    model: Callable[..., Any], noisy: Tensor, timesteps: Tensor, given: dict[str, Any]
) -> Tensor:
    if noisy.ndim != 4 or noisy.shape[2] % 2 or noisy.shape[3] % 2:
        raise CheckpointError(
            f"the model takes 2 × 2 patches of latents, and samples have shape "
            f"{tuple(noisy.shape[1:])}. Give latents [channels, height, width] of even height and "
            "width."
        )
    height, width = noisy.shape[2] // 2, noisy.shape[3] // 2
    # A position has an unused entry, a row and a column; texts are at 0.
    rows, columns = torch.arange(height), torch.arange(width)
    positions = F.pad(torch.cartesian_prod(rows, columns), (1, 0)).to(noisy)
    texts = positions.new_zeros(given["encoder_hidden_states"].shape[1], 3)
    output = model(
        F.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
        timestep=timesteps / _FULL,
        img_ids=positions,
        txt_ids=texts,
        **given,
    )
    found = _sample(output).transpose(1, 2)
    return F.pixel_shuffle(found.reshape(*found.shape[:2], height, width), 2)
