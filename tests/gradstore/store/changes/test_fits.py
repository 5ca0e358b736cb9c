"""Seals name the fit of a metric that their rows went through, and changes keep to it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from gradstore import delete, merge, open_store, vacuum
from gradstore.errors import FingerprintError, StoreError
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.spec import CheckpointSpec, LayoutSpec, PartSpec
from gradstore.store.metrics import metric_key, metric_name
from gradstore.store.reader import Store
from gradstore.store.verify import unseal_unfit, verify
from gradstore.store.writer import create, write_shard
from tests.support.written_stores import some_rows, spec

FIT, OTHER = b"one fit", b"another fit"


def digest(fit: bytes) -> str:
    return sha256(fit).hexdigest()


def fitted(path: Path, ids: list[str], named: bytes = FIT, sealed: bytes = FIT) -> Store:
    """A store whose root names one fit, with seals that name one."""
    checkpoints = [
        CheckpointSpec(path=str(n), eta=1, number=n, metric=metric_name(named, 0)) for n in (0, 1)
    ]
    layout = Layout(len(ids), 2, 6, "float16", 1, 2)
    parts = [PartSpec(layout=LayoutSpec.of(layout))]
    made = create(path, spec(parts=parts, checkpoints=checkpoints), Manifest(ids, ["0"] * len(ids)))
    made.objects.write(metric_key(metric_name(named, 0)), named)
    for number in made.numbers:
        for shard in range(layout.shards):
            low, high = layout.span(shard)
            rows = some_rows(high - low, shard)
            write_shard(made.parts[0], number, shard, rows, metric=digest(sealed))
    return open_store(path)


def test_rows_of_another_fit_are_not_read(tmp_path: Path) -> None:
    store = fitted(tmp_path / "s.gradstore", ["a", "b", "c"], sealed=OTHER)
    with pytest.raises(StoreError, match="another fit of the metric"):
        store.rows(0)
    assert {str(report.problem) for report in verify(store)} == {
        "its rows went through another fit of the metric"
    }


def test_vacuum_and_merge_keep_the_fit(tmp_path: Path) -> None:
    store = fitted(tmp_path / "s.gradstore", ["a", "b", "c"])
    store = vacuum(delete(store, ["b"]))
    store = merge(store, fitted(tmp_path / "o.gradstore", ["p", "q"]))
    assert len(store.rows(1).norm) == 4
    assert {report.problem for report in verify(store)} == {None}
    assert {fit for part in store.parts for fit in part.metrics(0)} == {digest(FIT)}


def test_stores_of_different_fits_are_not_merged(tmp_path: Path) -> None:
    store = fitted(tmp_path / "s.gradstore", ["a"])
    with pytest.raises(FingerprintError, match="different fits"):
        merge(store, fitted(tmp_path / "o.gradstore", ["p"], named=OTHER, sealed=OTHER))


def test_shards_of_an_earlier_fit_are_collected_again(tmp_path: Path) -> None:
    """As when an interrupted `add-checkpoint` fits its metric anew."""
    (part,) = fitted(tmp_path / "s.gradstore", ["a", "b", "c"]).parts
    unseal_unfit(part, 0)
    assert part.sealed(0) == {0, 1}
    part.fits[0] = digest(OTHER)
    unseal_unfit(part, 0)
    assert part.sealed(0) == set()
