"""The commands info, verify and doctor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from gradstore.collect import ProjectorSpec, collect
from gradstore.store.opening import open_store
from query import cli
from tests.support.commands import Run
from tests.support.drawn_stores import random_store
from tests.support.worlds import World


def test_info_and_verify(road: Path, run: Run) -> None:
    store = road / "run" / "train.gradstore"
    told = run("info", store)
    for part in (
        "40 (columns id, label)",
        "loss l1",
        "proj_dim 64",
        "shards 2/2 sealed",
        "planned",
        "kfac",
    ):
        assert part in told
    assert "every shard is as it was sealed" in run("verify", store)


def test_verify_fails_on_damage(road: Path, run: Run, tmp_path: Path) -> None:
    store = Path(shutil.copytree(road / "run" / "train.gradstore", tmp_path / "s.gradstore"))
    (store / "checkpoints/1/columns/c.0.0.0").unlink()
    assert "1 sealed shards are damaged" in run("verify", store, status=1)
    (store / "seals/1/0.json").unlink()
    assert "1 shards are not collected yet" in run("verify", store, status=1)


def test_verify_repairs_what_is_damaged(road: Path, run: Run, tmp_path: Path) -> None:
    store = Path(shutil.copytree(road / "run" / "train.gradstore", tmp_path / "s.gradstore"))
    whole = {k: open_store(store).rows(k) for k in range(2)}
    files = [store / f"checkpoints/{k}/direction/c.0.0.0" for k in range(2)]
    for file in files:
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
    (store / "checkpoints/1/columns/c.0.0.0").write_bytes(b"")
    told = run("verify", store, "--repair")
    assert told.count("checkpoint 0, shard 0") == 1
    assert "every shard is as it was sealed" in told
    for k, rows in whole.items():
        found = open_store(store).rows(k)
        np.testing.assert_array_equal(found.direction, rows.direction)
        np.testing.assert_array_equal(found.norm, rows.norm)
    assert "Next:" not in run("verify", store, "--repair")  # nothing to do


def test_a_store_from_python_says_how_to_repair_it(world: World, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.gradstore"
    collect(world.train, world.checkpoints, path, projector=ProjectorSpec(proj_dim=16))
    (path / "checkpoints/0/columns/c.0.0.0").unlink()
    told = run("verify", path, "--repair", status=1)
    assert "collected from Python" in told
    assert "repair of gradstore.collect with the dataset" in told
    assert open_store(path).missing() == []  # nothing was touched


def test_verify_finds_what_killed_commands_left_and_vacuum_removes_it(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "t.gradstore"
    random_store(path)
    assert "left" not in run("verify", path)
    inside = ["parts/" + "a" * 32, "checkpoints/7", "deleted"]
    for name in inside:
        (path / name).mkdir(parents=True)
    (path / inside[0] / "zarr.json").write_text("{}")
    (path / "checkpoints/7/zarr.json").write_text("{}")
    (path / f"deleted/{'b' * 32}.parquet").write_text("")
    (path / f"seals/0/.0.json.{'c' * 32}").write_text("half")
    beside = tmp_path / f".t.retrac.index.building-{'d' * 32}"
    beside.mkdir()
    (beside / "vectors.faiss").write_bytes(b"0" * 10**6)
    told = run("verify", path)
    for name in ("parts/aaa", "checkpoints/7", "deleted/bbb", ".0.json.ccc", ".t.retrac.index"):
        assert name in told
    assert f"gradstore vacuum {path}" in told
    assert "1.0 MB freed" in run("vacuum", path)
    assert "left" not in run("verify", path)
    assert not beside.exists()


def test_doctor(run: Run) -> None:
    told = run("doctor")
    for part in ("torch: ", "faiss: faiss-", "device: cpu", "fast_jl: ", "package indexer: "):
        assert part in told
    assert "BAD" not in told


def test_doctor_and_every_command_name_a_shadowing_package(tmp_path: Path) -> None:
    (tmp_path / "indexer").mkdir()
    (tmp_path / "indexer" / "__init__.py").write_text("")
    code = "from query.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "doctor"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{Path(cli.__file__).parents[2]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "folder called 'indexer' comes before gradstore's" in ran.stderr
    assert "Traceback" not in ran.stderr
