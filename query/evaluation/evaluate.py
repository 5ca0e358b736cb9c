"""Implementation of `gradstore evaluate`: how far can the answers about a model be trusted?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import ConfigError, QueryError
from gradstore.store.format.spec import EventSpec
from gradstore.store.opening import open_store
from indexer import measure_of
from indexer.measure import is_of_rows
from query.collection import collect_queries
from query.evaluation import methods
from query.evaluation.figures import (
    auroc,
    copies_found,
    datamodeling_score,
    group_influence,
    label_share,
    noise_ceiling,
    top,
)
from query.evaluation.page import page, table
from query.evaluation.removal import RANDOM, removal
from query.evaluation.retraining import Judge, Retraining, by_command, halves
from query.results.folder import claimed
from query.results.pictures import pictures
from query.results.writing import written
from query.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gradstore.collect import Samples
    from gradstore.flags.evaluate import EvaluateConfig
    from gradstore.store.reader import Store
    from query.evaluation.retraining import Train

_RANDOM_SETS: Final = 4
PIXELS: Final = "pixels, cosine"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation.

    Attributes:
        figures: all figures, as in `evaluation.json`.
        path: the page.
    """

    figures: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        return table(self.figures)


def evaluate(
    config: EvaluateConfig, train: Train | None = None, *, samples: Any = None
) -> Evaluation:
    """Evaluate measures on a user's own model and data. Resumes if interrupted.

    Writes `evaluation.json` and `evaluation.md` into `config.out`.

    Args:
        config: the stores, the queries, and what to evaluate.
        train: trains on the samples with some ids, by a seed, and writes checkpoints into a folder;
            in place of `config.train`.
        samples: the training samples, if the stores were collected from Python, which records no
            dataset; without them, nothing is compared with pixels or copies.

    Raises:
        GradstoreError: if the inputs do not match, or a training fails. What was retrained is kept.

    Examples:
        >>> import gradstore as gs
        >>> config = gs.EvaluateConfig(
        ...     stores=["train.gradstore"], dataset="asked_images", out="evaluation", copies=2
        ... )
        >>> found = gs.evaluate(config, samples="my_images")
        >>> list(found.figures["methods"])
        ['tracin', 'retrac', 'trak', 'pixels, cosine', 'pixels, kernel', 'random']
    """
    out = Path(config.out)
    # Open the stores and report every cheap mistake.
    stores = _opened(config)
    outliers = _outliers(config, stores[0])
    train = by_command(config.train) if train is None and config.train is not None else train
    if config.removals and train is None:
        raise ConfigError("--removals needs models trained again: give --train.")
    with claimed(out, config, "evaluate.yaml"):
        result = _evaluated(config, stores, outliers, train, samples)
        content = json.dumps(result, indent=2) + "\n"
        path = out / "evaluation.md"
        for file, text in ((out / "evaluation.json", content), (path, page(config, result))):
            with written(file) as writing:
                writing.write_text(text, encoding="utf-8")
        return Evaluation(json.loads(content), path)


def _evaluated(
    config: EvaluateConfig,
    stores: Sequence[Store],
    outliers: NDArray[np.bool_] | None,
    train: Train | None,
    samples: Any,
) -> dict[str, Any]:
    """All figures."""
    from gradstore.collect import Samples

    # Score all training samples for the queries, and for copies of training samples.
    heldout = Samples.from_spec(config)
    images = pictures(stores[0]) if samples is None else Samples.of(samples)
    copied = _copied(stores[0], config.copies if images is not None else 0)
    asked = _joined(heldout, images, [stores[0].manifest.ids[row] for row in copied], copied)
    found: dict[str, NDArray[np.float32]] = {}
    for number, store in enumerate(stores):
        queries = collect_queries(
            store,
            asked,
            Path(config.out) / f"queries-{number}.gradstore",
            events=config.events(),
            checkpoints=config.checkpoints,
            batch_size=config.batch_size,
            memory=config.memory,
            device=config.device,
        )
        for measure in config.measures:
            name = _name(measure, store, stores)
            found[name] = methods.scores(store, queries, measure)
    found |= _baselines(config, stores[0], asked, len(heldout), images)

    # Compare them with what is known without training.
    count = len(heldout)
    own = stores[0].manifest.metadata.get("label")
    theirs = heldout.manifest.metadata.get("label")
    figures: dict[str, Any] = {name: {} for name in found}
    for name, one in found.items():
        if own is not None and theirs is not None:
            figures[name]["label share"] = label_share(one[:count], own, theirs).json()
        if len(copied) and len(one) > count:
            figures[name]["copies found"] = copies_found(one[count:], copied).json()
    result: dict[str, Any] = {"methods": figures, "queries": count}
    if outliers is not None:
        result["outliers"] = {
            _name(measure, store, stores): auroc(
                [methods.own_influence(store, measure)], outliers
            ).json()
            for store in stores
            for measure in config.measures
            if is_of_rows(measure_of(measure))
        }

    # Compare them with models that are trained on other samples.
    if train is not None:
        result |= _retrained(config, stores, heldout, found, train)
    return result


def _retrained(
    config: EvaluateConfig,
    stores: Sequence[Store],
    heldout: Samples,
    found: dict[str, NDArray[np.float32]],
    train: Train,
) -> dict[str, Any]:
    """Figures that need models trained again."""
    from gradstore.collect import losses
    from gradstore.collect.recorded import Recorded

    out, store = Path(config.out), stores[0]
    grid = EventSpec(
        events="planned",
        timesteps=config.loss_timesteps,
        draws=config.loss_draws,
        event_seed=config.event_seed + 1,
    )

    def judged(checkpoint: Path) -> NDArray[np.float64]:
        objective = Recorded.of(store).objective.spec()
        return losses(heldout, checkpoint, events=grid, objective=objective, device=config.device)

    retraining = Retraining(
        store.manifest.ids, Judge(train, judged, out / "training"), out / "losses"
    )
    members = halves(store.samples, config.subsets)
    truth = retraining.on_subsets(members, config.seeds)
    count = truth.shape[1]
    every, other = np.arange(count)[::2], np.arange(count)[1::2]
    scores: dict[str, Any] = {}
    means: dict[str, float] = {}
    own = {_name(measure, store, stores) for store in stores for measure in config.measures}
    for name, one in found.items():
        sums = group_influence(one[:count], members)
        strong = group_influence(one[:count], members, exponential=True)
        scores[name] = {
            "lds": datamodeling_score(sums, truth).json(),
            "lds, exponential": datamodeling_score(strong, truth).json(),
        }
        if name in own:
            means[name] = datamodeling_score(sums[every], truth[:, every]).mean
    result: dict[str, Any] = {"retrained": scores, "subsets": len(members), "seeds": config.seeds}
    if len(other):
        best = max(means, key=lambda name: means[name])
        sums = group_influence(found[best][:count], members)
        score = datamodeling_score(sums[other], truth[:, other]).json()
        result["chosen"] = {"method": best, "lds": score}
    if config.seeds > 1:
        result["ceiling"] = noise_ceiling(truth)
    if config.removals:
        queries = np.arange(min(config.removals, count))
        changes = removal(
            retraining,
            {
                name: top(one[queries], config.removed)
                for name, one in found.items()
                if name in own or name == PIXELS
            },
            queries,
            config.seeds,
            _RANDOM_SETS,
        )
        result["removal"] = {
            name: {
                "loss change": interval(one).json(),
                "over random": interval(one - changes[RANDOM]).json(),
            }
            for name, one in changes.items()
        }
    return result


def _opened(config: EvaluateConfig) -> list[Store]:
    for name in config.measures:
        measure_of(name)
    stores = [open_store(one) for one in config.stores]
    for store in stores:
        store.require_complete()
        if list(store.manifest.ids) != list(stores[0].manifest.ids):
            raise QueryError(
                f"{store.location} and {stores[0].location} have other training samples: they "
                "cannot be compared. Evaluate them one by one."
            )
    config.require_there()
    return stores


def _name(measure: str, store: Store, stores: Sequence[Store]) -> str:
    return measure if len(stores) == 1 else f"{measure}, {store.name.removesuffix('.gradstore')}"


def _outliers(config: EvaluateConfig, store: Store) -> NDArray[np.bool_] | None:
    """Whether each training sample is an outlier; None if none is named."""
    if config.outliers is None:
        return None
    column, _, value = config.outliers.partition("=")
    values = store.manifest.metadata.get(column)
    if values is None:
        known = ", ".join(sorted(store.manifest.metadata)) or "none"
        raise QueryError(f"{store.location} has no column {column!r}; it has {known}.")
    found = np.array([str(one) == value for one in values])
    if found.all() or not found.any():
        raise QueryError(
            f"{int(found.sum())} of {len(found)} samples of {store.location} have {column} = "
            f"{value!r}: outliers are some of them. Check --outliers."
        )
    return found


def _copied(store: Store, copies: int) -> NDArray[np.int64]:
    """Numbers of the training samples that are queried, ascending."""
    generator = np.random.default_rng(0)
    return np.sort(generator.permutation(store.samples)[:copies])


def _joined(
    heldout: Samples, images: Any, names: Sequence[str], copied: NDArray[np.int64]
) -> Samples:
    """The queries, followed by the copied training samples."""
    from gradstore.collect import Samples

    taken = [heldout[row] for row in range(len(heldout))] + [images[row] for row in copied.tolist()]
    ids = [*heldout.ids, *(f"copy of {name}" for name in names)]
    return Samples(
        [
            {"image": one.tensor, "label": one.label, "conditions": dict(one.conditions)}
            for one in taken
        ],
        ids=ids,
    )


def _baselines(
    config: EvaluateConfig, store: Store, asked: Samples, heldout: int, images: Any
) -> dict[str, NDArray[np.float32]]:
    found = {}
    if images is not None:
        left, right = (
            np.stack([samples[row].tensor.numpy().ravel() for row in range(count)])
            for samples, count in ((asked, len(asked)), (images, store.samples))
        )
        found[PIXELS] = methods.cosine(left, right)
        found["pixels, kernel"] = methods.kernel(left, right)
    for name in config.features:
        left, right = _features(Path(name), heldout, store.samples)
        found[f"{Path(name).stem}, cosine"] = methods.cosine(left, right)
    return {**found, "random": methods.chance(len(asked), store.samples)}


def _features(
    file: Path, queries: int, samples: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            left, right = (arrays[name].astype(np.float32) for name in ("queries", "train"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QueryError(
            f"{file} cannot be read as features: {error}. Write it by numpy.savez with arrays "
            "`queries` and `train`."
        ) from error
    if len(right) != samples or len(left) != queries or left.ndim != 2 or right.ndim != 2:
        raise QueryError(
            f"{file} has queries {left.shape} and train {right.shape}; there are "
            f"{queries} queries and {samples} training samples. Give one row for each, in order."
        )
    return left, right
