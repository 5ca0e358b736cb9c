"""Checks that a store can answer given queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.errors import FingerprintError, QueryError
from gradstore.store.format.fingerprint import COMPARED, require_same

if TYPE_CHECKING:
    from gradstore.store.reader import Store
    from indexer import Features
    from indexer.measure import Measure


def require_comparable(store: Store, queries: Store) -> None:
    """Raise `FingerprintError` unless the rows of two stores can be compared."""
    require_same(
        store.spec.identity,
        queries.spec.identity,
        expected_name=store.location,
        found_name=queries.location,
        sections=COMPARED,
        mend=f"collect the queries again: gradstore query --store {store.location}",
    )
    fits = {one.number: one.metric_sha256 for one in store.spec.checkpoints}
    for number in queries.numbers:
        for part in queries.parts if fits.get(number) else ():
            if part.metrics(number) - {fits[number]}:
                raise FingerprintError(
                    f"the rows of {queries.location} went through another fit of the metric at "
                    f"checkpoint {number} than those of {store.location}, which was collected "
                    f"again. Collect the queries again: gradstore query --store {store.location}"
                )


def require_averaged(measure: Measure, *, matched: bool) -> None:
    """Raise `QueryError` if a measure that transforms means of slots is used with matched slots."""
    if matched:
        raise QueryError(
            f"{measure.name} transforms the mean of a sample's slots, but matched slots have no "
            "mean. Omit --matched, or use a measure of rows such as tracin."
        )


def require_collected(queries: Store, features: Features) -> None:
    """Raise `QueryError` unless a query store has rows of every checkpoint of nonzero weight.

    Queries collected for other checkpoint weights may lack rows of some checkpoints.
    """
    whole = [not any(part.missing(number) for part in queries.parts) for number in queries.numbers]
    lacking = [queries.numbers[place] for place in features.checkpoints if not whole[place]]
    if lacking:
        left = [eta if there else 0 for eta, there in zip(features.etas, whole, strict=True)]
        names = ", ".join(map(str, lacking))
        raise QueryError(
            f"{queries.location} lacks rows of checkpoint {names}. Omit it with --etas "
            f"{','.join(f'{eta:g}' for eta in left)}, or collect the queries again with the "
            "weights used in this search."
        )
