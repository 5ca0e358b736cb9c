"""What the demo's measures find, in a table whose every figure is explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from query.evaluation.figures import label_share
from query.evaluation.methods import scores
from query.results.answer import labels
from query.results.wording import display_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

_COPY: Final = "copy-of-"
_HEADINGS: Final = ("rows", "measure", "same label", "own group", "copy first", "worst rank")


@dataclass(frozen=True)
class Compared:
    """A measure of a store, and queries some of which are copies of training samples.

    Attributes:
        store: the training store.
        asked: the queries; a copy's name is `copy-of-` and the sample's id.
        measure: name of the measure.
        rows: what the store's rows are, in words.
    """

    store: Store
    asked: Store
    measure: str
    rows: str


@dataclass(frozen=True)
class Comparison:
    """What is told of the measures.

    Attributes:
        text: the table and its explanation.
        copies: what the report says of the copies.
        others: what it says of rows that it does not show.
    """

    text: str
    copies: str
    others: str


def comparison(compared: Sequence[Compared], k: int) -> Comparison:
    """Compare measures by what can be checked without training again.

    Args:
        compared: the measures, all of the same training samples.
        k: number of proponents that are looked at.
    """
    first = compared[0]
    train = np.array(labels(first.store), object)
    lines, ranks = [_HEADINGS], {}
    share = 0.0
    for one in compared:
        found = scores(one.store, one.asked, one.measure)
        ids, own = list(one.asked.manifest.ids), labels(one.asked) or []
        asked = [row for row, name in enumerate(ids) if own[row] is not None]
        new = [row for row in asked if not ids[row].startswith(_COPY)]
        copies = [row for row in asked if ids[row].startswith(_COPY)]
        copied = [ids[row].removeprefix(_COPY).removesuffix(".png") for row in copies]
        place_of = one.store.manifest.find(copied)
        originals = [place_of[original] for original in copied]
        places = _ranks(found[copies], originals)
        theirs = [own[row] for row in new]
        same = label_share(found[new], train.tolist(), theirs, k).mean
        share = float(np.mean([np.mean(train == label) for label in theirs]))
        groups = _own_groups(found[new], train, theirs)
        name = display_name(one.measure)
        lines.append(
            (
                one.rows,
                name,
                f"{round(same, 9):.2f}",  # .855 as the report rounds it, which counts
                f"{sum(groups)} of {len(groups)}",
                f"{places.count(1)} of {len(places)}",
                str(max(places)),
            )
        )
        ranks[f"{name}, {one.rows}"] = places
    count, names = len(train), len(set(train.tolist()))
    lines.append(
        ("samples at random", "", f"{share:.2f}", f"1 in {names}", f"1 in {count}", str(count))
    )
    widths = [max(len(line[at]) for line in lines) for at in range(len(_HEADINGS))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    found_at = "; ".join(f"{name}: {', '.join(map(str, own))}" for name, own in ranks.items())
    of_copies = (
        "These are training images, asked as if they were new, with other noises. Each should find "
        f"itself first. The ranks at which they do: {found_at}."
    )
    others = [f"{line[1]} {line[2]}" for line in lines if line[0] == compared[-1].rows]
    return Comparison(
        "\n".join([*table, "", *_meaning(k)]),
        of_copies,
        f"Of the first {k} proponents by plain gradients {compared[-1].rows}, these shares have "
        f"the query's label: {', '.join(others)}. They are not shown below.",
    )


def _meaning(k: int) -> list[str]:
    return [
        f"same label: of the first {k} proponents of a held-out digit, how many show that digit",
        "own group: held-out digits for which the samples of their own digit together push most",
        "copy first: training digits, asked with other noises, that find themselves at rank 1",
        "worst rank: the rank at which the last of these found itself",
        "the model's metric: gradients in K-FAC's metric, which predicts retraining (see README)",
        "as in the paper: plain gradients of the timesteps that training drew, which do not",
    ]


def _ranks(found: NDArray[np.float32], originals: Sequence[int]) -> list[int]:
    """Rank of each query's original among all samples, from 1."""
    own = found[np.arange(len(originals)), list(originals)]
    ranks: list[int] = (1 + (found > own[:, None]).sum(axis=1)).tolist()
    return ranks


def _own_groups(
    found: NDArray[np.float32], train: NDArray[np.object_], own: Sequence[object]
) -> list[bool]:
    """Whether the mean score of a query's own label is the highest of all labels."""
    names = sorted(set(train.tolist()), key=str)
    means = np.stack([found[:, train == name].mean(axis=1) for name in names], axis=1)
    best = means.argmax(axis=1).tolist()
    return [names[place] == label for place, label in zip(best, own, strict=True)]
