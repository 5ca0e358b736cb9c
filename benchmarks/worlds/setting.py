"""The paper's setting: a model of planes with a few zeros among them, its rows and its queries.

CIFAR-10 airplanes and MNIST zeros (arXiv 2401.09031, section 6): trained, collected and asked once,
kept in a cache folder under a hash of all that made it, and used by every question about it.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from benchmarks.harness.results import RESULTS
from benchmarks.worlds.models import build
from benchmarks.worlds.training import fit
from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect, generate
from gradstore.collect.data import sources
from gradstore.config import DatasetSpec
from gradstore.errors import DatasetError
from query import collect_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gradstore.store.reader import Store

DATA_VARIABLE: Final = "GRADSTORE_BENCH_DATA"
CACHE_VARIABLE: Final = "GRADSTORE_BENCH_CACHE"
_CACHE: Final = Path.home() / ".cache" / "gradstore-benchmarks"

# File in the data folder, dataset and split on the Hugging Face hub.
_SOURCES: Final = {
    "cifar10-train": ("uoft-cs/cifar10", "train"),
    "cifar10-test": ("uoft-cs/cifar10", "test"),
    "mnist": ("ylecun/mnist", "train"),
}
# Dataset and class number.
_CLASSES: Final = {
    "plane": ("cifar10", 0),
    "automobile": ("cifar10", 1),
    "bird": ("cifar10", 2),
    "horse": ("cifar10", 7),
    "zero": ("mnist", 0),
    "one": ("mnist", 1),
    "two": ("mnist", 2),
    "three": ("mnist", 3),
    "four": ("mnist", 4),
}
GENERATED: Final = "generated"


@dataclass(frozen=True)
class Setting:
    """Sizes of the setting.

    Attributes:
        model: of `benchmarks.worlds.models`.
        size: side of the images.
        planes: training planes.
        zeros: training zeros.
        epochs: of training.
        checkpoint_every: epochs between checkpoints.
        batch_size: samples per step.
        learning_rate: Adam's.
        proj_dim: dimension of the rows, by sjlt.
        queries: held-out images of each class, and images that the last checkpoint generates.
        timesteps: per query.
        draws: noises averaged into each.
        seed: of weights, order, events, noises and projection.
    """

    model: str
    size: int
    planes: int
    zeros: int
    epochs: int
    checkpoint_every: int
    batch_size: int
    learning_rate: float
    proj_dim: int
    queries: tuple[tuple[str, int], ...]
    timesteps: int
    draws: int
    seed: int = 0


SETTINGS: Final = {
    "cpu": Setting(
        model="small",
        size=32,
        planes=1000,
        zeros=40,
        epochs=100,
        checkpoint_every=20,
        batch_size=32,
        learning_rate=1e-4,
        proj_dim=4096,
        queries=(
            *(("plane", 32), ("zero", 16), ("automobile", 8), ("bird", 8), ("horse", 8)),
            *(("one", 2), ("two", 2), ("three", 2), ("four", 2), (GENERATED, 16)),
        ),
        timesteps=10,
        draws=4,
    ),
    "paper": Setting(
        model="paper",
        size=32,
        planes=5000,
        zeros=200,
        epochs=500,
        checkpoint_every=50,
        batch_size=32,
        learning_rate=1e-4,
        proj_dim=4096,
        queries=(
            *(("plane", 64), ("zero", 32), ("automobile", 32), ("bird", 32), ("horse", 32)),
            *(("one", 8), ("two", 8), ("three", 8), ("four", 8), (GENERATED, 64)),
        ),
        timesteps=50,
        draws=16,
    ),
    "tiny": Setting(
        model="tiny",
        size=8,
        planes=40,
        zeros=6,
        epochs=4,
        checkpoint_every=2,
        batch_size=16,
        learning_rate=1e-3,
        proj_dim=256,
        queries=(("plane", 4), ("zero", 3), ("bird", 2), ("one", 1), (GENERATED, 2)),
        timesteps=4,
        draws=2,
    ),
}


@dataclass(frozen=True)
class Folders:
    """Where images come from, and where what is made of them is kept.

    Attributes:
        cache: models and stores, by the hash of what made them.
        data: folder of `cifar10-train.parquet`, `cifar10-test.parquet` and `mnist.parquet`; None
            for the Hugging Face hub.
    """

    cache: Path
    data: Path | None = None


@dataclass(frozen=True)
class World:
    """A trained model of the setting, with its rows.

    Attributes:
        setting: its sizes.
        folder: where it is kept, and whatever else a question makes of it.
        train: the training samples, labelled `plane` and `zero`.
        asked: the query images, labelled by class.
        checkpoints: folders, in training order.
        store: rows of the training samples, events replayed.
        queries: rows of the query images.
    """

    setting: Setting
    folder: Path
    train: Samples
    asked: Samples
    checkpoints: Sequence[Path]
    store: Store
    queries: Store

    def projector(self) -> ProjectorSpec:
        """Of the stores."""
        return ProjectorSpec(
            projector="sjlt", proj_dim=self.setting.proj_dim, proj_seed=self.setting.seed
        )

    def of(self, *labels: str) -> list[int]:
        """Numbers of the queries of some classes."""
        given = self.queries.manifest.metadata["label"]
        return [row for row, label in enumerate(given) if label in labels]


def prepare(setting: Setting, folders: Folders) -> World:
    """Train, collect and ask, or find what was made before. Killed, it goes on where it was.

    Raises:
        DatasetError: if the images cannot be found; it says which are wanted.
    """
    trained = replace(setting, queries=(), timesteps=0, draws=0, proj_dim=0)
    counts = {"plane": setting.planes, "zero": setting.zeros}
    train = images_of(folders, counts, "train", setting.size)
    key = digest(asdict(trained), train.manifest.digests)
    folder = folders.cache / f"planes-{setting.model}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "setting.json").write_text(json.dumps(asdict(trained), indent=2) + "\n")
    checkpoints = fit(
        partial(build, setting.model, sample_size=setting.size),
        train,
        folder / "checkpoints",
        epochs=setting.epochs,
        checkpoint_every=setting.checkpoint_every,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        seed=setting.seed,
    )
    projector = ProjectorSpec(projector="sjlt", proj_dim=setting.proj_dim, proj_seed=setting.seed)
    store = collect(
        train, checkpoints, folder / f"train-{setting.proj_dim}.gradstore", projector=projector
    )
    asked = _asked(setting, folders, checkpoints[-1])
    name = digest(asked.manifest.digests, setting.proj_dim, setting.timesteps, setting.draws)
    queries = collect_queries(
        store,
        asked,
        folder / f"queries-{name}.gradstore",
        events=EventSpec(
            events="planned",
            timesteps=setting.timesteps,
            draws=setting.draws,
            event_seed=setting.seed,
        ),
    )
    return World(setting, folder, train, asked, checkpoints, store, queries)


def _asked(setting: Setting, folders: Folders, checkpoint: Path) -> Samples:
    counts = dict(setting.queries)
    made = _generated(checkpoint, counts.pop(GENERATED, 0), setting.seed)
    # MNIST's from behind the training zeros.
    held_out = images_of(folders, counts, "query", setting.size, skip={"zero": setting.zeros})
    images = [held_out.image(row) for row in range(len(held_out))] + made
    labels = [*held_out.manifest.metadata["label"], *[GENERATED] * len(made)]
    ids = [*held_out.ids, *(f"{GENERATED}-{number:04d}" for number in range(len(made)))]
    return Samples(list(zip(images, labels, strict=True)), ids=ids)


def _generated(checkpoint: Path, count: int, seed: int) -> list[Image.Image]:
    """Images of a checkpoint, kept beside it: another machine would draw others."""
    folder = checkpoint.parent.parent / f"generated-{count}"
    if count and not folder.exists():
        writing = folder.with_name(f".{folder.name}.writing")
        writing.mkdir(exist_ok=True)
        for number, image in enumerate(generate(checkpoint, count, seed=seed)):
            image.save(writing / f"{number:04d}.png")
        writing.rename(folder)
    images = []
    for number in range(count):
        with Image.open(folder / f"{number:04d}.png") as image:
            images.append(image.convert("RGB"))
    return images


def images_of(
    folders: Folders,
    counts: Mapping[str, int],
    role: str,
    size: int = 32,
    *,
    skip: Mapping[str, int] | None = None,
) -> Samples:
    """The first images of some classes, in RGB, labelled by class.

    Args:
        folders: where they come from.
        counts: how many of each class, by its name.
        role: `train` or `query`; CIFAR-10's are of its training split or its test split. Part of
            the ids.
        size: side of the images.
        skip: how many of a class come before.

    Raises:
        DatasetError: if the images cannot be found, or are too few.
    """
    pictures, ids = [], []
    for label, count in counts.items():
        kind, number = _CLASSES[label]
        split = "train" if role == "train" else "test"
        dataset = _source(kind if kind == "mnist" else f"{kind}-{split}", folders)
        first = (skip or {}).get(label, 0)
        rows = np.flatnonzero(np.array(dataset["label"]) == number)[first : first + count]
        if len(rows) < count:
            raise DatasetError(
                f"{first + count} images of {label!r} are wanted; there are {first + len(rows)}. "
                f"Give the whole dataset, or choose another --preset. {_wanted(folders)}"
            )
        for place, row in enumerate(rows.tolist()):
            item = dataset[row]
            picture = item.get("img", item.get("image"))
            if not isinstance(picture, Image.Image):
                raise DatasetError(f"{label!r}: no column img or image. {_wanted(folders)}")
            pictures.append((picture, label))
            ids.append(f"{label}-{role}-{place:04d}")
    return Samples(pictures, ids=ids, size=size, mode="RGB")


def train_and_heldout(
    dataset: str, samples: int, heldout: int, folders: Folders
) -> tuple[Samples, Samples]:
    """Training samples, and queries that are none of them.

    Args:
        dataset: `digits`, scikit-learn's; or `cifar2`, CIFAR-10's automobiles and horses.
        samples: training samples.
        heldout: queries.
        folders: where CIFAR-10's images come from.

    Raises:
        DatasetError: if the images cannot be found, or are too few.
    """
    if dataset == "digits":
        train = Samples.from_spec(DatasetSpec(dataset="digits", limit=samples))
        return train, Samples.from_spec(DatasetSpec(dataset="digits", split="test", limit=heldout))
    classes = ("automobile", "horse")
    return (
        images_of(folders, dict.fromkeys(classes, samples // 2), "train"),
        images_of(folders, dict.fromkeys(classes, heldout // 2), "query"),
    )


def _source(name: str, folders: Folders) -> Any:
    hub, split = _SOURCES[name]
    if folders.data is not None:
        spec = DatasetSpec(dataset=str(folders.data / f"{name}.parquet"))
    else:
        spec = DatasetSpec(dataset=f"hf://{hub}", split=split)
    try:
        return sources.load(spec)[0]
    except DatasetError as error:
        raise DatasetError(f"{error} {_wanted(folders)}") from error


def _wanted(folders: Folders) -> str:
    files = ", ".join(f"{name}.parquet" for name in _SOURCES)
    where = "--data" if folders.data is None else f"--data {folders.data}"
    return (
        f"The planes and zeros come from hf://uoft-cs/cifar10 and hf://ylecun/mnist, or from the "
        f"folder given by {where} (or {DATA_VARIABLE}), which must hold {files}, with columns "
        'img or image, and label. Each is made by datasets.load_dataset("uoft-cs/cifar10", '
        'split="train").to_parquet(…), the others alike.'
    )


def digest(*parts: Any) -> str:
    """A short hash of what JSON can say."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()


def command(
    presets: Mapping[str, Any], run: Callable[[Any, Path, Folders], Any], description: str | None
) -> None:
    """Command line of a question: its preset, and where images, cache and results are."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=presets, default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    data, cache = os.environ.get(DATA_VARIABLE), os.environ.get(CACHE_VARIABLE)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(data) if data else None,
        help=f"folder of {', '.join(f'{name}.parquet' for name in _SOURCES)} "
        f"[default: ${DATA_VARIABLE}, else the Hugging Face hub]",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(cache) if cache else _CACHE,
        help=f"folder of trained models and stores [default: ${CACHE_VARIABLE}, else {_CACHE}]",
    )
    given = parser.parse_args()
    run(presets[given.preset], given.out, Folders(given.cache, given.data))
