"""How fast does a served page answer, alone and with 64 people at once?

Draws a store of random rows and stored queries, serves both, and asks for stored queries by HTTP:
one after another, then by 64 clients at once. No question repeats, so no answer is kept already.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Barrier, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np

import gradstore as gs
from benchmarks.harness.command import command
from benchmarks.harness.results import Target, notes, processor, save, spread, target_table
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows
from gradstore.store.format.spec import CheckpointSpec, Identity, LayoutSpec, PartSpec, StoreSpec
from gradstore.store.writer import create, write_shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.reader import Store

_CLIENTS: Final = 64
_SECONDS: Final = 0.2
_FACTOR: Final = 5.0
_SLOTS: Final = 10


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        samples: training samples.
        dim: length of a direction.
        alone: questions that are asked one after another.
        rounds: questions of each of the 64 clients.
        measure: the measure, whose index is built before.
    """

    samples: int
    dim: int
    alone: int
    rounds: int
    measure: str = "retrac"


PRESETS = {
    "cpu": Preset(100_000, 4096, 40, 3),
    "small": Preset(10_000, 1024, 20, 2),
    "tiny": Preset(300, 64, 6, 1),
}


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Measure, and write `serve.json` and `serve.md` into `out`."""
    with tempfile.TemporaryDirectory() as folder:
        store = _drawn(Path(folder) / "train.gradstore", preset.samples, 1, preset.dim, seed)
        count = 1 + preset.alone + _CLIENTS * preset.rounds
        asked = _drawn(Path(folder) / "asked.gradstore", count, _SLOTS, preset.dim, seed + 1)
        gs.build_index(store, preset.measure)
        with gs.serve(store, queries=asked, port=0) as server:
            names = list(asked.manifest.ids)
            _ask(server.url, names.pop(), preset.measure)  # opens the index
            single = [_ask(server.url, names.pop(), preset.measure) for _ in range(preset.alone)]
            together = _together(server.url, names, preset)
    failed = sum(not np.isfinite(one) for one in together)
    figures: dict[str, Any] = {
        "alone": spread(single),
        "together": spread([one for one in together if np.isfinite(one)]),
        "p95": float(np.quantile(together, 0.95)),
        "failed": failed,
    }
    ratio = figures["p95"] / figures["alone"]["median"]
    targets = [
        Target(
            "a stored query alone, median seconds",
            f"≤ {_SECONDS:g}",
            figures["alone"]["median"],
            figures["alone"]["median"] <= _SECONDS,
        ),
        Target(
            f"{_CLIENTS} clients at once, p95 / a query alone",
            f"≤ {_FACTOR:g}",
            ratio,
            ratio <= _FACTOR,
        ),
        Target(f"{_CLIENTS} clients at once, failures", "0", failed, failed == 0),
    ]
    page = _page(preset, figures, targets)
    save(out, "serve", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    return targets


def _ask(url: str, name: str, measure: str) -> float:
    """Seconds until the answer is read; infinite if there is none."""
    start = perf_counter()
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=300)
    try:
        connection.request("GET", f"/api/answer?query={name}&measure={measure}&k=20")
        reply = connection.getresponse()
        reply.read()
        return perf_counter() - start if reply.status == 200 else float("inf")
    except OSError:
        return float("inf")
    finally:
        connection.close()


def _together(url: str, names: Sequence[str], preset: Preset) -> list[float]:
    """Seconds of every question of 64 clients, each of which asks one after another."""
    begin, found = Barrier(_CLIENTS), list[float]()

    def client(own: Sequence[str]) -> None:
        begin.wait()
        found.extend(_ask(url, name, preset.measure) for name in own)

    threads = [Thread(target=client, args=(names[number::_CLIENTS],)) for number in range(_CLIENTS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def _drawn(path: Path, samples: int, slots: int, dim: int, seed: int) -> Store:
    """A store of random unit rows at one checkpoint."""
    layout = Layout(samples=samples, slots=slots, dim=dim, dtype="float16", chunk_samples=1,
                    shard_samples=2048)  # fmt: skip
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
    generator = np.random.default_rng(seed)
    for shard in range(layout.shards):
        start, stop = layout.span(shard)
        shape = (stop - start, slots)
        direction = generator.standard_normal((*shape, dim), np.float32)
        direction /= np.linalg.norm(direction, axis=2, keepdims=True)
        steps = np.broadcast_to(np.arange(slots, dtype=np.int32) * (1000 // slots), shape)
        norms = generator.lognormal(0, 1, shape).astype(np.float32)
        rows = Rows(direction.astype(np.float16), norms, norms, np.ascontiguousarray(steps))
        write_shard(store.parts[0], 0, shard, rows)
    return store


def _page(preset: Preset, figures: dict[str, Any], targets: Sequence[Target]) -> str:
    lines = [
        "# How fast does a served page answer?",
        "",
        (
            f"`python -m benchmarks.serve`; {processor()}; {preset.samples:,} drawn samples of "
            f"{preset.dim:,} dimensions, stored queries of {_SLOTS} timesteps, 20 samples on each "
            f"side with their errors, under {preset.measure} with its index."
        ),
        "",
        target_table(targets),
        "",
        "| asked | median, ms | range, ms |",
        "|---|---|---|",
    ]
    for name, label in (("alone", "alone"), ("together", f"by {_CLIENTS} at once")):
        one = {key: 1000 * value for key, value in figures[name].items()}
        lines.append(f"| {label} | {one['median']:.0f} | {one['low']:.0f} … {one['high']:.0f} |")
    lines.append(f"\np95 of {_CLIENTS} at once: {1000 * figures['p95']:.0f} ms.")
    return "\n".join([*lines, "", notes("serve")])


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
