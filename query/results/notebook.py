"""An answer in a notebook: the gallery of the first queries."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from gradstore.collect.provenance import Provenance
from query.results.gallery import Embedded, cards, environment, resource
from query.results.pictures import pictures

if TYPE_CHECKING:
    from gradstore.store.reader import Store
    from query.results.answer import Answer
    from query.results.pictures import Pictures

# What a cell of a notebook has room for.
_QUERIES: Final = 5
_RANKS: Final = 8
_SIDE: Final = 96


def gallery(answer: Answer) -> str | None:
    """The first queries of an answer with their proponents and opponents, as HTML without script.

    None if the training store does not record its dataset.
    """
    train = _recorded(answer.store)
    if train is None:
        return None
    some = answer.first(_QUERIES, _RANKS)
    asked = _recorded(some.queries.store)
    page = environment().from_string('{% import "gallery.html.j2" as one %}{{ one.query(query) }}')
    # Each query embeds its own images, because no script may copy them.
    shown = [page.render(query=cards([one], asked, train, Embedded(_SIDE))[0]) for one in some]
    left = len(answer) - len(some)
    more = f" ({left:,} more queries)" if left > 0 else ""
    return (
        f'<div class="gradstore"><style>{resource("gallery.css")}</style>'
        f"<p>{escape(repr(answer))}{more}</p>{''.join(shown)}</div>"
    )


def _recorded(store: Store) -> Pictures | None:
    known = all(Provenance.of(part.spec).config.get("dataset") for part in store.parts)
    return pictures(store) if known else None
