"""`gradstore demo`: the whole pipeline on scikit-learn's handwritten digits, without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gradstore.flags.collect import CollectConfig
from gradstore.flags.dataset import DatasetSpec
from gradstore.flags.question import QueryEvents
from gradstore.flags.train import TrainConfig
from indexer import build_index, measure_of
from indexer.measures.registry import indexed
from query.cli.comparison import Compared, comparison
from query.collection import collect_queries
from query.engines import fitted
from query.queries import Queries
from query.results.files import Result, write_answers
from query.results.folder import claimed
from query.results.report import Section
from query.results.writing import written
from query.searching import search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.collect import Samples
    from gradstore.flags.demo import DemoConfig
    from gradstore.store.reader import Store
    from query.results.answer import Answer

CHECKPOINTS: Final = 4
MEASURES: Final = ("tracin", "retrac", "trak")
# As in the paper: rows without a metric, of the timesteps and noises that training drew.
PAPER: Final = ("tracin", "retrac")
_KINDS: Final = {
    "held-out": "Held-out digits",
    "generated": "Generated digits",
    "copy": "Copies of training digits",
}


def run(config: DemoConfig) -> Result:
    """Train, collect, index, generate, query, compare and report, all below `config.out`.

    Resumes if interrupted.

    Raises:
        ConfigError: if `config.out` was made with other settings.
    """
    out = Path(config.out)
    with claimed(out, config, "demo.yaml"):
        return _made(config, out)


def _made(config: DemoConfig, out: Path) -> Result:
    from gradstore.collect import Samples, collect_config

    checkpoints = _trained(config, out / "run")
    stores = {
        name: collect_config(
            CollectConfig(
                dataset="digits",
                limit=config.digits,
                checkpoints=[str(folder) for folder in checkpoints],
                store=str(out / f"{name}.gradstore"),
                projector="sjlt",
                proj_dim=config.proj_dim,
                proj_seed=config.seed,
                **options,
            )
        )
        for name, options in (
            ("train", {}),
            ("paper", {"events": "replayed", "metric": "none"}),
        )
    }
    store, paper = stores["train"], stores["paper"]
    digits = Samples.from_spec(DatasetSpec(dataset="digits", limit=config.digits))
    spec = _asked(config, out / "asked", digits, checkpoints[-1])
    images = Samples.from_spec(spec)
    early = QueryEvents(event_seed=config.seed)
    every = QueryEvents(timesteps=10, draws=1, timesteps_below=1, event_seed=config.seed)
    asked = collect_queries(
        store, images, out / "asked.gradstore", events=early.events(), config=spec.recorded()
    )
    labelled = images.only([name for name in images.ids if not name.startswith("generated")])
    plainly = collect_queries(paper, labelled, out / "asked-paper.gradstore", events=every.events())

    engines = {name: build_index(store, name) for name in {indexed(one).name for one in MEASURES}}
    measures = [fitted(measure_of(name), store) for name in MEASURES]

    def answered(kind: str) -> list[Answer]:
        some = _of_kind(asked, kind)
        return [search(engines[indexed(one).name], some, config.k, measure=one) for one in measures]

    compared = [
        *(Compared(store, asked, name, "the model's metric") for name in MEASURES),
        *(Compared(paper, plainly, name, "as in the paper") for name in PAPER),
    ]
    told = comparison(compared, config.k)
    notes = {"held-out": told.others, "copy": told.copies}
    sections = [
        Section(title, answered(kind), images, notes.get(kind, ""))
        for kind, title in _KINDS.items()
    ]
    result = write_answers(out, "Who taught the model these digits?", sections, digits)
    return Result(result.table, result.report, told.text)


def _trained(config: DemoConfig, folder: Path) -> Sequence[Path]:
    """The checkpoints of the training run, made now if it is not there."""
    from gradstore.collect import find_checkpoints, train

    made = list((folder / "checkpoints").glob("epoch-*"))
    if folder.exists() and len(made) < CHECKPOINTS:  # it was interrupted
        shutil.rmtree(folder)
    if not folder.exists():
        train(
            TrainConfig(
                dataset="digits",
                limit=config.digits,
                out=str(folder),
                epochs=config.epochs,
                checkpoint_every=config.epochs // CHECKPOINTS,
                seed=config.seed,
            )
        )
    return find_checkpoints(folder)[:CHECKPOINTS]


def _asked(config: DemoConfig, folder: Path, digits: Samples, checkpoint: Path) -> DatasetSpec:
    """A folder of the images to ask about, so that the page and the report can show them."""
    from gradstore.collect import Samples, generate

    if not folder.exists():
        heldout = Samples.from_spec(
            DatasetSpec(dataset="digits", split="test", limit=config.heldout)
        )
        copies = range(0, len(digits), max(1, len(digits) // config.copies))[: config.copies]
        drawn = Samples(generate(checkpoint, config.generated, seed=config.seed))
        made = [
            *((f"held-out-{row:02d}", heldout, row) for row in range(len(heldout))),
            *((f"generated-{row:02d}", drawn, row) for row in range(len(drawn))),
            *((f"copy-of-{digits.ids[row]}", digits, row) for row in copies),
        ]
        with written(folder) as writing:
            writing.mkdir()
            lines = []
            for name, images, row in made:
                picture = images[row].picture
                if picture is not None:  # digits are pictures
                    picture.save(writing / f"{name}.png")
                line = {"file_name": f"{name}.png", "label": images[row].label}
                lines.append(json.dumps(line) + "\n")
            (writing / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return DatasetSpec(dataset=str(folder.resolve()))


def _of_kind(asked: Store, kind: str) -> Queries:
    """The queries of one kind; their names begin with it, and names are sorted."""
    rows = [row for row, name in enumerate(asked.manifest.ids) if name.startswith(kind)]
    return Queries.of(asked).part(rows[0], rows[-1] + 1)
