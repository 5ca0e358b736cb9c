"""Any content of a store's files is read, or refused by name, in bounded memory and time."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstore import delete, open_store, vacuum
from gradstore.errors import GradstoreError, NotAStoreError, SearchIndexError, StoreError
from gradstore.store import part as parts
from gradstore.store.format.manifest import manifest_spec
from gradstore.store.format.root import root_digest
from gradstore.store.objects.protocol import digest
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from indexer import build_index, open_index
from indexer.approximate.codes import code_bytes
from indexer.artifact import file_hash
from indexer.measures.trak import Trak
from indexer.trak_kernel import build_kernel, fitted_by_kernel
from query.info import examine
from tests.support.memory import bounded
from tests.support.written_stores import edit_root, filled, grown

MOST_BYTES = 512 << 20  # unbounded, these take gigabytes
MOST_SECONDS = 20.0


@cache
def template() -> Path:
    """A store with two parts and a deletion, and an index of it."""
    folder = Path(tempfile.mkdtemp())
    delete(grown(filled(folder / "s.gradstore"), ["a", "b"]), ["s4"])

    def older(root: Any) -> None:
        for part in root["parts"]:
            # Otherwise a changed manifest is not parsed.
            part["manifest_sha256"] = part["manifest"] = None

    change_root(folder, older)
    build_index(open_store(folder / "s.gradstore"), "retrac")
    return folder


def use(folder: Path) -> int:
    """Run all reads; return how many raised, and require the right errors."""
    refused = 0
    try:
        store = open_store(folder / "s.gradstore")
    except GradstoreError:
        return 1

    def changes(change: Any) -> None:
        if any(file.is_fifo() for file in folder.rglob("*")):
            return  # not copyable
        scratch = Path(shutil.copytree(folder, folder.parent / "copy", symlinks=True))
        try:
            change(open_store(scratch / "s.gradstore"))
        finally:
            shutil.rmtree(scratch)

    for job in (
        lambda: (store.manifest.hash(), *map(list, store.manifest.metadata.values())),
        lambda: [store.rows(k) for k in range(store.checkpoints)],
        lambda: store.take(0, [0, 5]),
        lambda: store.column("norm", 0),
        lambda: list(store.iter_rows(0)),
        lambda: [str(report) for report in verify(store)],
        lambda: examine(store),
        lambda: open_store(folder / "s.gradstore", skip_unsealed=True).samples,
        lambda: open_index(folder / "s.retrac.index", store, "retrac"),
        lambda: changes(lambda one: delete(one, ["s1"])),
        lambda: changes(vacuum),
        lambda: store.nbytes,
    ):
        try:
            job()
        except GradstoreError:
            refused += 1
    return refused


def require_bounded(folder: Path) -> int:
    start = monotonic()
    with bounded(MOST_BYTES):
        refused = use(folder)
    assert monotonic() - start < MOST_SECONDS
    return refused


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a JSON document."""
    found = [here]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        found += paths(item, (*here, key))
    return found


HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**40, 2**63, 10**400, 1e308, 0.5, "", "../..", "/etc/passwd",
    "parts/" + "0" * 32, "x" * 100_000, "\x00", "\ud800", [], {}, [[[[]]]], {"a": {"b": 1}},
    ["checkpoints", "samples", "seals"], [0] * 1000, float("nan"), float("inf"), "float64", "int8",
    "float32",
]  # fmt: skip


def mutate_json(data: Any, file: Path) -> None:
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return
    place = data.draw(st.sampled_from(paths(document)))
    value = data.draw(st.sampled_from(HOSTILE_VALUES))
    if not place:
        document = value
    else:
        holder = document
        for step in place[:-1]:
            holder = holder[step]
        if data.draw(st.booleans()):
            holder[place[-1]] = copy.deepcopy(value)
        elif isinstance(holder, dict):
            del holder[place[-1]]
    with contextlib.suppress(LookupError, TypeError, ValueError):
        state = document["attributes"]["gradstore"]  # otherwise nothing behind the digest is tried
        state["digest"] = root_digest(state)
    file.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")


def mutate(data: Any, folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    how = data.draw(st.sampled_from(["json", "json", "json", "cut", "flip", "grow", "kind"]))
    if how == "json" and file.suffix == ".json":
        mutate_json(data, file)
    elif how == "cut" and content:
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif how == "flip" and content:
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 8))):
            changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(changed)
    elif how == "grow":
        file.write_bytes(content + data.draw(st.binary(max_size=100)))
    elif how == "kind":
        file.unlink()
        kinds: dict[str, Any] = {
            "folder": file.mkdir,
            "pipe": lambda: os.mkfifo(file),
            "loop": lambda: file.symlink_to(file),
            "device": lambda: file.symlink_to("/dev/zero"),
            "gone": lambda: None,
        }
        kinds[data.draw(st.sampled_from(sorted(kinds)))]()


@settings(max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "60")), deadline=None)
@given(st.data())
def test_hostile_files_are_read_or_refused(data: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(template(), Path(name) / "hostile"))
        for _ in range(data.draw(st.integers(1, 3))):
            mutate(data, folder)
        require_bounded(folder)


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    names = [file.relative_to(template()) for file in template().rglob("*") if file.is_file()]
    for place, name in enumerate(names):
        folder = Path(shutil.copytree(template(), tmp_path / str(place) / "hostile"))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        require_bounded(folder)
        shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(template(), tmp_path / "hostile"))


def change_root(folder: Path, change: Any) -> None:
    edit_root(folder / "s.gradstore", change)


def test_the_template_is_whole() -> None:
    assert require_bounded(template()) == 0


@pytest.mark.parametrize(
    "layout",
    [
        {"samples": 2**40, "shard_samples": 2**32, "chunk_samples": 1},
        {"samples": 2**40, "shard_samples": 1, "chunk_samples": 1},
        {"dim": 2**32, "slots": 2**20},
        {"dim": 2**32},
        {"chunk_samples": 2**32, "shard_samples": 2**32},
    ],
)
def test_huge_shapes_take_no_memory(folder: Path, layout: dict[str, int]) -> None:
    def change(root: Any) -> None:
        for part in root["parts"]:
            part["layout"] |= layout

    change_root(folder, change)
    assert require_bounded(folder)


def test_many_parts_are_no_more_believed_than_one(folder: Path) -> None:
    def change(root: Any) -> None:
        part = root["parts"][0]
        layout = {**part["layout"], "samples": 2**20}
        more = [{**part, "path": f"parts/{n:032x}", "layout": layout} for n in range(100)]
        root["parts"] = [*root["parts"], *more]

    change_root(folder, change)
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(folder / "s.gradstore")


def test_deep_json(folder: Path) -> None:
    (folder / "s.gradstore/zarr.json").write_text('{"attributes":' + "[" * 10**6)
    with pytest.raises(NotAStoreError):
        open_store(folder / "s.gradstore")
    (folder / "s.gradstore/zarr.json").write_text(
        '{"attributes":{"gradstore":' + '{"a":' * 20_000 + "1" + "}" * 20_002
    )
    with pytest.raises(StoreError):
        open_store(folder / "s.gradstore")


def test_objects_that_are_too_large_are_not_read(folder: Path) -> None:
    # Each is a hole, and never copied: a copy would be as large as it looks.
    def grow(name: str) -> None:
        os.truncate(folder / name, 2**40)

    root = folder / "s.gradstore"
    build_kernel(open_store(root))
    grow("s.trak.kernel/0.npy")
    with pytest.raises(SearchIndexError, match=r"0\.npy"):
        fitted_by_kernel(Trak(), open_store(root))
    grow("s.retrac.index/vectors.faiss")
    with pytest.raises(SearchIndexError, match="vectors.faiss"):
        open_index(folder / "s.retrac.index", open_store(root), "retrac")
    grow("s.retrac.index/index.json")
    with pytest.raises(SearchIndexError, match="index.json"):
        open_index(folder / "s.retrac.index", open_store(root), "retrac")
    grow("s.gradstore/checkpoints/0/columns/c.0.0.0")
    with pytest.raises(StoreError, match="columns"):
        open_store(root).column("norm", 0)
    reports = {str(report) for report in verify(open_store(root)) if report.problem}
    assert reports == {f"checkpoint 0, shard 0: columns has {2**40} bytes, not 100"}
    grow("s.gradstore/seals/0/0.json")
    with pytest.raises(StoreError, match="damaged"):
        open_store(root).rows(0)
    grow("s.gradstore/checkpoints/0/direction/zarr.json")
    with pytest.raises(StoreError, match=r"direction/zarr.json cannot be read"):
        list(verify(open_store(root)))
    grow("s.gradstore/commits/0.json")
    with pytest.raises(StoreError, match=r"commits/0.json"):
        list(verify(open_store(root)))
    (table,) = (root / "deleted").iterdir()
    grow(f"s.gradstore/deleted/{table.name}")
    with pytest.raises(StoreError, match="deleted rows"):
        _ = open_store(root).samples
    grow("s.gradstore/samples/manifest.parquet")
    with pytest.raises(StoreError, match=r"manifest\.parquet"):
        _ = open_store(root).parts[0].manifest
    opened = open_store(root)
    grow("s.gradstore/zarr.json")
    assert not opened.is_current()
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(root)


def with_vectors(index: Path, content: bytes) -> None:
    """Replace an index's vectors, as by a stranger who also knows their digest."""
    (index / "vectors.faiss").write_bytes(content)
    spec = json.loads((index / "index.json").read_text())
    spec["sha256"] = file_hash(index / "vectors.faiss")
    (index / "index.json").write_text(json.dumps(spec))


def test_a_list_that_an_index_only_claims_to_have_takes_no_memory(folder: Path) -> None:
    index, store = folder / "s.retrac.index", open_store(folder / "s.gradstore")
    content = bytearray((index / "vectors.faiss").read_bytes())
    codes = open_index(index, store, "retrac").spec.count * code_bytes(store.dim)
    place = content.rindex(codes.to_bytes(8, "little"))
    content[place : place + 8] = (2**31).to_bytes(8, "little")
    with_vectors(index, bytes(content))
    with bounded(MOST_BYTES), pytest.raises(SearchIndexError, match="vectors.faiss cannot be"):
        open_index(index, store, "retrac")


def test_a_graph_that_an_index_only_claims_to_have_takes_no_memory(folder: Path) -> None:
    """FAISS allocates this one without a limit, and then raises another error."""
    index, store = folder / "s.retrac.index", open_store(folder / "s.gradstore")
    graph = faiss.index_factory(store.dim, "NSG8,Flat", faiss.METRIC_INNER_PRODUCT)
    graph.add(np.random.default_rng(0).random((300, store.dim), np.float32))
    content = bytearray(faiss.serialize_index(graph))
    content[62:66] = (2**31 - 1).to_bytes(4, "little")
    with_vectors(index, bytes(content))
    with bounded(MOST_BYTES), pytest.raises(SearchIndexError, match="vectors.faiss cannot be"):
        open_index(index, store, "retrac")


@pytest.mark.parametrize(
    ("said", "claimed"),
    [("(6, 6)", "(2000000, 6)"), ("(6, 6)", "(6, 5)"), ("<f8", "<f4"), ("<f8", "|O")],
)
def test_a_matrix_that_a_kernel_only_claims_to_have_takes_no_memory(
    folder: Path, said: str, claimed: str
) -> None:
    store = open_store(folder / "s.gradstore")
    path = build_kernel(store)
    file = path / "0.npy"
    content = file.read_bytes()
    head = content[: content.index(b"\n") + 1]
    changed = head.replace(said.encode(), claimed.encode())
    assert changed != head
    changed = changed.rstrip().ljust(len(head) - 1) + b"\n"
    file.write_bytes(changed + content[len(head) :])
    spec = json.loads((path / "kernel.json").read_text())
    spec["sha256"][0] = file_hash(file)
    (path / "kernel.json").write_text(json.dumps(spec))
    with bounded(MOST_BYTES), pytest.raises(SearchIndexError, match="it holds"):
        fitted_by_kernel(Trak(), store)


def manifest_of(**columns: Any) -> bytes:
    out = BytesIO()
    pq.write_table(pa.table(columns), out, compression="zstd")
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        manifest_of(id=["x"] * 10**7, digest=["0"] * 10**7),
        manifest_of(id=[str(n) for n in range(10)], digest=["0"] * 10, note=["y" * 10**7] * 10),
        manifest_of(id=list(range(10)), digest=["0"] * 10),
        manifest_of(id=[None] * 10, digest=["0"] * 10),
        manifest_of(id=[["a"]] * 10, digest=["0"] * 10),
        manifest_of(id=[{"a": str(n)} for n in range(10)], digest=["0"] * 10),
        manifest_of(id=[str(n).encode() + b"\xff" for n in range(10)], digest=["0"] * 10),
        manifest_of(id=["x" * 10**6 + str(n) for n in range(10)], digest=["0"] * 10),
        manifest_of(
            id=[str(n) for n in range(10)], digest=["0"] * 10, tags=[[0] * 10**7, *[[]] * 9]
        ),
        manifest_of(
            id=[str(n) for n in range(10)], digest=["0"] * 10, tags=[[[None] * 10**7], *[[]] * 9]
        ),
    ],
    ids=[
        "rows", "texts", "numbers", "nulls", "lists", "structs", "bytes", "long", "nested", "deep",
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_pieces", [False, True])
def test_hostile_manifests(
    folder: Path, content: bytes, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "s.gradstore/samples/manifest.parquet").write_bytes(content)
    if in_pieces:
        monkeypatch.setattr(parts, "_WHOLE_BYTES", 100)

        def tell(root: Any) -> None:
            root["parts"][0]["manifest"] = manifest_spec(content).model_dump(mode="json")

        change_root(folder, tell)
    require_bounded(folder)


@pytest.mark.parametrize(
    "content",
    [
        manifest_of(part=["x" * 10**7] * 12, row=list(range(12))),
        manifest_of(part=[""] * 3, row=[[0] * 10**7, [1], [2]]),
        manifest_of(part=[""] * 10**6, row=[0] * 10**6),
        manifest_of(part=[None] * 3, row=[0, 1, 2]),
    ],
    ids=["texts", "lists", "rows", "nulls"],
)
def test_hostile_deletions(folder: Path, content: bytes) -> None:
    key = f"deleted/{digest(content)}.parquet"

    def change(root: Any) -> None:
        root["deleted"] = key

    (folder / "s.gradstore" / key).write_bytes(content)
    change_root(folder, change)
    assert require_bounded(folder)


def test_vacuum_removes_nothing_outside(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "checkpoints").mkdir(parents=True)
    (outside / "precious").write_text("precious")
    root = folder / "s.gradstore"
    (root / "seals/9").symlink_to(outside)
    (root / "parts/loose").symlink_to(outside)
    (root / "deleted/loose").symlink_to(outside / "precious")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with contextlib.suppress(GradstoreError):
            vacuum(open_store(root))
    assert (outside / "precious").read_text() == "precious"
    assert (outside / "checkpoints").is_dir()


def test_ids_are_never_paths(tmp_path: Path) -> None:
    store: Store = filled(tmp_path / "s.gradstore")
    after = grown(store, ["../../../etc/passwd", "<script>alert(1)</script>", "a\nb", "\u202e"])
    before = {file for file in tmp_path.rglob("*") if "s.gradstore" not in str(file)}
    delete(after, ["../../../etc/passwd"])
    vacuum(open_store(store.path))
    assert {file for file in tmp_path.rglob("*") if "s.gradstore" not in str(file)} == before
    assert np.isfinite(open_store(store.path).rows(0).norm).all()
