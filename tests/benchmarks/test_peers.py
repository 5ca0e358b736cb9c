from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.contestants.dattri import DattriTrak
from benchmarks.contestants.ours import Gradstore
from benchmarks.contestants.protocol import Asked, Kernel, Trial
from benchmarks.contestants.traker import Traker
from benchmarks.peers import (
    PRESETS,
    Exact,
    asked_of,
    run,
    trained,
    trial_of,
)
from benchmarks.worlds.denoiser import Denoiser
from benchmarks.worlds.setting import Folders

# Two orders of magnitude below the effect of wrong events or weights.
TOLERANCE = 1e-4


def test_it_compares_peers(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "peers.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    costs, agreement = written["figures"]["costs"], written["figures"]["agreement"]
    assert list(costs) == list(agreement)
    for name, one in costs.items():
        assert 0 < one["another"]["low"] <= one["another"]["median"] <= one["another"]["high"]
        assert min(one["set_up"], one["collect"]) >= 0 < one["first"]
        assert (one["bytes"] > 0) == bool(one["where"])
        for figure in ("spearman", "pearson", "overlap"):
            found = agreement[name][figure]
            assert -1.001 <= found["low"] <= found["mean"] <= found["high"] <= 1.001
    for name in ("plain PyTorch loop", "captum, TracInCP", "dattri, TracIn", "gradstore, identity"):
        assert agreement[name]["deviation"] < TOLERANCE
    # float32 and float16, 64 dimensions, two checkpoints, 12 samples, plus other files.
    assert costs["TRAKer"]["bytes"] > 4 * 64 * 2 * 12
    assert costs["gradstore, trak"]["bytes"] > 2 * 64 * 2 * 12
    pairs = np.array(written["figures"]["spearman of each with each"])
    assert pairs == pytest.approx(pairs.T)
    assert np.diag(pairs) == pytest.approx(1)
    for one in written["figures"]["search"].values():
        assert 0 <= one["recall"] <= 1
    assert "TRAKer" in (tmp_path / "peers.md").read_text()
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def trial(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    preset = PRESETS["tiny"]
    train, _, checkpoints = trained(preset, folders)
    return trial_of(preset, train, checkpoints, tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def asked(folders: Folders) -> list[Asked]:
    preset = PRESETS["tiny"]
    _, heldout, checkpoints = trained(preset, folders)
    return asked_of(preset, heldout, checkpoints)


@pytest.fixture(scope="module")
def exact(trial: Trial, asked: list[Asked]) -> Exact:
    return Exact.of(trial, asked)


def difference(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, relative to the largest score of the same query."""
    assert scores.shape == wanted.shape
    return float((np.abs(scores - wanted).max(axis=1) / np.abs(wanted).max(axis=1)).max())


def test_weights_are_those_that_the_training_run_recorded(trial: Trial, tmp_path: Path) -> None:
    one = Gradstore(replace(trial, folder=tmp_path), "sjlt")
    one.set_up()
    one.collect()
    assert one.store.etas == pytest.approx(trial.etas)


def test_scores_differ_with_another_checkpoints_events(
    trial: Trial, asked: list[Asked], exact: Exact
) -> None:
    # Otherwise agreement would not test the events.
    flipped = [
        Asked(one.name, one.samples, tuple(t.flip(1) for t in one.events))  # type: ignore[arg-type]
        for one in asked
    ]
    assert difference(Exact.of(trial, flipped).tracin(), exact.tracin()) > 100 * TOLERANCE
    swapped = tuple(tensor.flip(1) for tensor in trial.training)
    other = Exact.of(replace(trial, training=swapped), asked)  # type: ignore[arg-type]
    assert difference(other.tracin(), exact.tracin()) > 100 * TOLERANCE


def test_a_denoiser_keeps_each_checkpoints_weights(trial: Trial) -> None:
    model: Denoiser = trial.denoiser()
    before = [{name: one.clone() for name, one in weights.items()} for weights in model.weights]
    for checkpoint in (1, 0):
        model.load(checkpoint)
        for name, tensor in model.unet.state_dict().items():
            assert torch.equal(tensor, before[checkpoint][name])
    changed = [n for n, tensor in before[0].items() if not torch.equal(tensor, before[1][n])]
    assert changed


def test_exact_trak_is_its_definition() -> None:
    generator = np.random.default_rng(0)
    phi, query = generator.normal(size=(2, 5, 9)), generator.normal(size=(2, 3, 9))
    exact = Exact(
        (0.5, 2.0),
        np.einsum("kqp,ksp->kqs", query, phi),
        np.einsum("ksp,ktp->kst", phi, phi),
    )
    wanted = sum(
        weight * query[k] @ np.linalg.inv(phi[k].T @ phi[k] + ridge * np.eye(9)) @ phi[k].T
        for k, (weight, ridge) in enumerate([(3.0, 0.7), (0.2, 4.0)])
    )
    assert exact.trak(Kernel((0.7, 4.0), (3.0, 0.2))) == pytest.approx(wanted)
    assert exact.tracin() == pytest.approx(0.5 * exact.cross[0] + 2 * exact.cross[1])
    assert exact.ridge(4) == pytest.approx((phi**2).sum() / 2 / 4)


# Compares scores and not ranks, to detect a wrong λ or scale; all scores at once, because a single
# score has the projection's noise. λ is the mean eigenvalue, so it affects the scores.
@pytest.mark.parametrize("peer", [Traker, DattriTrak])
def test_peers_trak_scores_approach_exact_ones(
    peer: type[Traker | DattriTrak],
    trial: Trial,
    asked: list[Asked],
    exact: Exact,
    tmp_path: Path,
) -> None:
    ridge = exact.ridge(len(trial.train))
    one = peer(replace(trial, proj_dim=1024, folder=tmp_path), ridge)
    one.set_up()
    one.collect()
    scores = np.concatenate([one.ask(each) for each in asked])
    wanted = exact.trak(one.kernel())
    assert np.corrcoef(scores.ravel(), wanted.ravel())[0, 1] > 0.9
    assert slope(scores, wanted) == pytest.approx(1, abs=0.15)
    for factor in (0.2, 5):
        kernel = replace(one.kernel(), lambdas=[factor * ridge] * len(trial.etas))
        assert abs(slope(scores, exact.trak(kernel)) - 1) > 0.3


def slope(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Slope of the line through the origin from the expected to the found scores."""
    return float((scores * wanted).sum() / (wanted * wanted).sum())
