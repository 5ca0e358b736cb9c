"""How fast does a served page answer, alone and with 64 people at once?

Draws a store and stored queries, serves them as `gradstore serve` does, in a process of its own,
and asks by HTTP: stored queries as the page first shows them, which the server has answered ahead,
and new questions, which it must search. Each kind is asked one after another, then by 64 clients at
once, each of which asks other questions than all others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Barrier, Thread
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

import numpy as np

import gradstore as gs
from benchmarks.harness.command import command
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, notes, processor, save, spread, target_table
from benchmarks.worlds.vectors import Spectrum
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows
from gradstore.store.format.spec import CheckpointSpec, Identity, LayoutSpec, PartSpec, StoreSpec
from gradstore.store.writer import create, write_shard
from query.queries import Queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradstore.store.reader import Store
    from indexer import SearchIndex

_CLIENTS: Final = 64
_SECONDS: Final = 0.2
_FACTOR: Final = 5.0
_SLOTS: Final = 10
# Samples on each side: as the page first asks, which is answered ahead, and as no page did yet.
_KINDS: Final = {"ahead": 20, "new": 21}
# A server that is that idle has loaded what its first questions need.
_QUIET_SECONDS: Final = 1.0
# Real directions hold so much of their square in the first components, and the first ten so much.
_COMPONENTS: Final = 256
_SHARE: Final = 0.91
_DECAY: Final = 1.3


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        samples: training samples.
        slots: rows of each.
        dim: length of a direction.
        alone: questions that are asked one after another.
        rounds: questions of each of the 64 clients.
        measure: the measure, whose index is built before.
    """

    samples: int
    slots: int
    dim: int
    alone: int
    rounds: int
    measure: str = "retrac"


PRESETS = {
    "cpu": Preset(100_000, 1, 4096, 40, 3),
    "ten": Preset(100_000, 10, 1024, 40, 3),
    "small": Preset(10_000, 1, 1024, 20, 2),
    "tiny": Preset(300, 1, 64, 6, 1),
}


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Measure, and write `serve.json`, `.md` and `.png` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        spectrum = _spectrum(preset.dim, seed)
        train, asked = Path(folder) / "train.gradstore", Path(folder) / "asked.gradstore"
        store = _drawn(train, spectrum, preset.samples, preset.slots, seed)
        count = 2 + preset.alone + _CLIENTS * preset.rounds
        queries = _drawn(asked, spectrum, count, _SLOTS, seed + 1)
        index = gs.build_index(store, preset.measure)
        searched = _searched(index, queries, preset)
        names = list(queries.manifest.ids)[1:]  # the server prepares the first by itself
        start = perf_counter()
        with _Served(train, asked) as server:
            first = perf_counter() - start + server.ask(names.pop(), preset.measure, k=1)
            server.settle()
            before = server.memory("VmRSS")
            own = names[: preset.alone]
            alone, together = {}, {}
            for kind, k in _KINDS.items():
                alone[kind] = [server.ask(one, preset.measure, k) for one in own]
                together[kind] = _together(server, names[preset.alone :], preset, k)
            peak = server.memory("VmHWM")
    answered = {kind: [one for one in some if one < np.inf] for kind, some in together.items()}
    figures: dict[str, Any] = {
        "first": first,
        "alone": {kind: spread(some) for kind, some in alone.items()},
        "together": {kind: spread(some or [np.inf]) for kind, some in answered.items()},
        "p95": {kind: float(np.quantile(some, 0.95)) for kind, some in together.items()},
        "failed": sum(map(len, together.values())) - sum(map(len, answered.values())),
        "searched": searched,
        "memory": {"open": before, "peak": peak},
    }
    targets = _targets(figures)
    page = _page(preset, figures, targets)
    save(out, "serve", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    _plot(
        out / "serve.png",
        {
            "answered ahead, alone": alone["ahead"],
            "new, alone": alone["new"],
            f"answered ahead, {_CLIENTS} at once": answered["ahead"],
            f"new, {_CLIENTS} at once": answered["new"],
        },
    )
    return targets


def _targets(figures: dict[str, Any]) -> list[Target]:
    single, p95 = {kind: one["median"] for kind, one in figures["alone"].items()}, figures["p95"]
    at_once = [
        Target(f"{_CLIENTS} at once, p95 {what}", f"≤ {_FACTOR:g}", p95[kind] / single[by],
               p95[kind] <= _FACTOR * single[by])
        for what, kind, by in (
            ("of stored queries / one that is searched", "ahead", "new"),
            ("of stored queries / one answered ahead", "ahead", "ahead"),
            ("of new questions / a new one", "new", "new"),
        )
    ]  # fmt: skip
    return [
        Target("a question that is searched, alone, median seconds", f"≤ {_SECONDS:g}",
               single["new"], single["new"] <= _SECONDS),
        *at_once,
        Target(f"{_CLIENTS} at once, failures", "0", figures["failed"], figures["failed"] == 0),
    ]  # fmt: skip


def _searched(index: SearchIndex, queries: Store, preset: Preset) -> dict[str, float]:
    """Seconds of the search alone, without a server: one query, and as many as there are clients.

    Nothing that answers all clients can be faster than the search of all their questions.
    """
    every, found = Queries.of(queries), {}
    for name, size in (("alone", 1), ("together", min(_CLIENTS, len(every)))):
        seconds = []
        last = len(every) - size
        for start in (0, 0, min(size, last), last):  # the first loads what it needs
            features = every.part(start, start + size).features(index.features)
            began = perf_counter()
            index.search(features, min(20, preset.samples))
            seconds.append(perf_counter() - began)
        found[name] = float(np.median(seconds[1:]))
    return found


class _Served:
    """`gradstore serve` in a process of its own."""

    def __init__(self, train: Path, asked: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [
                sys.executable, "-c", "from query.cli import main; main()", "serve", str(train),
                "--queries", str(asked), "--port", "0", "--no-browser",
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(gs.__file__).parents[1])},
        )  # fmt: skip
        line = self._process.stdout.readline() if self._process.stdout else ""
        place = urlsplit(line.rpartition(" ")[2].strip())
        if place.port is None:
            self._process.kill()
            raise RuntimeError(f"no server was started: {line!r}")
        self._port = place.port

    def __enter__(self) -> _Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def ask(self, name: str, measure: str, k: int) -> float:
        """Seconds until the answer is read; infinite if there is none."""
        start = perf_counter()
        asked = urlencode({"query": name, "measure": measure, "k": k})
        connection = HTTPConnection("127.0.0.1", self._port, timeout=300)
        try:
            connection.request("GET", f"/api/answer?{asked}")
            reply = connection.getresponse()
            reply.read()
            return perf_counter() - start if reply.status == 200 else float("inf")
        except OSError:
            return float("inf")
        finally:
            connection.close()

    def settle(self) -> None:
        """Wait until the server has nothing to do."""
        busy, since = self._busy(), perf_counter()
        while perf_counter() - since < _QUIET_SECONDS:
            sleep(0.2)
            now = self._busy()
            if now > busy + 1:
                busy, since = now, perf_counter()

    def memory(self, name: str) -> int:
        """Bytes of memory, now (VmRSS) or at most (VmHWM)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (one for one in status.splitlines() if one.startswith(f"{name}:"))
        return 1024 * int(line.split()[1])

    def _busy(self) -> int:
        """Ticks of processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


def _together(server: _Served, names: Sequence[str], preset: Preset, k: int) -> list[float]:
    """Seconds of every question of 64 clients, each of which asks one after another."""
    begin, found = Barrier(_CLIENTS), list[float]()

    def client(own: Sequence[str]) -> None:
        begin.wait()
        found.extend(server.ask(name, preset.measure, k) for name in own)

    threads = [Thread(target=client, args=(names[number::_CLIENTS],)) for number in range(_CLIENTS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def _spectrum(dim: int, seed: int) -> Spectrum:
    """Second moments as those of real directions: see benchmarks/results/search.md."""
    draws = np.random.default_rng(seed)
    count = min(_COMPONENTS, dim // 2)
    basis = np.linalg.qr(draws.standard_normal((dim, count)))[0].T
    shares = np.arange(1, count + 1) ** -_DECAY
    scale = np.sqrt(_SHARE * shares / shares.sum())
    return Spectrum(
        (scale[:, None] * basis).astype(np.float32),
        float(np.sqrt((1 - _SHARE) / dim)),
        draws.lognormal(0, 1, 5000).astype(np.float32),
    )


def _drawn(path: Path, spectrum: Spectrum, samples: int, slots: int, seed: int) -> Store:
    """A store of drawn rows at one checkpoint."""
    dim = spectrum.components.shape[1]
    layout = Layout.choose(samples, slots, dim, "float16")
    identity: Identity = {
        "model": {"num_parameters": 10**6},
        "projector": {"name": "sjlt"},
        "checkpoints": [{"weights": "drawn", "number": 0}],
    }
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        parts=[PartSpec(layout=LayoutSpec.of(layout))],
        checkpoints=[CheckpointSpec(path="drawn", eta=1.0, number=0)],
    )
    manifest = Manifest(
        [f"s{row}" for row in range(samples)], [f"{row:032x}" for row in range(samples)]
    )
    store = create(path, spec, manifest)
    for shard in range(layout.shards):
        start, stop = layout.span(shard)
        shape = (stop - start, slots)
        drawn = spectrum.rows((stop - start) * slots, seed * 1_000_003 + shard)
        steps = np.broadcast_to(np.arange(slots, dtype=np.int32) * (1000 // slots), shape)
        rows = Rows(
            drawn.direction.reshape(*shape, dim),
            drawn.norm.reshape(shape).astype(np.float32),
            drawn.loss.reshape(shape),
            np.ascontiguousarray(steps),
        )
        write_shard(store.parts[0], 0, shard, rows)
    return store


def _page(preset: Preset, figures: dict[str, Any], targets: Sequence[Target]) -> str:
    memory, searched = figures["memory"], figures["searched"]
    lines = [
        "# How fast does a served page answer?",
        "",
        (
            f"`python -m benchmarks.serve`; {processor()}; {preset.samples:,} drawn samples of "
            f"{preset.slots} rows of {preset.dim:,} dimensions, {_SHARE} of whose square lies in "
            f"{_COMPONENTS} components; stored queries of {_SLOTS} timesteps; 20 samples on each "
            f"side with their errors, under {preset.measure} with its index. The server is a "
            "process of its own; the clients share its machine."
        ),
        "",
        target_table(targets),
        "",
        "| asked | median, ms | range, ms | p95, ms |",
        "|---|---|---|---|",
        *_rows(figures),
        "",
        (
            f"The search alone, without a server: {1000 * searched['alone']:.1f} ms for one "
            f"question, {1000 * searched['together']:.0f} ms for {_CLIENTS} together. From the "
            "start of the "
            f"command to its first answer: {figures['first']:.1f} s. Memory of the server: "
            f"{memory['open'] / 1e9:.2f} GB when it is ready, {memory['peak'] / 1e9:.2f} GB at "
            "most."
        ),
        "",
        "![Times](serve.png)",
        "",
        notes("serve"),
    ]
    return "\n".join(lines)


def _rows(figures: dict[str, Any]) -> Iterator[str]:
    for kind, what in (("ahead", "a stored query, answered ahead"), ("new", "a new question")):
        for name, by in (("alone", "alone"), ("together", f"by {_CLIENTS} at once")):
            one = {key: 1000 * value for key, value in figures[name][kind].items()}
            p95 = f"{1000 * figures['p95'][kind]:.1f}" if name == "together" else ""
            yield (
                f"| {what}, {by} | {one['median']:.1f} | {one['low']:.1f} … {one['high']:.1f} | "
                f"{p95} |"
            )


def _plot(path: Path, seconds: dict[str, Sequence[float]]) -> None:
    """Shares of questions that were answered within so many milliseconds."""
    figure, axes = canvas(1, 1, width=7)
    for name, values in seconds.items():
        axes[0, 0].step(
            1000 * np.sort(values), np.arange(1, len(values) + 1) / len(values), label=name
        )
    axes[0, 0].set(xscale="log", xlabel="milliseconds", ylabel="share answered")
    axes[0, 0].legend()
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
