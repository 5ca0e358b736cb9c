"""Commands in processes of their own, which stand still at a chosen moment until they go on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep

from benchmarks.harness import forked

_SECONDS = 120


def stands_still(process: BaseProcess) -> bool:
    """Wait until a process stopped itself; False if it ended."""
    until = monotonic() + _SECONDS
    while process.is_alive():
        state = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "T":
            return True
        assert monotonic() < until
        sleep(0.01)
    return False


def go_on(process: BaseProcess) -> None:
    """Let a process that stands still go on."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)


@contextmanager
def commanded(words: list[str], place: Path, at: int | None) -> Iterator[BaseProcess]:
    """A process with a command, which stops itself when it opens its n-th file below a folder.

    Its output is written into `place.out`, and the number of the files it opened into `place.count`
    when it ends.
    """
    process = forked.context().Process(target=_run, args=(words, place, at))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run(words: list[str], place: Path, at: int | None) -> None:
    import torch

    from query import cli

    torch.set_num_threads(1)
    output = os.open(place.with_suffix(".out"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["gradstore", *words]
    count = 0

    def heard(event: str, given: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open" and str(given[0]).startswith(str(place)) and at != count:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(heard)
    try:
        cli.main()
    finally:
        counted = count
        place.with_suffix(".count").write_text(str(counted))
