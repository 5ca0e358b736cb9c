"""What a server says of itself: the store, its measures, what it can do and what to beware of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from gradstore import __version__
from gradstore.collect.models.folders import model_folder, read_config
from gradstore.collect.recorded import Recorded
from gradstore.errors import CheckpointError
from indexer import ExactEngine
from query.results.wording import ERRORS, NAMES, PROVENANCE, SIDES, about

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.errors import GradstoreError
    from indexer import SearchIndex
    from query.serve.gradients import Gradients
    from query.serve.library import Library

# Each measure's number: least, most, step and first value; None for measures without one. The last
# value says whether it weighs rows, so that a range of timesteps can be chosen.
_NUMBERS: Final[dict[str, tuple[tuple[float, float, float, float] | None, bool]]] = {
    "tracin": (None, True),
    "retrac": (None, True),
    "power": ((0, 1, 0.05, 0.5), True),
    "clip": ((0, 1, 0.01, 0.9), True),
    "calibrated": (None, True),
    "centred": (None, False),
    "trak": ((0.001, 10, 0.001, 1), False),
    "minus": ((1, 50, 1, 1), False),
}
_PATH: Final = re.compile(r"(?<![\w:/])(?:/|[A-Za-z]:\\)[^\s'\",;:]*")


def described(library: Library, gradients: Gradients, *, generates: bool, classes: int) -> Any:
    """Everything that a page needs before its first question."""
    store, queries = library.store, library.queries
    recorded = Recorded.of(store)
    return {
        "name": store.name,
        "version": __version__,
        "fingerprint": store.spec.fingerprint[:16],
        "samples": store.samples,
        "slots": store.slots,
        "dim": store.dim,
        "parameters": recorded.model.num_parameters,
        "metric": recorded.metric.name,
        "replayed": recorded.events.kind == "replayed",
        "checkpoints": [
            {"number": one.number, "eta": one.eta, "epoch": one.epoch}
            for one in store.spec.checkpoints
        ],
        "columns": library.values,
        "queries": 0 if queries is None else queries.samples,
        "measures": [
            {
                "name": name,
                "title": NAMES[name],
                "about": about(name),
                "number": number,
                "rows": rows,
            }
            for name, (number, rows) in _NUMBERS.items()
        ],
        "can_ask": gradients.possible,
        "can_generate": gradients.possible and (generates or gradients.prompts),
        "prompts": gradients.prompts,
        "classes": classes,
        "warnings": warnings(library, gradients),
        "sides": SIDES,
        "errors": ERRORS,
        "provenance": PROVENANCE,
    }


def warnings(library: Library, gradients: Gradients) -> list[str]:
    """What to beware of."""
    store, found = library.store, []
    if store.missing():
        found.append(
            "The store is not complete: samples that are not collected yet are left out of every "
            "answer."
        )
    if not store.is_current():
        found.append("The store has changed since this server was started. Start it again.")
    if library.shown["sample"][1] is None:
        found.append(
            "The training images cannot be shown: the store records no dataset that may be read. "
            "Start the server with --dataset."
        )
    if not gradients.possible:
        found.append(
            "New images cannot be asked: the checkpoints are not known. Start the server with "
            "--checkpoints."
        )
    return found


def how_found(engine: SearchIndex | ExactEngine) -> str:
    """How an answer was found, if it may lack samples; else empty."""
    if isinstance(engine, ExactEngine):
        return ""
    measured = engine.spec.measured
    return (
        f"Found by an index, which may miss samples: it finds {measured.recall_at_10:.1%} of the "
        "first ten, as measured when it was built. Scores are exact."
    )


def model_facts(folders: Sequence[Path]) -> tuple[bool, int]:
    """Whether the last checkpoint can generate images by itself, and its number of classes."""
    folder = model_folder(folders[-1]) if folders else None
    if folder is None:
        return False, 0
    try:
        config = read_config(folder / "config.json")
    except CheckpointError:
        return False, 0
    classes = config.get("num_class_embeds")
    own = config.get("_class_name") == "UNet2DModel" and config.get("sample_size") is not None
    return own and classes is None, classes if isinstance(classes, int) else 0


def told(error: GradstoreError, library: Library) -> str:
    """An error's text without paths of the server."""
    text = str(error)
    for store in (library.store, library.queries):
        if store is not None:
            text = text.replace(store.location, store.name)
    return _PATH.sub("…", text)
