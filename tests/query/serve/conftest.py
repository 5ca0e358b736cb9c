"""A store as `gradstore collect` makes it from a folder of images, and its server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import gradstore as gs
from gradstore.collect.pipeline.run import collect_config
from gradstore.store.reader import Store
from tests.support.served import Client
from tests.support.worlds import images, save_checkpoint

# A label is a folder's name, an id a file's: both may be hostile.
LABELS = ["cat", "dog", "<img src=x onerror=alert(1)>"]


@dataclass(frozen=True)
class Place:
    """What is served."""

    folder: Path
    store: Store
    queries: Store
    checkpoints: list[Path]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("served")
    ids = []
    pictures = images(30)
    pictures[29] = pictures[0]  # a copy: the same digest needs the same label
    for number, image in enumerate(pictures):
        label = LABELS[0 if number == 29 else number % 3]
        ids.append(f"{label}/{number:02d}.png")
        file = folder / "train" / ids[-1]
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    for number, image in enumerate(images(4, seed=1)):
        file = folder / "asked" / LABELS[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    checkpoints = [
        save_checkpoint(
            folder / f"run/epoch-{epoch}", epoch=epoch, learning_rate_sum=epoch, ids=ids
        )
        for epoch in (1, 2)
    ]
    store = collect_config(
        gs.CollectConfig(
            dataset=str(folder / "train"),
            checkpoints=[str(one) for one in checkpoints],
            store=str(folder / "train.gradstore"),
            projector="sjlt",
            proj_dim=64,
            events="replayed",
            metric="none",
        )
    )
    spec = gs.EventSpec(events="planned", timesteps=5, draws=1)
    asked = gs.Samples(str(folder / "asked"))
    queries = gs.collect_queries(store, asked, folder / "asked.gradstore", events=spec)
    return Place(folder, store, queries, checkpoints)


@pytest.fixture(scope="session")
def client(place: Place) -> Iterator[Client]:
    with gs.serve(
        place.store,
        queries=place.queries,
        checkpoints=[str(one) for one in place.checkpoints],
        images=str(place.folder / "asked"),
        port=0,
        timesteps=3,
        draws=1,
    ) as server:
        yield Client(server)


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> bytes:
    """A file that somebody may give: neither of the model's size nor of its mode."""
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path.read_bytes()
