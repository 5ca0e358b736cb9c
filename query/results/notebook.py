"""An answer in a notebook: pictures of the first queries and of their proponents."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from gradstore.collect.recorded import Provenance
from gradstore.text import one_line
from query.results.pictures import data_uri, pictures

if TYPE_CHECKING:
    from gradstore.store.reader import Store
    from indexer import Ranking
    from query.queries import Queries
    from query.results.pictures import Pictures

# What a cell of a notebook has room for.
_QUERIES: Final = 5
_RANKS: Final = 8
_SIDE: Final = 64


def gallery(store: Store, queries: Queries, ranking: Ranking, caption: str) -> str | None:
    """The first queries, a row each: the query, then its proponents with their scores.

    Args:
        store: the training store.
        queries: the queries.
        ranking: their proponents.
        caption: what the table shows.

    Returns:
        An HTML table; None if the training store does not record its dataset.
    """
    train = _recorded(store)
    if train is None:
        return None
    asked, ids, lines = _recorded(queries.store), store.manifest.ids, []
    for number in range(min(_QUERIES, len(queries))):
        own = queries.samples[queries.starts[number] : queries.starts[number + 1]]
        shown = asked if len(own) == 1 else None
        cells = [_cell(shown, int(own[0]), queries.ids[number], "query")]
        for row, score in zip(
            ranking.samples[number, :_RANKS].tolist(), ranking.scores[number, :_RANKS], strict=True
        ):
            cells.append(_cell(train, row, ids[row], f"{score:.3g}"))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    left = len(queries) - len(lines)
    more = f" ({left:,} more queries)" if left > 0 else ""
    return f"<table><caption>{escape(caption)}{more}</caption>{''.join(lines)}</table>"


def _recorded(store: Store) -> Pictures | None:
    known = all(Provenance.of(part.spec).config.get("dataset") for part in store.parts)
    return pictures(store) if known else None


def _cell(images: Pictures | None, row: int, name: str, text: str) -> str:
    image = None if images is None else images.image(row)
    label = escape(one_line(name))
    shown = "" if image is None else f'<img alt="{label}" src="{data_uri(image, _SIDE)}"><br>'
    return f"<td>{shown}{label}<br>{escape(text)}</td>"
