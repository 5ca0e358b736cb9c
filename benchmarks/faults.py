"""Does a store survive a kill of `collect` at any point?

Kills a real `collect` (SIGKILL) at random instants and at every named step of writing a shard.
Checks that all sealed data is intact, collects again, and compares the finished store with an
undisturbed one byte by byte.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.harness import forked
from benchmarks.harness.command import command
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, machine, save, target_table
from gradstore import open_store
from gradstore.store import writer
from gradstore.store.format.rows import ARRAYS
from gradstore.store.opening import looks_like_store
from gradstore.store.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradstore.store.reader import Store


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        kills: number of kills at a random instant.
        samples: number of collected samples.
    """

    kills: int
    samples: int


PRESETS = {"cpu": Preset(100, 48), "tiny": Preset(1, 4)}


def collect_once(checkpoints: str, store: str, samples: int, die: tuple[str, int] | None) -> None:
    """Collect, and die when a step is reached for the n-th time."""
    import torch

    from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect

    torch.set_num_threads(1)
    if die is not None:
        seen = Counter[str]()

        def reached(step: str) -> None:
            seen[step] += 1
            if (step, seen[step]) == die:
                os.kill(os.getpid(), signal.SIGKILL)

        writer.reached = reached
    images = torch.rand(samples, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    collect(
        Samples(images),
        checkpoints,
        store,
        objective="l1",
        etas=[1.0, 1.0],
        events=EventSpec(events="planned", timesteps=2),
        metric="none",
        # Not `auto`: after a kill before the store exists, a new run may choose another precision,
        # and bytes are compared.
        projector=ProjectorSpec(proj_dim=128, precision="float32"),
        shard_samples=4,
        engine="streaming",
    )


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Kill, check, resume, compare; write `faults.json`, `.md` and `.png` into `out`."""
    context = forked.context()
    generator = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = _checkpoints(folder)

        def start(store: Path, die: tuple[str, int] | None = None) -> Any:
            process = context.Process(
                target=collect_once, args=(checkpoints, str(store), preset.samples, die)
            )
            process.start()
            return process

        start(folder / "warm.gradstore").join()
        begun = perf_counter()
        start(folder / "reference.gradstore").join()
        whole = perf_counter() - begun
        reference = _content(open_store(folder / "reference.gradstore"))

        trials = []
        for number in range(preset.kills):
            store = folder / f"random-{number}.gradstore"
            delay = generator.uniform(0, whole)
            process = start(store)
            process.join(delay)
            trials.append(_trial("a random instant", store, process, start, reference))
        shards = len(reference["seals"])
        for step in writer.STEPS:
            for times in sorted({1, shards // 2, shards}):
                store = folder / f"{step.replace(' ', '-')}-{times}.gradstore"
                process = start(store, (step, times))
                process.join()
                trials.append(_trial(step, store, process, start, reference))

    rows = []
    for step in ("a random instant", *writer.STEPS):
        those = [trial for trial in trials if trial["where"] == step]
        rows.append(
            {
                "where": step,
                "trials": len(those),
                "killed": sum(trial["killed"] for trial in those),
                "no_store_yet": sum(not trial["store"] for trial in those),
                "sealed_then": sum(trial["sealed"] for trial in those),
                "damaged_seals": sum(trial["damaged"] for trial in those),
                "identical_after": sum(trial["identical"] for trial in those),
            }
        )
    identical = sum(trial["identical"] for trial in trials)
    damaged = sum(trial["damaged"] for trial in trials)
    targets = [
        Target(
            "stores equal to an undisturbed one",
            f"all {len(trials)}",
            identical,
            identical == len(trials),
        ),
        Target("sealed shards that were not whole", "0", damaged, damaged == 0),
    ]
    inputs = {"kills": preset.kills, "samples": preset.samples, "seed": seed}
    figures = {"seconds_undisturbed": whole, "shards": shards, "table": rows}
    save(
        out, "faults", inputs=inputs, figures=figures, targets=targets, page=_page(figures, targets)
    )
    plot(out / "faults.png", figures)
    return targets


def _checkpoints(folder: Path) -> str:
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler

    from benchmarks.worlds.models import build

    for number in range(2):
        torch.manual_seed(number)
        DDIMPipeline(build("tiny"), DDIMScheduler()).save_pretrained(
            folder / "run" / f"checkpoint-{number}"
        )
    return str(folder / "run")


def _content(store: Store) -> dict[str, Any]:
    """All data bytes and all seals."""
    (part,) = store.parts
    tasks = [(number, shard) for number in store.numbers for shard in range(part.layout.shards)]
    return {
        "seals": {task: part.seal(*task) for task in tasks},
        "manifest": store.manifest,
        "identity": store.spec.identity,
        **{
            f"{k}/{name}": getattr(store.rows(k), name).tobytes()
            for k in range(store.checkpoints)
            for name in ARRAYS
        },
    }


def _trial(
    where: str,
    store: Path,
    process: Any,
    start: Callable[[Path], Any],
    reference: dict[str, Any],
) -> dict[str, Any]:
    if process.is_alive():
        process.kill()
    process.join()
    found = looks_like_store(store)
    reports = list(verify(open_store(store))) if found else []
    damaged = [one for one in reports if one.sealed and one.problem]
    sealed = sum(one.problem is None for one in reports)
    killed = process.exitcode == -signal.SIGKILL
    again = start(store)
    again.join()
    return {
        "where": where,
        "killed": killed,
        "store": found,
        "sealed": sealed,
        "damaged": len(damaged),
        "identical": again.exitcode == 0 and _content(open_store(store)) == reference,
    }


def plot(path: Path, figures: dict[str, Any]) -> None:
    """Plot the share of equal stores, and the progress at the kill."""
    table = figures["table"]
    names = [f"{row['where']} ({row['trials']})" for row in table]
    figure, axes = canvas(1, 2, height=2.9)
    equal, sealed = axes[0]
    good = [row["identical_after"] / row["trials"] for row in table]
    equal.barh(names, good, color="#4878a8", label="equal to an undisturbed one")
    equal.barh(names, [1 - one for one in good], left=good, color="#c44e52", label="not equal")
    equal.set_title("stores that were finished afterwards")
    equal.set_xlabel("share of trials")
    sealed.barh(names, [row["sealed_then"] / row["trials"] for row in table], color="#4878a8")
    sealed.set_xlim(0, figures["shards"])
    sealed.set_title("sealed when it was killed")
    sealed.set_xlabel(f"shards of {figures['shards']}, mean")
    for panel in axes[0]:
        panel.invert_yaxis()
    equal.set_ylabel("killed at (trials)")
    sealed.set_yticklabels([])
    figure.legend(loc="outside lower left", ncols=2, fontsize="small")
    keep(figure, path)


def _page(figures: dict[str, Any], targets: list[Target]) -> str:
    lines = [
        "# Does a store survive a kill of `collect` at any point?",
        "",
        (
            f"`python -m benchmarks.faults`; {figures['shards']} shards, "
            f"{figures['seconds_undisturbed']:.1f} s undisturbed, {machine()['cpu']}. Each trial: "
            "SIGKILL ends a collecting process, every seal is checked against every byte, "
            "`collect` is run again, and data, seals and manifest are compared with an undisturbed "
            "store's. Killing a process does not test a loss of power; the flushes to the disk "
            "before each seal protect against that."
        ),
        "",
        "| killed at | trials | killed | no store yet | sealed then | damaged seals | equal |",
        "|---|---|---|---|---|---|---|",
        *[
            f"| {row['where']} | {row['trials']} | {row['killed']} | {row['no_store_yet']} | "
            f"{row['sealed_then']} | {row['damaged_seals']} | {row['identical_after']} |"
            for row in figures["table"]
        ],
        "",
        target_table(targets),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
