"""The command line, and small shared models and images. A test that changes one must copy it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from benchmarks.worlds import s3
from gradstore.collect import Samples
from tests.support.commands import Run
from tests.support.worlds import NAMES, World, images, save_checkpoint

# Several test processes share the cores, so each uses one thread.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names that tests give, and what they encode, are not kept in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Reset the log level: the command line sets it, and tests share a process."""
    log = logging.getLogger("gradstore")
    log.setLevel(logging.NOTSET)  # a shared fixture may have set it
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process."""
    return Run(capsys, monkeypatch)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return World(
        checkpoints=[
            save_checkpoint(folder / "epoch-01", epoch=1, learning_rate_sum=0.1),
            save_checkpoint(folder / "epoch-02", epoch=2, learning_rate_sum=0.4),
        ],
        train=Samples(list(zip(images(7), [0, 1, 2, 0, 1, 2, 0], strict=True)), ids=NAMES),
        queries=Samples(
            list(zip(images(3, seed=1), [0, 1, 2], strict=True)), ids=["ask-a", "ask-b", "ask-c"]
        ),
    )


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of images in two labelled sub-folders."""
    root = tmp_path / "images"
    for number, image in enumerate(images(6)):
        target = root / ("cat" if number % 2 else "dog")
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place on a real S3 server."""
    for name, value in {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid4().hex}"
