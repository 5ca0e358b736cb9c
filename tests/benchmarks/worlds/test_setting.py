from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from benchmarks.worlds.models import build
from benchmarks.worlds.setting import SETTINGS, Folders, prepare
from benchmarks.worlds.training import fit
from gradstore.collect import Samples, load
from gradstore.errors import DatasetError
from tests.support.worlds import images


def test_it_is_made_once(folders: Folders) -> None:
    setting = SETTINGS["tiny"]
    world = prepare(setting, folders)
    assert world.store.manifest.metadata["label"] == ["plane"] * 40 + ["zero"] * 6
    assert [len(world.of(label)) for label, _ in setting.queries] == [4, 3, 2, 1, 2]
    assert world.store.is_current()
    again = prepare(setting, Folders(folders.cache, folders.data))
    assert again.folder == world.folder
    assert again.store.root == world.store.root
    other = prepare(replace(setting, seed=1), folders)
    assert other.folder != world.folder
    # No query image is a training image.
    assert not set(world.train.manifest.digests) & set(world.asked.manifest.digests)


def test_without_images_it_says_which_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cifar10-train\.parquet, cifar10-test\.parquet"):
        prepare(SETTINGS["tiny"], Folders(tmp_path, tmp_path))


def test_too_few_images_are_told(tmp_path: Path, folders: Folders) -> None:
    with pytest.raises(DatasetError, match="5000 images of 'plane' are wanted; there are 60"):
        prepare(replace(SETTINGS["tiny"], planes=5000), Folders(tmp_path, folders.data))


def test_training_that_was_cut_off_ends_as_if_it_was_not(tmp_path: Path) -> None:
    samples = Samples(images(10, mode="RGB"))
    options: dict[str, Any] = {
        "epochs": 6,
        "checkpoint_every": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "seed": 3,
    }
    whole = fit(partial(build, "tiny"), samples, tmp_path / "whole", **options)
    assert [folder.name for folder in whole] == ["epoch-0002", "epoch-0004", "epoch-0006"]

    def dying() -> UNet2DModel:
        model, calls = build("tiny"), iter(range(11))

        def step(*_: Any) -> None:
            if next(calls) == 10:  # in the fourth epoch of three steps
                raise KeyboardInterrupt

        model.register_forward_pre_hook(step)
        return model

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        fit(dying, samples, cut, **options)
    assert [folder.name for folder in cut.glob("epoch-*")] == ["epoch-0002"]
    found = fit(partial(build, "tiny"), samples, cut, **options)
    for left, right in zip(whole, found, strict=True):
        weights, others = load(left).model.state_dict(), load(right).model.state_dict()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert not list(cut.rglob("resume.safetensors"))
