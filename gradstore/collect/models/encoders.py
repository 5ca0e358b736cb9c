"""Encoders of a latent, text-to-image pipeline: its VAE, tokenizers and text encoders.

Which classes are loaded is decided here and not by the files: a folder may name any module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch
from torch.nn.functional import interpolate

from gradstore.collect.models.families import family_in, further_input
from gradstore.collect.models.folders import part_folder, read_config
from gradstore.collect.models.loading import load_model, tensors_digest
from gradstore.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from gradstore.store.format.spec import Identity

_ENCODERS: Final = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"})
_TOKENIZERS: Final = frozenset({"CLIPTokenizer", "T5Tokenizer"})
# Kinds of the further pictures that make the input of a denoiser, see `further_input`.
INPUTS: Final[dict[str, tuple[str, ...]]] = {"original": ("original",), "masked": ("mask",)}


def autoencoder_folder(folder: Path, base: str | None) -> Path | None:
    """Folder of the autoencoder whose latents a checkpoint takes; None if it takes pixels."""
    for name in ("vae", "vqvae"):
        found = part_folder(name, "config.json", folder, base)
        if found is not None:
            return found
    return None


class Encoders:
    """The VAE of a pipeline, and its text encoders if its denoiser takes captions.

    They are read when they are first used, and again after `release`.

    Args:
        vae: folder of the VAE.
        folder: a checkpoint of the pipeline.
        base: the pipeline that the training began with.
        model: the denoiser.
        device: device to encode on.
    """

    def __init__(
        self, vae: Path, folder: Path, base: str | None, model: Any, device: torch.device
    ) -> None:
        self._vae_folder, self._folder, self._base = vae, folder, base
        self.family = family_in(folder, base, model)
        self._model = model
        self.input = further_input(model)
        self._device = device
        self._loaded: Any = None
        self._identity: Identity = {}

    def identity(self) -> Identity:
        """Hashes of the weights, and how captions are encoded."""
        if not self._identity:
            pipeline = self._pipeline()
            names = ["vae", *self._text_names("text_encoder")]
            self._identity = {
                name: tensors_digest(getattr(pipeline, name).state_dict()) for name in names
            }
            self._identity["latents"] = "mean"
            if self.family is not None:
                self._identity["captions"] = self.family.pipeline
            if self.input is not None:
                self._identity["input"] = self.input
        return self._identity

    def release(self) -> None:
        """Free the memory of the encoders."""
        self._loaded = None

    @property
    def pictures(self) -> tuple[str, ...]:
        """Kinds of the further pictures that a sample must have: `original` or `mask`, or none."""
        return () if self.input is None else INPUTS[self.input]

    @torch.no_grad()
    def latents(self, picture: Tensor) -> Tensor:
        """Latents of a picture, float32 `[channels, height, width]`: the mean of the posterior.

        Args:
            picture: −1 … 1, `[channels, height, width]`.
        """
        found, config = self._mean(picture), self._pipeline().vae.config
        mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and spread is not None:
            centre, width = (
                torch.tensor(one, device=found.device).view(1, -1, 1, 1) for one in (mean, spread)
            )
            found = (found - centre) / width
        else:
            found = found - (getattr(config, "shift_factor", None) or 0.0)
        scaled: Tensor = (found * config.scaling_factor)[0].float().cpu()
        return scaled

    def _mean(self, picture: Tensor) -> Tensor:
        """Mean of the posterior, `[1, …]`."""
        found: Tensor = (
            self._pipeline().vae.encode(picture[None].to(self._device)).latent_dist.mode()
        )
        return found

    @torch.no_grad()
    def further(self, picture: Tensor, pictures: Mapping[str, Tensor]) -> Tensor:
        """The denoiser's channels beside its noisy latents, float32 `[channels, height, width]`.

        As diffusers trains and draws: of a model that edits, the latents of the original, without
        the VAE's scaling; of one that inpaints, the mask at their size, then the latents of the
        picture that is grey behind it.

        Args:
            picture: −1 … 1, `[channels, height, width]`.
            pictures: the further pictures by kind, of the same height and width.
        """
        if self.input == "original":
            return self._mean(pictures["original"])[0].float().cpu()
        mask = (pictures["mask"] >= 0).float()
        latents = self.latents(picture * (1 - mask))
        small = interpolate(mask[None], size=latents.shape[-2:])[0]
        return torch.cat([small, latents])

    def require_fitting(self, picture: Tensor) -> str | None:
        """What is wrong with the shape of a picture for the VAE; None if nothing is."""
        config = self._pipeline().vae.config
        channels, factor = int(config.in_channels), 2 ** (len(config.block_out_channels) - 1)
        if picture.shape[0] != channels:
            mode = {1: "L", 3: "RGB"}.get(channels, "RGB")
            return f"{picture.shape[0]} channel(s), and the VAE takes {channels}: use --mode {mode}"
        height, width = picture.shape[1:]
        if height % factor or width % factor:
            return (
                f"{width}×{height} pixels, and the VAE takes multiples of {factor}: use --size "
                "and --resize crop, as in training"
            )
        return None

    @torch.no_grad()
    def texts(self, caption: str) -> dict[str, Tensor]:
        """The denoiser's conditions of a caption, float32 without the first axis."""
        if self.family is None:
            return {}
        found = self.family.encode(self._pipeline(), caption)
        return {name: one[0].float().cpu().contiguous() for name, one in found.items()}

    def sizes(self, geometry: Sequence[int]) -> dict[str, Tensor]:
        """The denoiser's conditions of a picture's size and crop; of Flux, its guidance.

        Args:
            geometry: height and width before resizing, top and left of the crop, height and width
                after it; in pixels.
        """
        return {} if self.family is None else self.family.sizes(self._model, geometry)

    def _text_names(self, stem: str) -> list[str]:
        count = self.family.texts if self.family is not None else 0
        return [stem if number == 1 else f"{stem}_{number}" for number in range(1, count + 1)]

    def _pipeline(self) -> Any:
        if self._loaded is None:
            self._loaded = self.pipeline(None, None)
        return self._loaded

    def pipeline(self, model: Any, scheduler: Any) -> Any:
        """The pipeline, with a denoiser and a scheduler to draw with, or None to encode only."""
        vae = load_model(self._vae_folder).eval().requires_grad_(requires_grad=False)
        vae = vae.to(self._device)
        if self.family is None:
            return _Bare(vae)
        parts = {
            name: _text_part(name, self._folder, self._base, self._device)
            for stem in ("text_encoder", "tokenizer")
            for name in self._text_names(stem)
        }
        parts |= {self.family.denoiser: model, "scheduler": scheduler}
        return getattr(diffusers, self.family.pipeline)(vae=vae, **parts, **self.family.rest)


@dataclass(frozen=True)
class _Bare:
    """A pipeline without text encoders."""

    vae: Any


def _text_part(name: str, folder: Path, base: str | None, device: torch.device) -> Any:
    """Load a tokenizer, or a text encoder in float32.

    Raises:
        CheckpointError: if it is missing, unreadable, or of a class that is not known here.
        DependencyError: if transformers is missing.
    """
    tokenizer = name.startswith("tokenizer")
    file = "tokenizer_config.json" if tokenizer else "config.json"
    own = part_folder(name, file, folder, base)
    if own is None:
        raise CheckpointError(
            f"checkpoint {folder} has no {name}/ in it or beside it, which encodes captions. Name "
            "the pipeline that the training began with by --base."
        )
    config = read_config(own / file)
    cls = _named(config, "tokenizer_class" if tokenizer else "architectures")
    if cls.removesuffix("Fast") not in (_TOKENIZERS if tokenizer else _ENCODERS):
        raise CheckpointError(
            f"{own / file} names class {cls[:80]!r}; gradstore encodes captions by "
            f"{', '.join(sorted(_TOKENIZERS if tokenizer else _ENCODERS))}. Give conditions "
            "with the samples, from Python."
        )
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(
            f"{own}: captions are encoded by transformers, which is not installed. Install it with "
            "`pip install 'gradstore[text]'`."
        ) from error
    try:
        if tokenizer:
            return getattr(transformers, cls).from_pretrained(own, local_files_only=True)
        model = getattr(transformers, cls).from_pretrained(
            own, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except Exception as error:  # transformers may raise anything on a foreign file
        reason = " ".join((str(error) or repr(error)).split())
        raise CheckpointError(
            f"{own} cannot be loaded: {reason[:300]} Restore it from the pipeline that the "
            "training began with."
        ) from error
    return model.eval().requires_grad_(requires_grad=False).to(device)


def _named(config: Mapping[str, Any], key: str) -> str:
    found = config.get(key)
    found = found[0] if isinstance(found, list) and found else found
    return str(found)
