"""Is anything lost if a command is killed or stopped at any point?

Kills real commands (SIGKILL) at random instants, and `collect` at every named step of writing a
shard. Checks that all that counts as finished is whole, runs the command again, and compares what
it made with an undisturbed run byte by byte. Also stops each command at random instants (SIGSTOP),
runs it a second time meanwhile, and lets the first go on.

Trials are kept in the cache folder under a hash of the code, and the page is made from all of them:
if a run is cut off, the same command goes on.
"""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import gradstore
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, notes, processor, save, target_table
from benchmarks.worlds.serving import Serving, make_served
from benchmarks.worlds.setting import Folders, command
from benchmarks.worlds.trials import Trial, Trials, Undisturbed, killed, stopped, undisturbed
from benchmarks.worlds.victims import Collecting, Indexing, Querying, Scoring, Victim, make_stores
from gradstore.store import writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        kills: number of kills of each command at random instants; fewer of those that take long.
        stops: number of stops of each command at random instants.
        samples: number of samples that `collect` collects.
    """

    kills: Mapping[str, int]
    stops: int
    samples: int


_MANY: Final = {
    "collect": 110,
    "index": 200,
    "index, replacing one": 200,
    "scores": 200,
    "query": 160,
    "serve": 130,
}
PRESETS = {"cpu": Preset(_MANY, 10, 24), "tiny": Preset(dict.fromkeys(_MANY, 1), 1, 4)}
# Trials of a command before the next one has its turn.
_TURN: Final = 5


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Disturb, check, run again, compare; write `faults.json`, `.md` and `.png` into `out`."""
    here, out = Path.cwd(), out.resolve()
    cache = folders.cache.resolve() / f"faults-{preset.samples}-{_code()}"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_stores(folder)
        collecting = Collecting(_checkpoints(folder), preset.samples)
        make_served(folder / "served", collecting)
        victims: list[Victim] = [
            collecting,
            Indexing(folder, replacing=False, name="index"),
            Indexing(folder, replacing=True, name="index, replacing one"),
            Scoring(folder),
            Querying(folder),
            Serving(collecting.checkpoints, folder / "served"),
        ]
        try:
            undisturbed(collecting, folder)  # to warm up
            plans = list[_Plan]()
            for victim in victims:
                whole = undisturbed(victim, folder)
                for how, trial, count in (
                    ("killed", killed, preset.kills[victim.name]),
                    ("stopped", stopped, preset.stops),
                ):
                    trials = Trials(cache, f"{victim.name}: {how} at a random instant")
                    plans.append(_Plan(trials, count, trial, victim, folder, whole))
                if isinstance(victim, Collecting):
                    plans += _at_steps(victim, folder, whole, cache)
            while sum(plan.turn() for plan in plans):
                write(plans, preset, out)
            return write(plans, preset, out)
        finally:
            os.chdir(here)


def _code() -> str:
    """Hash of the code that is tried."""
    digest = sha256()
    for package in ("gradstore", "indexer", "query"):
        for file in sorted((Path(gradstore.__file__).parents[1] / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _checkpoints(folder: Path) -> Path:
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    for number in range(2):
        torch.manual_seed(number)
        model = UNet2DModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(4, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=2,
        )
        DDIMPipeline(model, DDIMScheduler()).save_pretrained(
            folder / "run" / f"checkpoint-{number}"
        )
    return folder / "run"


@dataclass
class _Plan:
    """Trials that are to be done.

    Attributes:
        trials: those that are done.
        count: number of processes that are to be met running.
        trial: does one.
        victim: what is disturbed.
        folder: folder of the trials.
        whole: its undisturbed run.
    """

    trials: Trials
    count: int
    trial: Callable[[Victim, Path, Undisturbed, Callable[[], float] | None], Trial]
    victim: Victim
    folder: Path
    whole: Undisturbed

    def turn(self) -> bool:
        """Do some trials, and return whether more are to be done."""
        generator = random.Random(time_ns())  # noqa: S311
        seconds = self.whole.seconds
        for _ in range(_TURN):
            if self.trials.hit >= self.count:
                return False
            instant = partial(generator.uniform, 0, seconds)
            last = self.trials.add(self.trial(self.victim, self.folder, self.whole, instant))
            # Other load on the machine comes and goes.
            seconds = max(seconds, last.seconds) if last.hit else last.seconds
        return self.trials.hit < self.count


@dataclass
class _Steps(_Plan):
    """Kills of `collect` by itself at a step of the first shard, of one amid, and of the last."""

    step: str = ""

    def turn(self) -> bool:
        """See `_Plan`."""
        for time in _times(self.whole)[len(self.trials.all) :]:
            victim = replace(self.victim, die=(self.step, time))  # type: ignore[type-var]
            self.trials.add(self.trial(victim, self.folder, self.whole, None))
        return False


def _times(whole: Undisturbed) -> list[int]:
    return sorted({1, whole.finished // 2, whole.finished})


def _at_steps(victim: Collecting, folder: Path, whole: Undisturbed, cache: Path) -> list[_Plan]:
    count = len(_times(whole))
    return [
        _Steps(Trials(cache, f"{victim.name}: {step}"), count, killed, victim, folder, whole, step)
        for step in writer.STEPS
    ]


def write(plans: list[_Plan], preset: Preset, out: Path) -> list[Target]:
    """Write the page of all trials so far."""
    rows = [_row(plan) for plan in plans if plan.trials.all]
    total = {name: sum(row[name] for row in rows) for name in ("trials", "equal", "damaged")}
    kills = sum(row["hit"] for row in rows if "stopped" not in row["where"])
    stops = sum(row["hit"] for row in rows) - kills
    wanted = sum(plan.count for plan in plans if plan.trial is killed)
    targets = [
        Target("kills", f"≥ {wanted}", kills, kills >= wanted),
        Target(
            "trials that ended equal to an undisturbed run",
            f"all {total['trials']}",
            total["equal"],
            total["equal"] == total["trials"],
        ),
        Target("finished pieces that were not whole", "0", total["damaged"], not total["damaged"]),
    ]
    figures = {"kills": kills, "stops": stops, "table": rows}
    page = _page(figures, targets)
    save(out, "faults", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    plot(out / "faults.png", figures)
    return targets


def _row(plan: _Plan) -> dict[str, Any]:
    trials = plan.trials.all
    return {
        "where": plan.trials.where,
        "seconds_undisturbed": plan.whole.seconds,
        "trials": len(trials),
        "hit": plan.trials.hit,
        "nothing_yet": sum(trial.nothing for trial in trials),
        "finished_then": sum(trial.finished for trial in trials),
        "damaged": sum(trial.damaged for trial in trials),
        "equal": sum(trial.equal for trial in trials),
    }


def plot(path: Path, figures: dict[str, Any]) -> None:
    """Plot the share of trials that ended equal, and the progress at the kill."""
    table = figures["table"]
    names = [f"{row['where']} ({row['trials']})" for row in table]
    figure, axes = canvas(1, 2, height=4.8)
    equal, finished = axes[0]
    good = [row["equal"] / row["trials"] for row in table]
    equal.barh(names, good, color="#4878a8", label="equal to an undisturbed one")
    equal.barh(names, [1 - one for one in good], left=good, color="#c44e52", label="not equal")
    equal.set_title("at the end")
    equal.set_xlabel("share of trials")
    counts = [row["hit"] for row in table]
    none = [row["nothing_yet"] for row in table]
    finished.barh(names, none, color="#bbbbbb", label="nothing was finished yet")
    some = np.subtract(counts, none)
    finished.barh(names, some, left=none, color="#4878a8", label="some work was finished")
    finished.set_title("kills or stops")
    finished.legend(fontsize="small")
    for panel in axes[0]:
        panel.invert_yaxis()
    equal.set_ylabel("disturbed (trials)")
    finished.set_yticklabels([])
    equal.legend(fontsize="small")
    keep(figure, path)


def _page(figures: dict[str, Any], targets: list[Target]) -> str:
    lines = [
        "# Is anything lost if a command is killed or stopped at any point?",
        "",
        (
            f"`python -m benchmarks.faults`; {figures['kills']:,} kills and {figures['stops']:,} "
            f"stops, {processor()}. Killed: SIGKILL ends a command, all that counts as finished is "
            "compared with its seal or with an undisturbed run, and the command is run again: it "
            "is killed up to six times as it goes on, until it ends. Then all that it made is "
            "compared with an undisturbed run: data, seals, tables, pages, "
            "answers, and the names of all files but those that `verify` tells and `vacuum` "
            "removes. Stopped: SIGSTOP holds a command, it is run a second time beside it, then "
            "the first goes on. Both must succeed, or one of them refuse because the other is at "
            "work or has finished; what is there at the end is compared likewise. Killing a "
            "process does not test a loss of power; the flushes to the disk before each seal "
            "protect against that."
        ),
        "",
        (
            "| disturbed | seconds undisturbed | trials | kills or stops | nothing finished yet "
            "| pieces finished then | damaged | trials that ended equal |"
        ),
        "|---|---|---|---|---|---|---|---|",
        *[
            f"| {row['where']} | {row['seconds_undisturbed']:.2f} | "
            f"{row['trials']} | {row['hit']} | {row['nothing_yet']} | "
            f"{row['finished_then']} | {row['damaged']} | {row['equal']} |"
            for row in figures["table"]
        ],
        "",
        (
            "A piece is a sealed shard (`collect`), a block of scores (`scores`), a block of "
            "answers or the table (`query`), an index (`index`), an answer that came (`serve`)."
        ),
        "",
        target_table(targets),
        "",
        notes("faults"),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
