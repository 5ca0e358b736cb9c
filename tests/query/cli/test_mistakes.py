"""Simple mistakes are reported before heavy imports, which take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradstore.store.format.fingerprint import fingerprint
from tests.support.drawn_stores import random_store
from tests.support.written_stores import edit_root

HEAVY = ("torch", "diffusers", "datasets", "trak", "faiss", "sklearn", "matplotlib")
# Each command has its own process, forked with only the command line imported.
_RUN = f"""
import contextlib, io, json, os, sys
from query.cli import main
for words in json.load(sys.stdin):
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    sys.argv, code, told = ["gradstore", *words], 0, io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            told.write(f"Traceback: {{error!r}}")
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([code, heavy, told.getvalue()]), flush=True)
    os._exit(0)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store, a query store of another model, images, a checkpoint's folder, and a file."""
    folder = tmp_path
    random_store(folder / "train.gradstore", 20, metadata={"label": [n % 3 for n in range(20)]})
    random_store(folder / "asked.gradstore", 3, seed=1)
    random_store(folder / "other.gradstore", 3, seed=1)

    def other_model(spec: Any) -> None:
        spec["identity"]["model"]["num_parameters"] += 1
        spec["fingerprint"] = fingerprint(spec["identity"])

    edit_root(folder / "other.gradstore", other_model)
    (folder / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "images" / "0.png")
    (folder / "epoch-1" / "unet").mkdir(parents=True)
    (folder / "epoch-1" / "unet" / "config.json").write_text("{}")
    for number in (1, 2):
        (folder / "run" / f"epoch-{number}" / "unet").mkdir(parents=True)
        (folder / "run" / f"epoch-{number}" / "unet" / "config.json").write_text("{}")
    (folder / "taken").mkdir()
    (folder / "images.zarr").mkdir()
    (folder / "taken" / "file.txt").write_text("mine")
    (folder / "taken.parquet").write_text("mine")
    return folder


LONG = 300 * "x"
STORE = "--store train.gradstore"
ASK = f"query {STORE} --queries asked.gradstore --out new"
COLLECT = "collect --dataset images --checkpoints epoch-1 --store new.gradstore"
MISTAKES = {
    f"{ASK} --measures retrak": "'retrak'",
    f"{ASK} --measures clip:2": "clip",
    "query --store nothing.gradstore --queries asked.gradstore --out new": "nothing.gradstore",
    f"query {STORE} --queries nothing.gradstore --out new": "nothing.gradstore",
    f"query {STORE} --queries other.gradstore --out new": "other.gradstore",
    f"query {STORE} --queries asked.gradstore --out taken": "taken",
    f"query {STORE} --out new": "--dataset",
    f"query {STORE} --dataset nowhere --checkpoints epoch-1 --out new": "nowhere",
    f"query {STORE} --dataset images --checkpoints epoch-9 --out new": "epoch-9",
    f"{ASK} --k 21": "--k 20",
    f"{ASK} --measures trak --matched": "trak",
    f"query {STORE} --dataset images --checkpoints epoch-1 --out new": "2 checkpoints",
    f"query {STORE} --dataset images --matched --timesteps 7 --out new": "--timesteps 1",
    f"{ASK} --rerank 5": "does not know its dataset",
    f"{ASK} --etas 1": "etas are [1.0]",
    f"{ASK} --labels 7": "filter",
    f"{ASK} --groups a": "'group'",
    f"{ASK} --ids s99": "'s99'",
    f"{ASK} --mean-by colour": "'colour'",
    f"{COLLECT} --dataset nowhere": "nowhere",
    f"{COLLECT} --checkpoints epoch-9": "epoch-9",
    f"{COLLECT} --checkpoints taken": "taken is not a diffusers folder",
    f"{COLLECT} --etas 1,2": "etas are [1.0, 2.0]",
    f"{COLLECT} --etas -1": "etas are [-1.0]",
    f"{COLLECT} --params (": "--params is '(': it is not a regular expression",
    f"{COLLECT} --device kuda": "--device is 'kuda': torch has devices",
    f"{COLLECT} --store taken": "taken exists",
    f"{COLLECT} --events replayed": "epoch-1 has no events.parquet",
    f"{COLLECT} --projector dense": "'dense'",
    "plan --dataset nowhere --checkpoints epoch-1 --store new.gradstore": "nowhere",
    "train --dataset nowhere --out new": "nowhere",
    "train --dataset digits --out taken": "taken exists",
    "train --dataset digits --out new --epochs 2 --checkpoint-every 3": "--checkpoint-every 3",
    "train --dataset digits --out new --split tset": "'tset'",
    "train --dataset digits --out new --channels 30,60": "multiples of 8",
    "train --dataset digits --out new --channels 8,8,8,8,8": "8×8 pixels",
    "train --dataset images --out new --device cpu:": "--device",
    f"query {STORE} --dataset images --checkpoints run --mean-by colour --out new": "'colour'",
    f"append {STORE} --dataset images --checkpoints run": "collected from Python",
    "add-checkpoint train.gradstore epoch-1": "collected from Python",
    f"scores {STORE} --queries asked.gradstore --out images.zarr": "images.zarr exists and is no",
    f"index {STORE} --measures retrak": "'retrak'",
    f"index {STORE} --etas 1,2,3": "etas are [1.0, 2.0, 3.0]",
    f"index {STORE} --queries other.gradstore": "other.gradstore",
    f"scores {STORE} --queries asked.gradstore --out new.txt": "new.txt",
    f"scores {STORE} --queries asked.gradstore --out taken.parquet": "taken.parquet",
    f"scores {STORE} --queries other.gradstore --measure trak --out new.zarr": "other.gradstore",
    f"rollup {STORE} --queries asked.gradstore --out new.txt": "new.txt",
    f"rollup {STORE} --queries asked.gradstore --by colour --out new.parquet": "'colour'",
    f"self-influence {STORE} --measure retrak --out new.parquet": "'retrak'",
    f"self-influence {STORE} --measure trak --out new.parquet": "trak",
    f"self-influence {STORE} --out taken.parquet": "taken.parquet",
    f"hubness {STORE} --results nothing.parquet --out taken": "taken",
    f"hubness {STORE} --results nothing.parquet --out new": "nothing.parquet",
    f"breakdown {STORE} --queries asked.gradstore --query s9 --sample s1 --out new.parquet": "'s9'",
    "append --store nothing.gradstore --dataset images": "nothing.gradstore",
    f"append {STORE} --dataset nowhere": "nowhere",
    f"append {STORE} --dataset images --checkpoints epoch-9": "epoch-9",
    "add-checkpoint nothing.gradstore epoch-1": "nothing.gradstore",
    "add-checkpoint train.gradstore epoch-9": "epoch-9",
    "add-checkpoint train.gradstore epoch-1 --eta -1": "etas are [-1.0]",
    "add-checkpoint train.gradstore run": "run holds several checkpoints",
    "delete train.gradstore --ids-file images/0.png": "images/0.png is not a text file",
    f"rollup {STORE} --queries asked.gradstore --out no/new.parquet": "no folder no",
    f"query {STORE} --queries asked.gradstore --out taken.parquet/new": "taken.parquet is a file",
    f"query {STORE} --queries asked.gradstore --out {LONG}": "cannot be made",
    f"scores {STORE} --queries asked.gradstore --out taken.parquet/new.zarr": "is a file",
    f"scores {STORE} --queries asked.gradstore --out {LONG}.parquet": "cannot be made",
    f"rollup {STORE} --queries asked.gradstore --out taken.parquet/new.jsonl": "is a file",
    f"self-influence {STORE} --out {LONG}.parquet": "cannot be made",
    f"self-influence {STORE} --out caf\udce9.parquet": "cannot be made",
    f"hubness {STORE} --results taken.parquet --out {LONG}": "cannot be made",
    f"hubness {STORE} --results taken.parquet --out taken.parquet/new": "is a file",
    f"query {STORE} --queries asked.gradstore --ids caf\udce9 --out new": "caf",
    "delete train.gradstore --ids caf\udce9": "caf",
    "train --dataset hf:// --out new": "is not a name on the hub",
    "train --dataset hf:///etc --out new": "is not a name on the hub",
    "train --dataset hf://../images --out new": "is not a name on the hub",
    "drop-checkpoint train.gradstore 9": "no 9",
    "delete train.gradstore --ids s99": "'s99'",
    "merge train.gradstore other.gradstore": "other.gradstore",
    "vacuum nothing.gradstore": "nothing.gradstore",
    "info nothing.gradstore": "nothing.gradstore",
    "verify nothing.gradstore": "nothing.gradstore",
    "demo --out taken": "taken",
}


def test_a_cheap_mistake_is_told_before_heavy_imports(
    place: Path, subtests: pytest.Subtests
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _RUN],
        # The last of repeated flags counts.
        input=json.dumps([command.split() for command in MISTAKES]),
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = map(json.loads, run.stdout.splitlines())
    for command, (status, imported, text) in zip(MISTAKES, lines, strict=True):
        with subtests.test(ascii(command)):
            assert status != 0
            assert MISTAKES[command] in text
            assert "Traceback" not in text
            assert imported == []
    assert not (place / "new").exists()
