"""Figures of merit of scores, each a mean with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from query.statistics import Interval, interval, rank_correlation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SUBSET_RESAMPLES: Final = 1000
_TOGETHER: Final = 50
# Weight of a sample's standardised score in the influence of a group.
_BETA: Final = 0.5


def group_influence(
    found: NDArray[Any], members: NDArray[np.bool_], *, exponential: bool = False
) -> NDArray[np.float64]:
    """Influence of groups of training samples on each query.

    Args:
        found: scores `[queries, samples]`.
        members: membership in each group `[groups, samples]`.
        exponential: sum exp(z/2) of the scores z, standardised over samples, instead of the scores.
            It lets the few strongest samples of a group count for more.

    Returns:
        float64 `[queries, groups]`.
    """
    scores = np.asarray(found, np.float64)
    if exponential:
        spread = scores.std(axis=1, keepdims=True)
        z = (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
        scores = np.exp(_BETA * z)
    result: NDArray[np.float64] = scores @ members.T.astype(np.float64)
    return result


def datamodeling_score(predicted: NDArray[Any], truth: NDArray[np.float64]) -> Interval:
    """Linear datamodeling score (arXiv 2303.14186, section 2.3): a mean over queries.

    Spearman's correlation, over subsets of the training samples, of their predicted influence on a
    query with the fall of the query's loss when models are trained on them. The interval resamples
    queries and subsets, because all queries share the same few subsets.

    Args:
        predicted: influence of each subset `[queries, subsets]`, or `[runs, queries, subsets]` of
            several attributed models; positive lowers the loss.
        truth: losses `[seeds, queries, subsets]`.
    """
    runs = predicted if predicted.ndim == 3 else predicted[None]
    right = -truth.mean(axis=0)
    queries, subsets = right.shape
    # A method may say the same of all subsets, and then nothing: that correlation counts as 0.
    means = np.array([np.nan_to_num(rank_correlation(one, right)).mean() for one in runs])
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(_SUBSET_RESAMPLES // _TOGETHER):
        columns = generator.integers(0, subsets, (_TOGETHER, 1, subsets))
        picks = generator.integers(0, queries, (_TOGETHER, queries, 1))
        # [resamples · queries, subsets]
        truths = right[picks, columns].reshape(-1, subsets)
        drawn = [one[picks, columns].reshape(-1, subsets) for one in runs]
        found = [np.nan_to_num(rank_correlation(one, truths)) for one in drawn]
        resampled.extend(np.mean(found, axis=0).reshape(_TOGETHER, queries).mean(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    each = tuple(map(float, means)) if len(means) > 1 else ()
    return Interval(float(means.mean()), float(low), float(high), queries, each)


def noise_ceiling(truth: NDArray[np.float64]) -> dict[str, float]:
    """The best score that any method could reach, because losses also depend on the training seed.

    Args:
        truth: losses `[seeds, queries, subsets]`, of two seeds at least.

    Returns:
        `between seeds`: Spearman over subsets between the losses of two seeds. `of the mean`: the
        same between two means over seeds (Spearman and Brown). `ceiling`: its square root, the
        correlation of the mean over seeds with the mean over very many seeds.
    """
    seeds = len(truth)
    pairs = [np.mean(rank_correlation(truth[i], truth[j])) for i in range(seeds) for j in range(i)]
    between = float(np.mean(pairs))
    mean = seeds * between / (1 + (seeds - 1) * between)
    return {"between seeds": between, "of the mean": mean, "ceiling": float(max(mean, 0.0) ** 0.5)}


def top(found: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Indices of the `k` highest of each row, best first; ties in index order."""
    return np.argsort(-found, axis=1, kind="stable")[:, :k]


def distinctness(found: NDArray[Any], k: int) -> float:
    """Number of distinct proponents over all proponents: |∪ top-k| / (queries · k)."""
    proponents = top(found, k)
    return len(np.unique(proponents)) / proponents.size


def label_share(
    found: NDArray[Any], train: Sequence[Any], asked: Sequence[Any], k: int = 10
) -> Interval:
    """Share of the first `k` proponents that have the label of the query.

    Args:
        found: scores `[queries, samples]`, or `[runs, queries, samples]` of several models.
        train: label of each training sample.
        asked: label of each query; a query without one is left out.
        k: number of proponents.
    """
    runs = found if found.ndim == 3 else found[None]
    chosen = [row for row, label in enumerate(asked) if label is not None]
    if not chosen:
        return interval([])
    labels, own = np.array(train, object), np.array([asked[row] for row in chosen], object)
    return interval([(labels[top(one[chosen], k)] == own[:, None]).mean(axis=1) for one in runs])


def copies_found(found: NDArray[Any], copies: NDArray[np.int64], k: int = 10) -> Interval:
    """Share of queries that are training samples and have themselves among their first `k`.

    Args:
        found: scores `[queries, samples]`.
        copies: the training sample that each query is a copy of, `[queries]`.
        k: number of proponents.
    """
    return interval((top(found, k) == copies[:, None]).any(axis=1).astype(np.float64))


def auroc(values: Sequence[NDArray[Any]], positive: NDArray[np.bool_]) -> Interval:
    """Area under the ROC curve of a detector: how often a positive lies above a negative.

    Args:
        values: the detector's values in each run, `[samples]` each.
        positive: whether a sample is one to be detected, `[samples]`.

    Returns:
        The mean over positives of the share of negatives below them; ties count half.
    """
    chances = []
    for one in values:
        negatives = np.sort(one[~positive])
        sides: tuple[Literal["left", "right"], ...] = ("left", "right")
        below = [np.searchsorted(negatives, one[positive], side=side) for side in sides]
        chances.append(np.mean(below, axis=0) / len(negatives))
    return interval(chances)
