"""Ranks of a SLURM job, as commands: one hangs and is killed, and the others finish its share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from gradstore import open_store
from gradstore.collect import InProcess
from gradstore.collect.pipeline.run import collect_config
from gradstore.flags.collect import CollectConfig
from gradstore.store.format.rows import ARRAYS
from gradstore.store.verify import verify
from tests.support.waiting import wait_for
from tests.support.worlds import NAMES, World, images

# The time a rank waits in vain, and the code that hangs after the first shard is written.
PATIENT = "from gradstore.collect.pipeline import claims; claims._PATIENCE_SECONDS = 1\n"
HANGS = """
import pathlib, sys, time
from gradstore.store import writer
mark = sys.argv.pop()
def reached(step):
    if step == "written":
        pathlib.Path(mark).touch()
        time.sleep(600)
writer.reached = reached
"""
MAIN = "\nimport torch; torch.set_num_threads(1)\nfrom query.cli import main; main()"


class Rank:
    """One of three ranks, started like srun."""

    def __init__(self, rank: int, before: str, *arguments: str) -> None:
        others = {name: os.environ[name] for name in os.environ if "RANK" not in name}
        told = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "3", "SLURM_LOCALID": str(rank)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", before + MAIN, "collect", *arguments],
            env={**others, **told},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def ended(self) -> tuple[int, str, str]:
        told, warned = self._process.communicate(timeout=120)
        return self._process.returncode, told, warned


@pytest.fixture
def config(world: World, tmp_path: Path) -> CollectConfig:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in zip(NAMES, images(7), strict=True):
        image.save(folder / f"{name}.png")
    return CollectConfig(
        dataset=str(folder),
        checkpoints=[str(one) for one in world.checkpoints],
        store=str(tmp_path / "a.gradstore"),
        proj_dim=16,
        precision="float32",
        events="planned",
        timesteps=2,
        shard_samples=1,
    )


def test_a_dead_rank_s_share_is_finished_by_others(config: CollectConfig, tmp_path: Path) -> None:
    there = tmp_path / "reference.gradstore"
    reference = collect_config(
        config.model_copy(update={"store": str(there)}), executor=InProcess()
    )
    file, mark = tmp_path / "collect.yaml", tmp_path / "mark"
    file.write_text(yaml.safe_dump(config.model_dump(exclude_none=True)))
    victim = Rank(1, HANGS, str(file), str(mark))
    try:
        wait_for(mark, victim)
        code, told, warned = Rank(0, PATIENT, str(file)).ended()
        assert code == 3, warned
        assert f"WARNING: {config.store}: 1 of 14 shards are not done." in warned
        assert "run the same command again" in warned
        assert "Next:" not in told
        (missing,) = open_store(config.store).missing()
        assert missing == (0, 0, 4)  # the second rank's first
    finally:
        victim.kill()
    alive = [Rank(rank, "", str(file)) for rank in (0, 2)]
    for one in alive:
        code, told, warned = one.ended()
        assert code == 0, warned
        assert f"Next: gradstore index --store {config.store}" in told
        assert "not done" not in warned
    store = open_store(config.store)
    assert {report.problem for report in verify(store)} == {None}
    for k in range(2):
        for name in ARRAYS:
            np.testing.assert_array_equal(
                getattr(store.rows(k), name), getattr(reference.rows(k), name)
            )
    assert not list(tmp_path.glob(".*"))
