from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from query.statistics import interval, rank_correlation


def test_rank_correlation_is_spearmans() -> None:
    generator = np.random.default_rng(0)
    left = generator.normal(size=(4, 30))
    right = np.round(left + generator.normal(size=(4, 30)))  # ties
    expected = [spearmanr(a, b).statistic for a, b in zip(left, right, strict=True)]
    assert rank_correlation(left, right) == pytest.approx(expected)
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5)))


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    found = [interval(generator.normal(size=40)) for _ in range(200)]
    assert 0.88 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99


def test_runs_are_averaged_by_query_and_kept_apart() -> None:
    found = interval([[0, 1, np.nan], [1, 2, np.nan]])
    assert (found.mean, found.count, found.runs) == (1.0, 2, (0.5, 1.5))
    assert interval([1.0, 3.0]).runs == ()
    assert np.isnan(interval([np.nan]).mean)
