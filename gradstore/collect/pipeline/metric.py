"""A job's metric: fitted once per checkpoint, kept in the store, read by every later job.

The root object of a store names the file of each checkpoint's fitted metric. A process that needs a
metric that the root does not name fits it, writes it, and commits its name; the first commit
counts, so that all processes use one file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final, get_args

import torch

from gradstore.collect.engines import StreamingEngine
from gradstore.collect.engines.allocated import peak_bytes
from gradstore.collect.engines.choice import batch_of, forget
from gradstore.collect.events.noise import noise_key
from gradstore.collect.events.planned import PlannedEvents
from gradstore.collect.metrics import Fitting, Metric, Whitening, from_spec
from gradstore.collect.metrics.whitening import fitting_nbytes, most_bytes, neutral
from gradstore.collect.pipeline.batches import event_rows
from gradstore.collect.pipeline.differentiating import LoadedCheckpoint
from gradstore.collect.recorded import Recorded
from gradstore.errors import ConfigError, EngineError, GradientError, StoreError
from gradstore.progress import progress
from gradstore.store.changes.commit import commit, failed, require_generation
from gradstore.store.format.spec import EventSpec, MetricSpec
from gradstore.store.metrics import metric_key, metric_name, read_metric
from gradstore.store.opening import looks_like_store, open_store
from gradstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

    from gradstore.collect.data.samples import Samples
    from gradstore.collect.engines.choice import EngineChoice
    from gradstore.collect.objectives.protocol import Batch, Objective
    from gradstore.collect.pipeline.budget import Budget
    from gradstore.store.format.spec import Identity, StoreSpec
    from gradstore.store.objects.protocol import Objects

# Timesteps at which a metric is fitted, one noise each.
_TIMESTEPS: Final = 10
_LEAST_SAMPLES: Final = 32
_MOST_SAMPLES: Final = 1000


@dataclass(frozen=True)
class JobMetric:
    """The metric of a job.

    Attributes:
        metric: the metric.
        samples: the training samples that it is fitted to; None if only a store's fits are used.
        identity: its identity, with a digest of these samples.
        stores: the stores that hold fits, or will: those that the job fills; of queries, the
            training store.
        source: the training store, if the rows are queries: nothing is written into it.
        lender: a store whose fits those that the job fills take over.
        fits: SHA-256 of the file of each fit that was used, by the checkpoint's number.
    """

    metric: Metric
    samples: Samples | None
    identity: Identity
    stores: Sequence[Objects]
    source: Store | None = None
    lender: Store | None = None
    fits: dict[int, str] = field(default_factory=dict)
    _contents: dict[int, bytes] = field(default_factory=dict)
    _written: dict[int, str] = field(default_factory=dict)

    def fitting_seconds(
        self, loaded: LoadedCheckpoint, objective: Objective, batch: Batch
    ) -> float:
        """Seconds of a fit, from fits to two events of a batch and to all of them.

        Args:
            loaded: a checkpoint.
            objective: the loss.
            batch: as many events as a fit differentiates at once, at least two.
        """
        if not self.events:
            return 0.0
        taken = []
        for count in (2, len(batch)):
            some = batch_of(batch, 0, count)
            start = perf_counter()
            self.metric.fit(self._fitting(loaded, objective, partial(list, [some])))
            taken.append(perf_counter() - start)
        each = max(0.0, taken[1] - taken[0]) / max(1, len(batch) - 2)
        return max(0.0, taken[0] - 2 * each) + each * self.events / self.metric.passes

    def _fitting(
        self,
        loaded: LoadedCheckpoint,
        objective: Objective,
        batches: Callable[[], Iterable[Batch]],
    ) -> Fitting:
        return Fitting(
            folder=loaded.folder,
            model=loaded.model,
            objective=objective,
            engine=loaded.make_engine,
            batches=batches,
            device=loaded.device,
        )

    @property
    def events(self) -> int:
        """Events that a fit differentiates; 0 if none is ever made."""
        if self.samples is None:
            return 0
        return self.metric.passes * len(self.samples) * _TIMESTEPS

    def trial(self, model: nn.Module) -> Whitening:
        """A map of the fitted ones' shapes, to measure time and memory."""
        return neutral(model, layerwise=self.metric.layerwise)

    def pending(self, numbers: Sequence[int]) -> int:
        """How many of some checkpoints are to be fitted: those of which no store has a fit."""
        return sum(self.named(number) is None for number in numbers) if self.events else 0

    def require_memory(self, model: nn.Module, budget: Budget, numbers: Sequence[int]) -> int:
        """Bytes that a fit holds besides the gradients; 0 if none of the checkpoints needs one.

        Raises:
            ConfigError: if they exceed the budget. No row is held meanwhile.
        """
        if not self.pending(numbers):
            return 0
        needed = fitting_nbytes(model, layerwise=self.metric.layerwise)
        if needed + budget.engine > budget.total:
            enough = -(-(needed + budget.engine) * 120 // 2**30) / 100
            raise ConfigError(
                f"--memory is {budget.total / 2**30:.2g} GiB, but to fit metric {self.metric.name} "
                f"takes {needed / 2**30:.2g} besides {budget.engine / 2**30:.2g} of a gradient. "
                f"Give --memory {enough:g}, differentiate fewer layers (--params), or use --metric "
                "adam or fisher."
            )
        return needed

    def named(self, number: int) -> str | None:
        """SHA-256 of the fit at a checkpoint that all stores name; None if one names none."""
        known = self._known(number)
        return known.pop() if len(known) == 1 else None

    def name(self, number: int) -> str | None:
        """Name of the file of the fit that was used at a checkpoint."""
        return self._written.get(number)

    def _known(self, number: int) -> set[str | None]:
        specs = [open_store(objects).spec for objects in self._present()]
        named = [
            next((one.metric_sha256 for one in spec.checkpoints if one.number == number), None)
            for spec in specs
        ]
        return set(named)

    def _present(self) -> list[Objects]:
        return [objects for objects in self.stores if looks_like_store(objects)]

    def at(
        self, number: int, loaded: LoadedCheckpoint, objective: Objective, events: int
    ) -> Whitening:
        """The metric at a checkpoint: from a store, else fitted now; all stores get and name it.

        Args:
            number: number of the checkpoint.
            loaded: the checkpoint.
            objective: the loss.
            events: events at once, in a fit.

        Raises:
            StoreError: if the stores name different fits, or one is damaged.
        """
        known = self.named(number)
        if number in self._contents and known in {None, self.fits[number]}:
            # A checkpoint that is being added is named by no root yet.
            return self._parsed(number, self._contents[number], loaded.model)
        most = most_bytes(loaded.model)
        stored = (read_metric(open_store(objects), number, most) for objects in self._present())
        content = next((one for one in stored if one is not None), None)
        if content is None and self.lender is not None:
            content = read_metric(self.lender, number, most)
        if content is None:
            content = self._fitted(number, loaded, objective, events).content()
        if self.source is None:
            for objects in self._present():
                self._written[number] = _put(objects, number, content)
        names = self._known(number) - {None}
        if len(names) > 1:
            raise StoreError(
                f"{' and '.join(one.location for one in self.stores)} hold different fits of the "
                "metric, so they cannot be filled together. Collect them one by one."
            )
        if names:  # another process may have been first
            content = read_metric(open_store(self._present()[0]), number, most) or content
        self.fits[number] = sha256(content).hexdigest()
        self._contents.clear()  # one is held at a time
        self._contents[number] = content
        return self._parsed(number, content, loaded.model)

    def _parsed(self, number: int, content: bytes, model: nn.Module) -> Whitening:
        where = f"{self.stores[0].location}: the metric at checkpoint {number}"
        found = Whitening.parse(content, where=where)
        if not found.fits(model):
            raise StoreError(f"{where} is not one of this model. Use the store's checkpoints.")
        return found

    @torch.inference_mode(mode=False)  # the caller may be in inference mode
    @torch.enable_grad()
    def _fitted(
        self, number: int, loaded: LoadedCheckpoint, objective: Objective, events: int
    ) -> Whitening:
        if self.samples is None:
            raise StoreError(
                f"{self.stores[0].location} has no fitted metric for checkpoint {number}. Run its "
                "`gradstore collect`, which fits it."
            )
        if self.identity.get("fitted_on") not in {None, _digest(self.samples)}:
            raise StoreError(
                f"{self.stores[0].location} has no fitted metric for checkpoint {number}, and "
                "these are not the samples that its metric is fitted to (some may be deleted). "
                "Collect into another store."
            )
        samples, device = self.samples, loaded.device
        steps = min(_TIMESTEPS, objective.num_train_timesteps)
        spec = EventSpec(events="planned", timesteps=steps, draws=1)
        plan = PlannedEvents(spec, objective.num_train_timesteps, "metric")
        total = self.metric.passes * len(samples) * steps
        with progress(total, f"fitting {self.metric.name}", "events") as bar:

            def batches() -> Iterator[Batch]:
                step = max(1, events // steps)
                for start in range(0, len(samples), step):
                    stop = min(start + step, len(samples))
                    some = range(start, stop)
                    rows = event_rows(
                        samples, some, loaded.model, plan, number=number, device=device
                    )
                    for first, last in rows.cuts(0, len(rows), events):
                        batch = rows.batch(slice(first, last))
                        yield batch
                        bar.update(len(batch))

            found = self.metric.fit(self._fitting(loaded, objective, batches))
        if not found.works():
            raise GradientError(
                f"metric {self.metric.name} cannot be fitted at checkpoint {loaded.folder}: its "
                "gradients are not finite, or all zero. Inspect the checkpoint and the samples."
            )
        return found


def metric_of(given: Metric | MetricSpec | Store | str | None) -> Metric | None:
    """The metric that is given, or that a specification, a name or a store describes, or None.

    Raises:
        ConfigError: if there is no metric of that name, or the store's is a custom one.
    """
    if isinstance(given, str):
        names = get_args(MetricSpec.model_fields["metric"].annotation)
        if given not in names:
            raise ConfigError(f"there is no metric {given!r}; use one of {', '.join(names)}.")
        given = MetricSpec.model_validate({"metric": given})
    if isinstance(given, Store):
        given = Recorded.of(given).metric_spec()
    if given is None or isinstance(given, MetricSpec):
        return from_spec(given or MetricSpec())
    return given


def job_metric(
    given: Metric | MetricSpec | Store | str | None,
    samples: Samples,
    stores: Sequence[tuple[Objects, Store | None]],
    *,
    like: Store | None,
) -> JobMetric | None:
    """The metric of a job; None if gradients are compared as they are.

    Args:
        given: the metric.
        samples: the samples of the job.
        stores: location of each store, and the existing store if there is one.
        like: the training store for which the rows are queries; they take over its metric.
    """
    source = like or (given if isinstance(given, Store) else None)
    metric = metric_of(source if given is None else given)
    if metric is None:
        return None
    own = metric.identity()
    if source is not None:
        recorded = source.spec.identity.get("metric")
        # What differs from the recorded one is reported together with all other differences.
        whole = {**recorded, **own} if isinstance(recorded, dict) else own
        if like is not None:
            return JobMetric(metric, None, whole, [like.objects], like)
        places = [objects for objects, _ in stores]
        return JobMetric(metric, None, whole, places, lender=source)
    places = [objects for objects, _ in stores]
    if metric.passes == 0:
        return JobMetric(metric, samples, own, places)
    chosen = _chosen(samples, given.metric_samples if isinstance(given, MetricSpec) else None)
    fitted: Identity = {
        "samples": len(chosen),
        "timesteps": _TIMESTEPS,
        "fitted_on": _digest(chosen),
    }
    for _, store in stores:
        recorded = None if store is None else store.spec.identity.get("metric")
        if isinstance(recorded, dict):  # more samples of a store are compared in its own metric
            fitted = {name: recorded.get(name, value) for name, value in fitted.items()}
    return JobMetric(metric, chosen, {**own, **fitted}, places)


def _digest(samples: Samples) -> str:
    """Digest of the content of samples."""
    digests = dict(zip(samples.manifest.ids, samples.manifest.digests, strict=True))
    digest = blake2b(digest_size=16)
    for name in samples.ids:
        digest.update(f"{name}\x1f{digests[name]}\x1e".encode())
    return digest.hexdigest()


def _chosen(samples: Samples, count: int | None) -> Samples:
    """The samples that a metric is fitted to, the same in every process."""
    if count is None:
        count = min(_MOST_SAMPLES, max(_LEAST_SAMPLES, -(-len(samples) // 10)))
    order = sorted(samples.ids, key=lambda name: noise_key("metric", name))
    wanted = set(order[: min(count, len(samples))])
    return samples.only([name for name in samples.ids if name in wanted])


def _put(objects: Objects, number: int, content: bytes) -> str:
    """Write a fitted metric, and name it in the root if that names none for the checkpoint.

    Returns:
        The name of the checkpoint's metric.
    """
    store = open_store(objects)
    for one in store.spec.checkpoints:
        if one.number == number and one.metric is not None:
            return one.metric
    name = metric_name(content, store.spec.generation)
    try:
        objects.write(metric_key(name), content)
        objects.flush([metric_key(name)])
    except OSError as error:
        raise failed(store, error) from error

    def change(now: Store) -> StoreSpec:
        spec = now.spec
        if not any(one.number == number and one.metric is None for one in spec.checkpoints):
            return spec  # another process was first, or the checkpoint is added later
        require_generation(now, store)
        named = [
            one.model_copy(update={"metric": name}) if one.number == number else one
            for one in spec.checkpoints
        ]
        return spec.model_copy(update={"checkpoints": named})

    after = commit(store, "fit", change).spec.checkpoints
    return next((one.metric for one in after if one.number == number and one.metric), name)


def with_metric(
    choice: EngineChoice, metric: JobMetric, model: nn.Module, objective: Objective, rows: Batch
) -> EngineChoice:
    """An engine with the memory that it takes with a metric, measured on a few rows.

    Raises:
        EngineError: if the metric needs another engine.
    """
    if metric.metric.layerwise and choice.make is not StreamingEngine:
        raise EngineError(
            f"metric {metric.metric.name} maps the inputs and output gradients of layers, which "
            f"only the streaming engine has, and the engine is {choice.name}. Use --engine "
            "streaming, which names the layers that it does not know, or --metric fisher."
        )
    device = rows.inputs.device
    loaded = LoadedCheckpoint(Path(), model, objective, choice.make, device)
    own = metric.trial(model).to(device)
    loaded.whiten(own, "trial")
    held = [
        peak_bytes(partial(loaded.differentiate, batch_of(rows, 0, count), count, forget), device)
        for count in range(1, min(2, len(rows)) + 1)
    ]
    per_event = max(choice.per_event, held[-1] - held[0] if len(held) > 1 else held[0])
    fixed = max(choice.fixed, held[0] - per_event, 0)
    return replace(choice, fixed=fixed + own.nbytes, per_event=per_event)
