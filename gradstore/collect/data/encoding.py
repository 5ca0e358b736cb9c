"""Encodes pictures and captions for latent, text-to-image models, each once.

What was encoded is kept in `$XDG_CACHE_HOME/gradstore/encoded` (by default below `~/.cache`), named
by hashes of the content and of the encoders. It may be removed at any time.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gradstore.collect.data.pictures import image_tensor
from gradstore.collect.models.encoders import INPUTS, Encoders, autoencoder_folder
from gradstore.collect.models.families import family_of, takes_captions
from gradstore.collect.objectives.calling import FURTHER
from gradstore.errors import DatasetError
from gradstore.store.format.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from PIL import Image
    from torch import Tensor

    from gradstore.collect.data.sample import Sample
    from gradstore.collect.data.samples import Samples
    from gradstore.collect.models.protocol import Loader
    from gradstore.store.format.spec import Identity

_log = logging.getLogger("gradstore")


def encoders_for(
    samples: Samples, loader: Loader, model: Any, device: torch.device
) -> Encoders | None:
    """The encoders that samples need for a model; None if they fit it as they are.

    Raises:
        DatasetError: if the model takes latents of an autoencoder that gradstore does not run, or
            captions without a pipeline to encode them.
    """
    first, folder, spec = samples[0], loader.folders[0], loader.spec()
    base = spec.base if spec is not None else None
    if first.picture is None:
        return None
    vae = autoencoder_folder(folder, base)
    if vae is not None and vae.name == "vqvae":
        raise DatasetError(
            f"sample {first.name!r} is a picture, and checkpoint {folder} takes the latents of "
            f"{vae}. Encode the pictures as its training did, and give the latents from Python as "
            "float tensors [channels, height, width]."
        )
    captions = takes_captions(model) and "encoder_hidden_states" not in first.conditions
    if captions and family_of(model) is None:
        raise DatasetError(
            f"checkpoint {folder} is a {type(model).__name__}, which takes captions, and gradstore "
            "encodes those of Stable Diffusion, SDXL, SD3, Flux and PixArt. Give latents and "
            "conditions from Python, as docs/how-to.md says."
        )
    if vae is not None:
        return Encoders(vae, folder, base, model, device)
    if captions:
        raise DatasetError(
            f"checkpoint {folder} is a text-to-image model, and there is no vae/ in it or beside "
            f"it to encode sample {first.name!r}. Name the pipeline that the training began with "
            "by --base; or give latents and conditions from Python."
        )
    return None


def as_collected(samples: Samples, identity: Identity) -> Samples:
    """Samples with the digests that a store has of them, not encoded: for display.

    Args:
        samples: the samples of a dataset.
        identity: the identity of the store.
    """
    model = identity.get("model")
    encoders = model.get("encoders") if isinstance(model, dict) else None
    if encoders is None:
        return samples
    name = fingerprint(encoders)
    given = encoders.get("input") if isinstance(encoders, dict) else None
    pictures = INPUTS[given] if isinstance(given, str) and given in INPUTS else ()
    return samples.encoded(lambda sample: _content(sample, name), pictures)


def _content(sample: Sample, encoders: str) -> Sample:
    """A sample that is told apart by pictures, caption and encoders."""
    content: list[Any] = [sample.digest(), sample.caption, list(sample.geometry), encoders]
    content += [[kind, _bits(picture)] for kind, picture in sorted(sample.pictures.items())]
    return replace(sample, content=fingerprint(content)[:32])


def _bits(picture: Image.Image) -> str:
    """Hash of a picture."""
    parts = f"{picture.mode}{picture.size}".encode(), picture.tobytes()
    return blake2b(b"".join(parts), digest_size=16).hexdigest()


class Encoding:
    """Turns a sample with a picture and a caption into latents and conditions.

    Args:
        encoders: the encoders.
    """

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders
        self._name = fingerprint(encoders.identity())
        cache = os.environ.get("XDG_CACHE_HOME")
        root = Path(cache) if cache else Path.home() / ".cache"
        self._root = root / "gradstore" / "encoded"

    def __call__(self, sample: Sample) -> Sample:
        """The sample, encoded.

        Raises:
            DatasetError: if it has no caption, or its picture does not fit the VAE.
        """
        if sample.picture is None:
            raise DatasetError(
                f"sample {sample.name!r} is an array and the first one is a picture: give all as "
                "pictures, or all as latents."
            )
        conditions = self._encoders.sizes(sample.geometry)
        if self._encoders.family is not None and "encoder_hidden_states" not in sample.conditions:
            caption = sample.caption
            if caption is None:
                raise DatasetError(
                    f"sample {sample.name!r} has no caption, and the model takes one. Name the "
                    "column with --caption-column; in a folder of images, write a metadata.jsonl "
                    'with lines {"file_name": "1.png", "text": "a red car"}.'
                )
            conditions |= self._kept("text", caption, lambda: self._encoders.texts(caption))
        found = self._kept("picture", sample.digest(), lambda: self._latents(sample))
        if self._encoders.pictures:
            shown = sample.digest() + "".join(map(_bits, sample.pictures.values()))
            conditions |= self._kept("further", shown, lambda: self._further(sample))
        given = {**conditions, **sample.conditions}
        return replace(_content(sample, self._name), tensor=found["latents"], conditions=given)

    def _latents(self, sample: Sample) -> dict[str, Tensor]:
        self._require_fitting(sample.tensor, sample.name)
        return {"latents": self._encoders.latents(sample.tensor)}

    def _require_fitting(self, picture: Tensor, name: str, which: str = "it has ") -> None:
        wrong = self._encoders.require_fitting(picture)
        if wrong is not None:
            raise DatasetError(f"sample {name!r}: {which}{wrong}.")

    def _further(self, sample: Sample) -> dict[str, Tensor]:
        pictures = {
            kind: image_tensor(picture, sample.name) for kind, picture in sample.pictures.items()
        }
        for kind in {"original"} & pictures.keys():
            self._require_fitting(pictures[kind], sample.name, f"its {kind} has ")
        return {FURTHER: self._encoders.further(sample.tensor, pictures)}

    def _kept(
        self, kind: str, content: str, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What was made of some content, from the cache if it is there."""
        parts = "\x1f".join((kind, self._name, content))
        key = blake2b(parts.encode(), digest_size=20).hexdigest()
        file = self._root / key[:2] / f"{key}.safetensors"
        with suppress(OSError, SafetensorError):  # missing, or cut off
            return load_file(file)
        made = make()
        writing = file.with_name(f".{uuid4().hex}.writing")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(made, writing)
            writing.replace(file)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                writing.unlink()
            _log.warning("%s cannot be written (%s): it is encoded anew each time", file, error)
        return made
