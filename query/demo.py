"""`gradstore demo`: the whole road on scikit-learn's handwritten digits, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from gradstore.config import CollectConfig, DatasetSpec, TrainConfig
from gradstore.errors import ConfigError
from gradstore.spec import EventSpec, ProjectorSpec
from indexer import build_index
from query.ask import Result, write_answers
from query.engine import collect_queries, search
from query.report import Section

if TYPE_CHECKING:
    from gradstore.reader import Store
    from query.config import DemoConfig

CHECKPOINTS = 4
MEASURES = ("tracin", "retrac")


def run(config: DemoConfig) -> Result:
    """Train, collect, index, generate, query, report; all of it under `config.out`.

    Raises:
        ConfigError: if `config.out` exists.
    """
    from gradstore.collect import (
        Samples,
        TrakProjector,
        collect,
        generate,
        train,
    )

    out = Path(config.out)
    if out.exists():
        raise ConfigError(f"{out} exists; nothing was changed. Choose another --out or move it.")
    out.mkdir(parents=True)
    (out / "demo.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
    checkpoints = train(
        TrainConfig(
            dataset="digits",
            out=str(out / "run"),
            epochs=config.epochs,
            checkpoint_every=config.epochs // CHECKPOINTS,
            seed=config.seed,
        )
    )[:CHECKPOINTS]
    settings = CollectConfig(
        dataset="digits",
        checkpoints=[str(folder) for folder in checkpoints],
        store=str(out / "train.gradstore"),
        proj_dim=config.proj_dim,
        proj_seed=config.seed,
        precision="bfloat16",
    )
    # One object for all three stores: it draws each checkpoint's matrix once.
    projector = TrakProjector(
        ProjectorSpec.model_validate(settings.model_dump(include=set(ProjectorSpec.model_fields)))
    )
    digits = Samples.from_spec(settings)
    store = collect(
        digits,
        checkpoints,
        settings.store,
        projector=projector,
        memory=settings.memory,
        config=settings.model_dump(mode="json"),
    )
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
            events=EventSpec(events="planned", timesteps=10, draws=2, event_seed=config.seed),
            projector=projector,
        )
        answers = [search(index, asked, config.k) for index in indexes]
        sections.append(Section(title, answers, queries))
    return write_answers(out, "Who taught the model these digits?", sections, digits)
