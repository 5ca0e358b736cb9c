"""Trials in which a command is killed or stopped while it runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import forked
from benchmarks.worlds.victims import Collecting
from gradstore.errors import GradstoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from multiprocessing.process import BaseProcess

    from benchmarks.worlds.victims import Victim

    Instant = Callable[[], float]

# Exit status of a command that refuses.
_REFUSED: Final = 3
# Seconds until a signal has its effect.
_MOMENT: Final = 0.05
# Kills of one command before it may end.
_MOST_KILLS: Final = 6


@dataclass(frozen=True)
class Trial:
    """A command that was disturbed, and what came of it.

    Attributes:
        hit: how often its process was still running.
        nothing: of these, how often no piece of its work was finished.
        finished: pieces that counted as finished then, of all times.
        damaged: those of them that were not whole.
        equal: whether there is at the end what an undisturbed run makes, and each run succeeded, or
            refused because another one had finished or was at work.
        seconds: time of its last run.
        differs: what differed, or the exit statuses, if it was not equal.
    """

    hit: int
    nothing: int
    finished: int
    damaged: int
    equal: bool
    seconds: float
    differs: str = ""


class Trials:
    """Trials of one kind, kept in a file, one a line.

    Args:
        folder: folder of the file.
        where: what is disturbed, and how.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self.where = where
        self._file = folder / f"{where.replace(': ', '-').replace(' ', '-')}.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.all = list[Trial]()
        for line in lines:
            with suppress(json.JSONDecodeError):  # the last one may be cut off
                self.all.append(Trial(**json.loads(line)))

    @property
    def hit(self) -> int:
        """How often a process was met running."""
        return sum(trial.hit for trial in self.all)

    def add(self, trial: Trial) -> Trial:
        """Keep a trial."""
        self.all.append(trial)
        with self._file.open("a") as file:
            file.write("\n" + json.dumps(asdict(trial)))
        return trial


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


def _start(victim: Victim) -> BaseProcess:
    process = forked.context().Process(target=_act, args=(victim, str(Path.cwd())))
    process.start()
    return process


def _act(victim: Victim, folder: str) -> None:
    os.chdir(folder)
    os.environ["GRADSTORE_PROGRESS"] = "0"
    logging.disable(logging.WARNING)
    try:
        victim.run()
    except GradstoreError:
        sys.exit(_REFUSED)


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


def undisturbed(victim: Victim, folder: Path) -> Undisturbed:
    """Run a command to its end."""
    with _place(victim, folder):
        begun = perf_counter()
        _start(victim).join()
        seconds = perf_counter() - begun
        content = victim.content()
        return Undisturbed(content, victim.finished(content)[0], seconds)


def killed(victim: Victim, folder: Path, whole: Undisturbed, instant: Instant | None) -> Trial:
    """Kill a command at some instants, each time as it goes on, or let it kill itself once.

    At last it ends by itself, because it was faster or was killed often enough.
    """
    with _place(victim, folder):
        seen, exitcode = list[tuple[int, int]](), -signal.SIGKILL
        while exitcode == -signal.SIGKILL:
            last = len(seen) == (_MOST_KILLS if instant else 1)
            begun = perf_counter()
            process = _start(_undying(victim) if last else victim)
            process.join(None if last or instant is None else instant())
            process.kill()
            process.join()
            seconds, exitcode = perf_counter() - begun, process.exitcode or 0
            if exitcode == -signal.SIGKILL:
                seen.append(victim.finished(whole.content))
        # A command that had finished may refuse to write its result again.
        differs = _differing(victim, whole, {exitcode} - {_REFUSED})
        return _trial(seen, differs, seconds)


def _undying(victim: Victim) -> Victim:
    return replace(victim, die=None) if isinstance(victim, Collecting) else victim


def _differing(victim: Victim, whole: Undisturbed, statuses: Collection[int | None]) -> str:
    """Wrong exit statuses, or what is not as in an undisturbed run; empty if all is well."""
    if any(statuses):
        return f"status {list(statuses)}"
    made = _made(victim)
    if made is None:
        return "missing"
    return ", ".join(name for name, value in whole.content.items() if made.get(name) != value)


def _trial(seen: Sequence[tuple[int, int]], differs: str, seconds: float) -> Trial:
    return Trial(
        hit=len(seen),
        nothing=sum(not finished for finished, _ in seen),
        finished=sum(finished for finished, _ in seen),
        damaged=sum(damaged for _, damaged in seen),
        equal=not differs,
        seconds=seconds,
        differs=differs,
    )


def stopped(victim: Victim, folder: Path, whole: Undisturbed, instant: Instant | None) -> Trial:
    """Stop a command at some instant, run it beside, and let it go on."""
    with _place(victim, folder):
        begun = perf_counter()
        process = _start(victim)
        process.join(None if instant is None else instant())
        seconds = perf_counter() - begun
        seen = list[tuple[int, int]]()
        if _signal(process, signal.SIGSTOP):
            seen.append(victim.finished(whole.content))
        second = _start(victim)
        second.join(2 * whole.seconds)  # it may wait for the first
        _signal(process, signal.SIGCONT)
        for one in (process, second):
            one.join()
        statuses = {process.exitcode, second.exitcode}
        if 0 in statuses:
            statuses.discard(_REFUSED)
        differs = _differing(victim, whole, statuses)
        return _trial(seen, differs, whole.seconds if seen else seconds)


def _signal(process: BaseProcess, number: signal.Signals) -> bool:
    """Send a signal, and return whether the process stands still then."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process.pid or 0, number)
        sleep(_MOMENT)
        return Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    return False


def _made(victim: Victim) -> dict[str, Any] | None:
    """All that a command made; None if it is not there."""
    try:
        return victim.content()
    except (OSError, GradstoreError):
        return None
