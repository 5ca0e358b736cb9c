"""Is anything lost if a command is killed at any point?

Kills real commands (SIGKILL) at random instants, and `collect` at every named step of writing a
shard. Checks that all that counts as finished is whole, runs the command again, and compares what
it made with an undisturbed run byte by byte.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.harness import forked
from benchmarks.harness.command import command
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, processor, save, target_table
from benchmarks.worlds.victims import Collecting, Indexing, Querying, Scoring, Victim, make_stores
from gradstore.errors import GradstoreError
from gradstore.store import writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        kills: number of kills of each command at random instants.
        samples: number of samples that `collect` collects.
    """

    kills: int
    samples: int


PRESETS = {"cpu": Preset(200, 24), "tiny": Preset(1, 4)}


@dataclass(frozen=True)
class Trial:
    """One kill, and what came of it.

    Attributes:
        killed: whether the process was still running.
        finished: pieces of its work that counted as finished when it was killed.
        damaged: those of them that were not whole.
        equal: whether the command, run again, made what an undisturbed one makes.
        seconds: time of its whole run; if it was killed, of the run that finished its work.
    """

    killed: bool
    finished: int
    damaged: int
    equal: bool
    seconds: float


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed.

    Attributes:
        content: all that it made.
        finished: its pieces that are left when it has ended.
        seconds: its time.
    """

    content: dict[str, Any]
    finished: int
    seconds: float


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Kill, check, run again, compare; write `faults.json`, `.md` and `.png` into `out`."""
    generator = random.Random(seed)  # noqa: S311
    here = Path.cwd()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stores(folder)
        victims: list[Victim] = [
            Collecting(_checkpoints(folder), preset.samples),
            Indexing(folder, replacing=False, name="index"),
            Indexing(folder, replacing=True, name="index, replacing one"),
            Scoring(folder),
            Querying(folder),
        ]
        try:
            for victim in victims:
                _undisturbed(victim, folder)  # to warm up
                whole = _undisturbed(victim, folder)
                trials, seconds = list[Trial](), whole.seconds
                while sum(trial.killed for trial in trials) < preset.kills:
                    trials.append(_trial(victim, folder, whole, generator.uniform(0, seconds)))
                    # Other load on the machine comes and goes.
                    last = trials[-1]
                    seconds = max(seconds, last.seconds) if last.killed else last.seconds
                rows.append(_row(f"{victim.name}: a random instant", trials, whole))
                if isinstance(victim, Collecting):
                    rows += _at_steps(victim, folder, whole)
        finally:
            os.chdir(here)
    kills = sum(row["killed"] for row in rows)
    tried = sum(row["trials"] for row in rows)
    equal = sum(row["equal"] for row in rows)
    damaged = sum(row["damaged"] for row in rows)
    targets = [
        Target(
            "trials that ended equal to an undisturbed run", f"all {tried}", equal, equal == tried
        ),
        Target("finished pieces that were not whole", "0", damaged, damaged == 0),
    ]
    inputs = {"kills": preset.kills, "samples": preset.samples, "seed": seed}
    figures = {"kills": kills, "table": rows}
    save(
        out, "faults", inputs=inputs, figures=figures, targets=targets, page=_page(figures, targets)
    )
    plot(out / "faults.png", figures)
    return targets


def _checkpoints(folder: Path) -> Path:
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler

    from benchmarks.worlds.models import build

    for number in range(2):
        torch.manual_seed(number)
        DDIMPipeline(build("tiny"), DDIMScheduler()).save_pretrained(
            folder / "run" / f"checkpoint-{number}"
        )
    return folder / "run"


def _start(victim: Victim) -> BaseProcess:
    process = forked.context().Process(target=_act, args=(victim, str(Path.cwd())))
    process.start()
    return process


def _act(victim: Victim, folder: str) -> None:
    os.chdir(folder)
    os.environ["GRADSTORE_PROGRESS"] = "0"
    logging.disable(logging.WARNING)
    victim.run()


@contextmanager
def _place(victim: Victim, folder: Path) -> Iterator[None]:
    """A new folder with the command's inputs, as the present one. All have one name."""
    place = folder / "trial"
    place.mkdir()
    os.chdir(place)
    victim.make()
    yield
    os.chdir(folder)
    shutil.rmtree(place)


def _undisturbed(victim: Victim, folder: Path) -> Undisturbed:
    with _place(victim, folder):
        begun = perf_counter()
        _start(victim).join()
        seconds = perf_counter() - begun
        content = victim.content()
        return Undisturbed(content, victim.finished(content)[0], seconds)


def _at_steps(victim: Collecting, folder: Path, whole: Undisturbed) -> list[dict[str, Any]]:
    """Trials in which it kills itself at a step, of the first shard, one amid and the last."""
    return [
        _row(
            f"{victim.name}: {step}",
            [
                _trial(replace(victim, die=(step, times)), folder, whole, None)
                for times in sorted({1, whole.finished // 2, whole.finished})
            ],
            whole,
        )
        for step in writer.STEPS
    ]


def _trial(victim: Victim, folder: Path, whole: Undisturbed, delay: float | None) -> Trial:
    """Kill a command after some seconds, or let it kill itself; then run it again."""
    with _place(victim, folder):
        begun = perf_counter()
        process = _start(victim)
        process.join(delay)
        seconds = perf_counter() - begun
        process.kill()
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        finished, damaged = victim.finished(whole.content)
        begun = perf_counter()
        again = _start(replace(victim, die=None) if isinstance(victim, Collecting) else victim)
        again.join()
        equal = _made(victim) == whole.content
        seconds = perf_counter() - begun if killed else seconds
        return Trial(killed, finished, damaged, equal, seconds)


def _made(victim: Victim) -> dict[str, Any] | None:
    """All that a command made; None if it is not there, because the command failed.

    A command that finished before it was killed may refuse to write its result again.
    """
    try:
        return victim.content()
    except (OSError, GradstoreError):
        return None


def _row(name: str, trials: list[Trial], whole: Undisturbed) -> dict[str, Any]:
    return {
        "where": name,
        "seconds_undisturbed": whole.seconds,
        "pieces": max(whole.finished, *(trial.finished for trial in trials)),
        "trials": len(trials),
        "killed": sum(trial.killed for trial in trials),
        "nothing_yet": sum(not trial.finished for trial in trials),
        "finished_then": sum(trial.finished for trial in trials),
        "damaged": sum(trial.damaged for trial in trials),
        "equal": sum(trial.equal for trial in trials),
    }


def plot(path: Path, figures: dict[str, Any]) -> None:
    """Plot the share of trials that ended equal, and the progress at the kill."""
    table = figures["table"]
    names = [f"{row['where']} ({row['trials']})" for row in table]
    figure, axes = canvas(1, 2, height=3.6)
    equal, finished = axes[0]
    good = [row["equal"] / row["trials"] for row in table]
    equal.barh(names, good, color="#4878a8", label="equal to an undisturbed one")
    equal.barh(names, [1 - one for one in good], left=good, color="#c44e52", label="not equal")
    equal.set_title("run again afterwards")
    equal.set_xlabel("share of trials")
    shares = [row["finished_then"] / row["trials"] / max(1, row["pieces"]) for row in table]
    finished.barh(names, shares, color="#4878a8")
    finished.set_xlim(0, 1)
    finished.set_title("finished when it was killed")
    finished.set_xlabel("share of its pieces, mean")
    for panel in axes[0]:
        panel.invert_yaxis()
    equal.set_ylabel("killed at (trials)")
    finished.set_yticklabels([])
    figure.legend(loc="outside lower left", ncols=2, fontsize="small")
    keep(figure, path)


def _page(figures: dict[str, Any], targets: list[Target]) -> str:
    lines = [
        "# Is anything lost if a command is killed at any point?",
        "",
        (
            f"`python -m benchmarks.faults`; {figures['kills']} kills, {processor()}. Each trial: "
            "SIGKILL ends a command, all that counts as finished is compared with its seal or with "
            "an undisturbed run, the command is run again, and all that it made is compared with "
            "an undisturbed run: data, seals, tables, pages, and the names of all files but those "
            "that `verify` tells and `vacuum` removes. Killing a process does not test a loss of "
            "power; the flushes to the disk before each seal protect against that."
        ),
        "",
        (
            "| killed at | pieces | seconds undisturbed | trials | killed | nothing finished yet "
            "| finished then | damaged | equal |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
        *[
            f"| {row['where']} | {row['pieces']} | {row['seconds_undisturbed']:.2f} | "
            f"{row['trials']} | {row['killed']} | {row['nothing_yet']} | "
            f"{row['finished_then']} | {row['damaged']} | {row['equal']} |"
            for row in figures["table"]
        ],
        "",
        (
            "A piece is a sealed shard (`collect`), a block of scores (`scores`), a block of "
            "answers or the table (`query`), an index (`index`)."
        ),
        "",
        target_table(targets),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
