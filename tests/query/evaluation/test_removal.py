from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from query.evaluation.removal import removal
from query.evaluation.retraining import Retraining, halves

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

IDS = [str(number) for number in range(6)]


class Worth:
    """A training whose loss of each query falls by what each sample is worth to it."""

    def __init__(self) -> None:
        self.worth = np.random.default_rng(0).random((3, len(IDS)))
        self.names: list[str] = []

    def __call__(self, name: str, ids: Sequence[str], seed: int) -> NDArray[np.float64]:
        self.names.append(name)
        lost: NDArray[np.float64] = self.worth[:, [int(one) for one in ids]].sum(axis=1)
        return 10 + seed - lost


def test_a_query_loses_what_its_proponents_were_worth(tmp_path: Path) -> None:
    judge = Worth()
    retraining = Retraining(IDS, judge, tmp_path)
    queries = np.array([0, 2])
    proponents = {"good": np.array([[1, 4], [0, 5]]), "same": np.array([[4, 1], [0, 5]])}
    found = removal(retraining, proponents, queries, seeds=2, random_sets=3)
    lost = [judge.worth[0, [1, 4]].sum(), judge.worth[2, [0, 5]].sum()]
    assert found["good"] == pytest.approx(np.array([lost, lost]))
    assert found["same"] == pytest.approx(found["good"])
    # At random: the same sets for all queries, each as large.
    generator = np.random.default_rng(1)
    sets = [generator.permutation(len(IDS))[:2] for _ in range(3)]
    random = np.mean([judge.worth[queries][:, rows].sum(axis=1) for rows in sets], axis=0)
    assert found["random"] == pytest.approx(np.array([random, random]))
    # No set is trained on twice, in whatever order its samples are named.
    assert len(judge.names) == len(set(judge.names))


def test_halves_are_halves_and_differ() -> None:
    found = halves(11, 5)
    assert found.sum(axis=1).tolist() == [5] * 5
    assert len(np.unique(found, axis=0)) == 5
    np.testing.assert_array_equal(found[:3], halves(11, 3))


def test_losses_are_by_seed_query_and_subset(tmp_path: Path) -> None:
    judge = Worth()
    members = halves(len(IDS), 4)
    found = Retraining(IDS, judge, tmp_path).on_subsets(members, 2)
    assert found.shape == (2, 3, 4)
    expected = 10 + 1 - judge.worth[2, members[3]].sum()
    assert found[1, 2, 3] == pytest.approx(expected)
