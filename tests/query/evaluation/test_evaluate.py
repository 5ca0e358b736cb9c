from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import gradstore as gs
from gradstore.collect import Samples, collect, find_checkpoints, losses, train
from gradstore.errors import CheckpointError, ConfigError, QueryError
from gradstore.flags.dataset import DatasetSpec
from query.evaluation.methods import scores
from query.evaluation.retraining import by_command, halves
from tests.support.commands import TRAIN, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES, HELDOUT = 20, 5
SMALL: dict[str, Any] = {
    "dataset": "digits", "limit": SAMPLES, "epochs": 1, "checkpoint_every": 1, "channels": [8],
}  # fmt: skip
PLANNED = gs.EventSpec(events="planned", timesteps=2)
SJLT = gs.ProjectorSpec(projector="sjlt", proj_dim=64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that records its dataset, as `gradstore collect` makes it."""
    folder = tmp_path_factory.mktemp("evaluated")
    train(gs.TrainConfig(out=str(folder / "run"), **SMALL))
    place = folder / "train.gradstore"
    collect(
        Samples.from_spec(DatasetSpec(dataset="digits", limit=SAMPLES)),
        find_checkpoints(folder / "run"),
        place,
        projector=SJLT,
        events=PLANNED,
        config=DatasetSpec(dataset="digits", limit=SAMPLES).recorded(),
    )
    return place


def settings(store: Path, out: Path, **more: Any) -> gs.EvaluateConfig:
    return gs.EvaluateConfig(
        stores=[str(store)], dataset="digits", limit=HELDOUT, out=str(out), timesteps=2, draws=1,
        loss_timesteps=2, loss_draws=1, subsets=4, copies=3, **more,
    )  # fmt: skip


class Trainer:
    """Trains on some of the digits, and counts how often."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.called = 0

    def __call__(self, ids: Sequence[str], seed: int, out: Path) -> None:
        self.called += 1
        listed = self._folder / "ids.txt"
        listed.write_text("\n".join(ids))
        train(gs.TrainConfig(out=str(out), only=str(listed), seed=seed, **SMALL))


def test_figures_follow_from_scores_and_retrained_models(store: Path, tmp_path: Path) -> None:
    trainer, out = Trainer(tmp_path), tmp_path / "out"
    config = settings(store, out, removals=1, removed=4, outliers="label=3")
    found = gs.evaluate(config, trainer).figures
    assert found == json.loads((out / "evaluation.json").read_text())

    # The losses of models trained on each half, by training them here.
    opened = gs.open_store(store)
    asked = Samples.from_spec(DatasetSpec(dataset="digits", split="test", limit=HELDOUT))
    grid = gs.EventSpec(events="planned", timesteps=2, draws=1, event_seed=1)
    truth = np.empty((HELDOUT, 4))
    for number, members in enumerate(halves(SAMPLES, 4)):
        each = []
        for seed in range(2):
            place = tmp_path / f"again-{number}-{seed}"
            ids = [opened.manifest.ids[row] for row in np.flatnonzero(members).tolist()]
            Trainer(tmp_path)(ids, seed, place)
            each.append(losses(asked, find_checkpoints(place)[-1], events=grid, objective="l1"))
        truth[:, number] = np.mean(each, axis=0)
    queries = gs.open_store(out / "queries-0.gradstore")
    chosen: dict[str, float] = {}
    rest: dict[str, float] = {}
    for measure in ("tracin", "retrac", "trak"):
        one = scores(opened, queries, measure)
        sums = [[row[members].sum() for members in halves(SAMPLES, 4)] for row in one[:HELDOUT]]
        expected = [spearmanr(a, -b).statistic for a, b in zip(sums, truth, strict=True)]
        lds = found["retrained"][measure]["lds"]
        assert lds["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
        chosen[measure], rest[measure] = (np.mean(expected[start::2]) for start in (0, 1))
        # Copies are ranked among all samples.
        ids = list(opened.manifest.ids)
        names = [name.removeprefix("copy of ") for name in queries.manifest.ids[HELDOUT:]]
        first = np.argsort(-one[HELDOUT:], axis=1)[:, :10]
        hits = [ids.index(name) in row for name, row in zip(names, first, strict=True)]
        assert found["methods"][measure]["copies found"]["mean"] == pytest.approx(np.mean(hits))
    assert found["methods"]["pixels, cosine"]["copies found"]["mean"] == 1
    assert set(found["outliers"]) == {"tracin", "retrac"}
    assert 0 <= found["ceiling"]["ceiling"] <= 1
    assert set(found["removal"]) == {"random", "tracin", "retrac", "trak", "pixels, cosine"}
    # A method is chosen by every other query and told by the remaining ones.
    best = max(chosen, key=lambda name: chosen[name])
    assert found["chosen"]["method"] == best
    assert found["chosen"]["lds"]["mean"] == pytest.approx(rest[best], abs=1e-6)

    # What was retrained is kept, the models are not, and nothing is retrained again.
    called = trainer.called
    assert called >= 2 * (4 + 1)
    assert len(list((out / "losses").iterdir())) == called
    assert list((out / "training").iterdir()) == []
    assert gs.evaluate(config, trainer).figures == found
    assert trainer.called == called


def test_a_command_trains(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradstore = f"{sys.executable} -c 'from query.cli import main; main()'"
    words = [*TRAIN, "--only", "{ids}", "--seed", "{seed}", "--out", "{out}"]
    run = Run(capsys, monkeypatch)
    given = [
        "evaluate", "--stores", store, "--dataset", "digits", "--limit", HELDOUT, "--timesteps", 2,
        "--draws", 1, "--loss-timesteps", 1, "--loss-draws", 1, "--subsets", 2, "--seeds", 1,
        "--measures", "retrac", "--train", f"{gradstore} {' '.join(words)}",
        "--out", tmp_path / "out",
    ]  # fmt: skip
    shown = run(*given)
    assert "| retrac |" in shown
    assert "lds" in shown
    assert run(*given) == shown
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "2 random halves" in page


def test_without_training_labels_and_copies_are_counted(store: Path, tmp_path: Path) -> None:
    features = tmp_path / "clip.npz"
    generator = np.random.default_rng(0)
    np.savez(
        features,
        queries=generator.normal(size=(HELDOUT, 4)),
        train=generator.normal(size=(SAMPLES, 4)),
    )
    found = gs.evaluate(settings(store, tmp_path / "out", features=[str(features)]))
    assert "retrained" not in found.figures
    assert "clip, cosine" in found.figures["methods"]
    assert "label share" in str(found)


def test_several_stores_are_told_apart(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gradstore"
    collect(
        Samples.from_spec(DatasetSpec(dataset="digits", limit=SAMPLES)),
        [one.path for one in gs.open_store(store).spec.checkpoints],
        other,
        projector=SJLT,
        events=PLANNED,
        metric="kfac",
    )
    config = settings(store, tmp_path / "out", measures=["retrac"])
    config = config.model_copy(update={"stores": [str(store), str(other)]})
    methods = gs.evaluate(config).figures["methods"]
    assert {"retrac, train", "retrac, other"} <= set(methods)


def test_a_failed_training_shows_what_it_said(store: Path, tmp_path: Path) -> None:
    broken = f"{sys.executable} -c 'raise SystemExit(\"no {{ids}} {{seed}} {{out}}\")'"
    with pytest.raises(CheckpointError, match="no .*ids.txt 0 "):
        gs.evaluate(settings(store, tmp_path / "out", train=broken))
    idle = f"{sys.executable} -c 'print(1)' {{ids}} {{seed}} {{out}}"
    with pytest.raises(CheckpointError, match="made no"):
        gs.evaluate(settings(store, tmp_path / "idle", train=idle))
    with pytest.raises(ConfigError):
        gs.evaluate(settings(store, tmp_path / "none", train="/no/such {ids} {seed} {out}"))


@pytest.mark.parametrize(
    "more",
    [
        {"train": "python train.py --seed {seed} --out {out}"},
        {"train": "python 'train.py {ids} {seed} {out}"},
        {"measures": ["nothing"]},
        {"outliers": "label=99"},
        {"outliers": "group=a"},
        {"removals": 1},
    ],
)
def test_cheap_mistakes_are_told_before_anything_is_made(
    store: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    with pytest.raises((ConfigError, QueryError)):
        gs.evaluate(settings(store, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_outliers_are_given_by_column_and_value(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="COLUMN=VALUE"):
        settings(store, tmp_path / "out", outliers="label")


@pytest.mark.parametrize("content", [b"no arrays", None])
def test_features_of_another_size_are_refused(
    store: Path, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "f.npz"
    if content is None:
        np.savez(file, queries=np.ones((HELDOUT + 1, 2)), train=np.ones((SAMPLES, 2)))
    else:
        file.write_bytes(content)
    with pytest.raises(QueryError, match=r"f\.npz"):
        gs.evaluate(settings(store, tmp_path / "out", features=[str(file)]))


def test_stores_of_other_samples_are_refused(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gradstore"
    collect(
        Samples.from_spec(DatasetSpec(dataset="digits", limit=SAMPLES - 1)),
        [one.path for one in gs.open_store(store).spec.checkpoints],
        other,
        projector=SJLT,
        events=PLANNED,
    )
    config = settings(store, tmp_path / "out")
    config = config.model_copy(update={"stores": [str(store), str(other)]})
    with pytest.raises(QueryError, match="other training samples"):
        gs.evaluate(config)


def test_a_command_s_words_are_those_of_a_shell(tmp_path: Path) -> None:
    written = tmp_path / "words.json"
    code = "import json, sys; json.dump(sys.argv[1:], open(sys.argv[1], 'w'))"
    command = f"{sys.executable} -c \"{code}\" {written} 'a b' {{ids}} --seed={{seed}} {{out}}"
    place = tmp_path / "x y"
    place.mkdir()
    by_command(command)(["one", "two; rm"], 3, place / "model")
    words = json.loads(written.read_text())
    assert words[1:] == ["a b", str(place / "ids.txt"), "--seed=3", str(place / "model")]
    assert (place / "ids.txt").read_text() == "one\ntwo; rm\n"
