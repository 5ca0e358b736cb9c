from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.timestep_bias import (
    MEASURES,
    PRESETS,
    RandomSigns,
    _by_parameter,
    _squared_norms,
    run,
)
from benchmarks.worlds.setting import Folders, prepare
from gradstore.collect import EventSpec, ProjectorSpec, collect, load
from gradstore.collect.conformance import check_objective


def test_it_measures_norms_by_timestep_and_layer(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "timestep_bias.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    figures = written["figures"]
    assert list(figures["replayed"]) == ["0", "1"]
    assert all(-1 <= one["spearman"]["mean"] <= 1 for one in figures["replayed"].values())
    layers = figures["grid"]["layers"]
    assert {"conv_in", "time_embedding", "mid_block", "conv_out"} <= set(layers)
    assert np.sum([one["share"] for one in layers.values()], axis=0) == pytest.approx([1] * 5)
    assert sum(one["share_of_rise"] for one in layers.values()) == pytest.approx(1)
    assert list(figures["ranked"]) == list(MEASURES)
    for one in figures["ranked"].values():
        assert 0 <= one["mean timestep of proponents"]["mean"] <= 999
        assert 0 <= one["share of the longest tenth among proponents"]["mean"] <= 1
    assert (tmp_path / "timestep_bias.png").read_bytes().startswith(b"\x89PNG")


def test_its_norms_are_those_that_collecting_finds(tmp_path: Path, folders: Folders) -> None:
    preset = PRESETS["tiny"]
    world = prepare(preset.setting, folders)
    squared, names, timesteps = _squared_norms(preset, world)
    assert len(names) == squared["l1"].shape[3]
    step = preset.setting.planes // preset.samples
    ids = world.train.ids[: preset.setting.planes : step][: preset.samples]
    for loss in ("l1", "l2"):
        store = collect(
            world.train.only(ids),
            world.checkpoints,
            tmp_path / f"{loss}.gradstore",
            objective=loss,
            events=EventSpec(events="planned", timesteps=preset.timesteps),
            projector=ProjectorSpec(projector="sjlt", proj_dim=8),
            metric="none",
        )
        for place in range(store.checkpoints):
            assert store.column("timestep", place)[0].tolist() == timesteps.tolist()
            assert np.sqrt(squared[loss][place].sum(axis=2)) == pytest.approx(
                store.column("norm", place), rel=1e-4
            )


def test_random_signs_are_an_objective(folders: Folders) -> None:
    world = prepare(replace(PRESETS["tiny"].setting), folders)
    loaded = load(world.checkpoints[-1])
    objective = RandomSigns(loaded.scheduler)
    inputs = torch.stack([world.train[row].tensor for row in range(3)])
    check_objective(objective, loaded.model, inputs)


def test_pieces_are_cut_at_parameters() -> None:
    gradients = torch.arange(12.0).reshape(2, 6)
    edges = np.array([0, 1, 4, 6])
    expected = [[g[a:b].square().sum() for a, b in ((0, 1), (1, 4), (4, 6))] for g in gradients]
    for cuts in ([0, 6], [0, 2, 6], [0, 1, 3, 4, 6]):
        squared = torch.zeros(2, 3, dtype=torch.float64)
        receive = _by_parameter(squared, edges)
        for low, high in itertools.pairwise(cuts):
            receive(low, gradients[:, low:high])
        assert squared.numpy() == pytest.approx(np.array(expected))
