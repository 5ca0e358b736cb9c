"""`gradstore demo`: the whole pipeline on scikit-learn's handwritten digits, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gradstore.flags.collect import CollectConfig
from gradstore.flags.dataset import DatasetSpec
from gradstore.flags.question import QueryEvents
from gradstore.flags.train import TrainConfig
from indexer import build_index
from query.collection import collect_queries
from query.results.files import Result, write_answers
from query.results.folder import claimed
from query.results.report import Section
from query.searching import search

if TYPE_CHECKING:
    from gradstore.flags.demo import DemoConfig
    from gradstore.store.reader import Store

CHECKPOINTS = 4
MEASURES = ("tracin", "retrac")


def run(config: DemoConfig) -> Result:
    """Train, collect, index, generate, query and report, all below `config.out`.

    Resumes if interrupted.

    Raises:
        ConfigError: if `config.out` was made with other settings.
    """
    out = Path(config.out)
    with claimed(out, config, "demo.yaml"):
        return _made(config, out)


def _made(config: DemoConfig, out: Path) -> Result:
    from gradstore.collect import (
        Samples,
        collect_config,
        find_checkpoints,
        generate,
        train,
    )

    run_folder = out / "run"
    made = list((run_folder / "checkpoints").glob("epoch-*"))
    if run_folder.exists() and len(made) < CHECKPOINTS:  # it was interrupted
        shutil.rmtree(run_folder)
    if not run_folder.exists():
        train(
            TrainConfig(
                dataset="digits",
                limit=config.digits,
                out=str(run_folder),
                epochs=config.epochs,
                checkpoint_every=config.epochs // CHECKPOINTS,
                seed=config.seed,
            )
        )
    checkpoints = find_checkpoints(run_folder)[:CHECKPOINTS]
    settings = CollectConfig(
        dataset="digits",
        limit=config.digits,
        checkpoints=[str(folder) for folder in checkpoints],
        store=str(out / "train.gradstore"),
        projector="sjlt",
        proj_dim=config.proj_dim,
        proj_seed=config.seed,
    )
    digits = Samples.from_spec(settings)
    store = collect_config(settings)
    indexes = [build_index(store, measure) for measure in MEASURES]

    heldout = Samples.from_spec(DatasetSpec(dataset="digits", split="test", limit=config.heldout))
    images = generate(checkpoints[-1], config.generated, seed=config.seed)
    generated = Samples(images, ids=[f"generated-{number:02d}" for number in range(len(images))])
    sections = []
    for title, queries in (("Held-out digits", heldout), ("Generated digits", generated)):
        asked: Store = collect_queries(
            store,
            queries,
            out / f"{title.split()[0].lower()}.gradstore",
            events=QueryEvents(event_seed=config.seed).events(),
        )
        answers = [search(index, asked, config.k) for index in indexes]
        sections.append(Section(title, answers, queries))
    return write_answers(out, "Who taught the model these digits?", sections, digits)
