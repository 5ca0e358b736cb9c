"""Several real processes collect one store; one is killed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import forked
from gradstore.collect import ByRank, Claims, InProcess, ProjectorSpec, Samples, Task, collect
from gradstore.collect.conformance import check_executors
from gradstore.collect.pipeline import claims
from gradstore.store import leases, writer
from gradstore.store.format.rows import ARRAYS
from gradstore.store.opening import looks_like_store, open_store
from gradstore.store.verify import verify
from tests.support.stopping import go_on, stands_still
from tests.support.waiting import wait_for
from tests.support.worlds import NAMES, World, images

OPTIONS: dict[str, Any] = {"projector": ProjectorSpec(proj_dim=64), "shard_samples": 1}


def dataset() -> Samples:
    return Samples(images(7), ids=NAMES)


def _collect(checkpoints: list[Path], store: Path | str) -> None:
    import torch

    torch.set_num_threads(1)
    collect(dataset(), checkpoints, store, **OPTIONS)


def _collect_otherwise(
    checkpoints: list[Path], store: str, environment: dict[str, str], threads: int, engine: str
) -> None:
    """Collects rows that differ by rounding from those of other threads and engines."""
    import torch

    os.environ.update(environment)
    torch.set_num_threads(threads)
    collect(dataset(), checkpoints, store, engine=engine, metric="none", **OPTIONS)


def _stand_still(checkpoints: list[Path], store: Path, step: str) -> None:
    """Collects, and is stopped at a step of writing its second shard until it is continued."""
    seen: list[str] = []

    def reached(now: str) -> None:
        seen.append(now)
        if now == step and seen.count(step) == 2:
            os.kill(os.getpid(), signal.SIGSTOP)

    vars(writer)["reached"] = reached
    _collect(checkpoints, store)


def _stop_amid(
    checkpoints: list[Path], store: Path | str, mark: Path, environment: dict[str, str]
) -> None:
    """Collects until a shard's data is written, then holds its claim for ever."""
    os.environ.update(environment)

    def reached(step: str) -> None:
        if step == "written":
            mark.touch()
            sleep(600)

    writer.reached = reached
    _collect(checkpoints, store)


def test_claims_do_each_task_once(tmp_path: Path) -> None:
    done: list[Task] = []
    check_executors([Claims([tmp_path / "a", tmp_path / "b"], done.__contains__)])
    Claims([tmp_path / "a"], lambda task: True).run(
        [Task(0, 0)], lambda task: pytest.fail("it was done already")
    )
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_which_some_are_dead_do_it_all_with_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_PATIENCE_SECONDS", 0.0)
    tasks = [Task(checkpoint, shard) for checkpoint in range(3) for shard in range(5)]
    done: list[Task] = []
    for rank in (3, 1):
        own = ByRank(rank, 4)
        executor = Claims([tmp_path / "a"], done.__contains__, own)
        if rank == 3:
            executor.run(own.share(tasks), done.append)
        else:
            executor.run(executor.share(tasks), done.append)
    assert done[:8] == [*ByRank(3, 4).share(tasks), *ByRank(1, 4).share(tasks)]
    assert sorted(done) == tasks
    assert list(tmp_path.iterdir()) == []


def test_four_processes_of_which_one_dies(world: World, tmp_path: Path) -> None:
    reference = collect(dataset(), world.checkpoints, tmp_path / "r.gradstore", **OPTIONS)
    context = forked.context()
    path, mark = tmp_path / "a.gradstore", tmp_path / "mark"
    victim = context.Process(target=_stop_amid, args=(world.checkpoints, path, mark, {}))
    victim.start()
    until = monotonic() + 120
    wait_for(mark, victim)
    others = [context.Process(target=_collect, args=(world.checkpoints, path)) for _ in range(3)]
    for process in others:
        process.start()
    # The others do all but the claimed shard, and wait for it.
    while not looks_like_store(path) or len(open_store(path).missing()) > 1:
        assert monotonic() < until
        sleep(0.05)
    sleep(0.5)
    assert len(open_store(path).missing()) == 1
    assert all(process.is_alive() for process in others)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    for process in (victim, *others):
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0, 0]
    store = open_store(path)
    assert store.missing() == []
    assert {report.problem for report in verify(store)} == {None}
    for k in range(2):
        for name in ARRAYS:
            np.testing.assert_array_equal(
                getattr(store.rows(k), name), getattr(reference.rows(k), name)
            )
    assert not list(tmp_path.glob(".*"))  # no claims or partial stores remain


@pytest.mark.parametrize("step", writer.STEPS)
def test_a_process_that_stood_still_loses_nothing(
    step: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Others do all but the shard that it holds, say so, and finish when it goes on."""
    monkeypatch.setattr(claims, "_TOLD_SECONDS", 0.5)
    path = tmp_path / "a.gradstore"
    process = forked.context().Process(target=_stand_still, args=(world.checkpoints, path, step))
    process.start()
    assert stands_still(process)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(collect, dataset(), world.checkpoints, path, **OPTIONS)
        until = monotonic() + 120
        sealed = step in {"sealed", "seal flushed"}  # then there is nothing to wait for
        while "other processes hold 1 shards" not in caplog.text and not (sealed and other.done()):
            assert monotonic() < until
            assert sealed or not other.done()
            sleep(0.05)
        left = len(open_store(path).missing())
        go_on(process)
        assert other.result(120).missing() == []
    process.join(120)
    assert process.exitcode == 0
    assert left == (0 if sealed else 1)
    assert {report.problem for report in verify(open_store(path))} == {None}
    reference = collect(dataset(), world.checkpoints, tmp_path / "r.gradstore", **OPTIONS)
    for k in range(2):
        np.testing.assert_array_equal(
            open_store(path).rows(k).direction, reference.rows(k).direction
        )
    assert not list(tmp_path.glob(".*"))


def test_what_another_process_sealed_meanwhile_is_left_alone(world: World, tmp_path: Path) -> None:
    """Also without claims, as under a URL: rewriting would unseal the shard for a while."""
    path = tmp_path / "a.gradstore"
    sealed: dict[Path, int] = {}

    class Late(InProcess):
        def run(self, tasks: Any, work: Any) -> None:
            collect(dataset(), world.checkpoints, path, **OPTIONS)
            sealed.update((seal, seal.stat().st_mtime_ns) for seal in path.glob("seals/*/*"))
            super().run(tasks, work)

    collect(dataset(), world.checkpoints, path, executor=Late(), **OPTIONS)
    assert len(sealed) == 14
    assert {seal: seal.stat().st_mtime_ns for seal in path.glob("seals/*/*")} == sealed


def test_processes_that_start_together_make_one_store(world: World, tmp_path: Path) -> None:
    context = forked.context()
    path = tmp_path / "a.gradstore"
    processes = [context.Process(target=_collect, args=(world.checkpoints, path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert {report.problem for report in verify(open_store(path))} == {None}


def test_under_a_url_a_dead_one_s_work_is_taken_over(
    world: World, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait only for the shard that it was writing, and not for long."""
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 1.0)
    reference = collect(dataset(), world.checkpoints, tmp_path / "r.gradstore", **OPTIONS)
    context = forked.context()
    url, mark = f"{bucket}/a.gradstore", tmp_path / "mark"
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    victim = context.Process(target=_stop_amid, args=(world.checkpoints, url, mark, aws))
    victim.start()
    wait_for(mark, victim)
    store = collect(dataset(), world.checkpoints, url, **OPTIONS)
    assert victim.is_alive()
    victim.kill()
    victim.join(60)
    assert store.missing() == []
    assert {report.problem for report in verify(store)} == {None}
    for k in range(2):
        for name in ARRAYS:
            np.testing.assert_array_equal(
                getattr(store.rows(k), name), getattr(reference.rows(k), name)
            )


def test_under_a_url_processes_whose_rows_differ_by_rounding_make_one_store(
    world: World, bucket: str
) -> None:
    context, url = forked.context(), f"{bucket}/a.gradstore"
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    processes = [
        context.Process(
            target=_collect_otherwise, args=(world.checkpoints, url, aws, threads, engine)
        )
        for threads, engine in ((1, "streaming"), (2, "loop"))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    store = open_store(url)
    assert store.missing() == []
    assert {report.problem for report in verify(store)} == {None}
    assert not [key for key, _ in store.objects.sizes() if key.endswith(".lease")]


def test_under_a_url_a_rank_does_what_is_left_of_the_others(
    world: World, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    store = collect(dataset(), world.checkpoints, f"{bucket}/a.gradstore", **OPTIONS)
    assert store.missing() == []
