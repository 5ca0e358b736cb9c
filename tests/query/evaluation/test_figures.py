from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from query.evaluation.figures import (
    auroc,
    copies_found,
    datamodeling_score,
    group_influence,
    label_share,
    noise_ceiling,
)


def test_the_score_is_the_mean_rank_correlation_with_the_losses_fall() -> None:
    generator = np.random.default_rng(0)
    predicted, truth = generator.normal(size=(5, 9)), generator.normal(size=(2, 5, 9))
    found = datamodeling_score(predicted, truth)
    expected = [spearmanr(predicted[row], -truth[:, row].mean(0)).statistic for row in range(5)]
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.low <= found.mean <= found.high
    perfect = datamodeling_score(-truth.mean(0), truth)
    assert [perfect.low, perfect.high] == pytest.approx([1, 1])


def test_the_ceiling_is_that_of_what_seeds_share() -> None:
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(20, 400))
    truth = signal + generator.normal(size=(2, 20, 400))
    found = noise_ceiling(truth)
    assert found["between seeds"] == pytest.approx(0.5, abs=0.05)
    # The correlation of the mean of two seeds with the signal.
    best = [spearmanr(a, b).statistic for a, b in zip(truth.mean(0), signal, strict=True)]
    assert found["ceiling"] == pytest.approx(np.mean(best), abs=0.03)


def test_several_models_are_scored_one_by_one() -> None:
    generator = np.random.default_rng(0)
    predicted, truth = generator.normal(size=(2, 5, 9)), generator.normal(size=(2, 5, 9))
    each = [datamodeling_score(one, truth).mean for one in predicted]
    found = datamodeling_score(predicted, truth)
    assert found.runs == pytest.approx(each)
    assert found.mean == pytest.approx(np.mean(each))


def test_what_says_the_same_of_all_subsets_scores_zero() -> None:
    truth = np.random.default_rng(0).normal(size=(2, 5, 9))
    assert datamodeling_score(np.ones((5, 9)), truth).mean == 0


def test_a_group_s_influence_is_the_sum_of_its_samples() -> None:
    generator = np.random.default_rng(0)
    found, members = generator.normal(size=(3, 8)), generator.random((4, 8)) < 0.5
    expected = [[sum(row[one]) for one in members] for row in found]
    assert group_influence(found, members) == pytest.approx(np.array(expected))
    z = [(row - row.mean()) / row.std() for row in found]
    expected = [[sum(np.exp(row[one] / 2)) for one in members] for row in z]
    assert group_influence(found, members, exponential=True) == pytest.approx(np.array(expected))
    same = group_influence(np.ones((1, 8)), members, exponential=True)
    assert same == pytest.approx(members.sum(axis=1)[None])


def test_labels_and_copies_are_counted_among_the_first() -> None:
    found = np.array([[5, 4, 3, 2], [1, 2, 3, 4], [9, 1, 1, 1]])
    share = label_share(found, ["a", "b", "a", "a"], ["a", "b", None], k=2)
    assert (share.mean, share.count) == ((0.5 + 0) / 2, 2)
    assert np.isnan(label_share(found, ["a"] * 4, [None] * 3).mean)
    assert copies_found(found, np.array([1, 1, 0]), k=2).mean == pytest.approx(2 / 3)


def test_auroc_counts_ties_half() -> None:
    assert auroc([np.array([1.0, 2, 2, 3])], np.array([False, False, True, True])).mean == 0.875
