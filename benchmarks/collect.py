"""What does a row cost, relative to a plain training step?

Collects a shard of random images through the public API with each projector and engine. Compares
the time with forward and backward of the mean loss over the same batches, and with
`BasicProjector.project`, for a small model and one of the paper's size. Measures the memory of
collecting against its budget, and the effect of cheaper arithmetic on the ranking of scores.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from scipy.stats import spearmanr
from trak.projectors import BasicProjector

from benchmarks.footprint import footprint
from benchmarks.harness.command import command
from benchmarks.harness.results import (
    Target,
    interleaved,
    machine,
    notes,
    processor,
    save,
    spread,
    target_table,
)
from benchmarks.worlds.models import build
from gradstore.arithmetic import product_rates
from gradstore.collect import (
    DiffusionLoss,
    EventSpec,
    GradientSpec,
    InProcess,
    ProjectorSpec,
    Samples,
    SjltProjector,
    Task,
    TrainConfig,
    TrakProjector,
    collect,
    plan,
    train,
)
from gradstore.collect.models.optimizer import save_moments
from indexer import Features

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diffusers import UNet2DModel
    from numpy.typing import NDArray

    from gradstore.store.reader import Store

BATCH = 32
TRAINING_SET = 5200  # the paper's; amortises the drawing of a matrix


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        model: the small model.
        large: the model of the paper's size.
        samples: samples collected with the small model, one shard.
        large_samples: samples collected with the large model.
        proj_dim: projection dimension.
        repeats: repetitions of each measurement.
        budgets: memory budgets in GiB, for the small and the large model.
        epochs: training epochs on digits before scores are compared.
        digits: training digits whose scores are compared, at a quarter of `proj_dim`.
    """

    model: str
    large: str
    samples: int
    large_samples: int
    proj_dim: int
    repeats: int
    budgets: tuple[tuple[float, ...], tuple[float, ...]]
    epochs: int
    digits: int


PRESETS = {
    "cpu": Preset("small", "paper", 512, 64, 4096, 3, ((0.5, 1, 4), (1, 4)), 12, 300),
    "tiny": Preset("tiny", "tiny", 64, 32, 64, 1, ((0.25,), (0.5,)), 4, 40),
}


# Metrics that are timed, and how much longer collecting in them may take.
METRICS: Final = {"adam": 1.05, "kfac": 1.5}


class _Timed(InProcess):
    """Times a whole shard, after a short one that loads the checkpoint and draws its matrix."""

    seconds = 0.0

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        whole, short = tasks
        work(short)
        start = perf_counter()
        work(whole)
        self.seconds = perf_counter() - start


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Measure, and write `collect.json`, `collect.md` and `collect.png` into `out`."""
    torch.manual_seed(seed)
    sparse = ProjectorSpec(projector="sjlt", proj_dim=preset.proj_dim, proj_seed=seed)
    dense = ProjectorSpec(proj_dim=preset.proj_dim, proj_seed=seed)
    full, half = (dense.model_copy(update={"precision": one}) for one in ("float32", "bfloat16"))
    model = build(preset.model)
    num_parameters = sum(p.numel() for p in model.parameters())
    draw = _draw_seconds(dense, num_parameters, preset.repeats)
    cheaper: dict[str, tuple[ProjectorSpec, dict[str, Any]]] = {
        "trak bfloat16": (half, {}),
        "sjlt, autocast bfloat16": (sparse, {"gradients": GradientSpec(autocast="bfloat16")}),
    }
    small = _collecting(
        model,
        {
            "sjlt": (sparse, {}),
            "trak": (dense, {}),
            "trak float32": (full, {}),
            "sjlt, engine vmap": (sparse, {"engine": "vmap"}),
            **{f"sjlt, metric {one}": (sparse, {"metric": one}) for one in METRICS},
            **(cheaper if _usable() else {}),
        },
        samples=preset.samples,
        repeats=preset.repeats,
        once=dict.fromkeys(("trak", "trak bfloat16", "trak float32"), draw["median"]),
    )
    large_model = build(preset.large)
    large = _collecting(
        large_model,
        {"sjlt": (sparse, {})},
        samples=preset.large_samples,
        repeats=min(2, preset.repeats),
        once={},
        # The size that collecting a whole training set finds by timing; too few samples here.
        batch_size=BATCH // 4,
    )
    bill = _bill(large_model, dense)
    alone, basic_seconds = _projectors_alone(sparse, full, num_parameters, preset.repeats)
    share = _product_share(dense, num_parameters, preset.repeats)
    floor = _floor(
        small["sjlt"]["plain"]["median"], alone["read"]["median"], num_parameters, preset.proj_dim
    )
    footprints = _footprints(preset)
    agreement = _agreement(preset, seed)

    ratio = {name: one["ratio"]["median"] for name, one in small.items()}
    large_ratio = large["sjlt"]["ratio"]["median"]
    without = small["sjlt"]["ratio"]["median"]
    sparse_ratio = alone["sjlt"]["median"] / alone["read"]["median"]
    against_basic = basic_seconds / small["trak"]["seconds"]["median"]
    worst = max(one["taken"] / one["budget"] for one in footprints)
    targets = [
        Target("collect with sjlt", "≤ 1.15 × a plain step", ratio["sjlt"], ratio["sjlt"] <= 1.15),
        Target(
            "collect with sjlt, the paper's size",
            "≤ 1.15 × a plain step",
            large_ratio,
            large_ratio <= 1.15,
        ),
        Target(
            "collect with trak, amortised over 5,200 samples",
            "≤ 3 × a plain step",
            ratio["trak"],
            ratio["trak"] <= 3,
        ),
        Target(
            "trak's product, matrix decoded, of this machine's best of the same shape",
            "≥ 0.6",
            share["share"]["median"],
            share["share"]["median"] >= 0.6,
        ),
        Target(
            "collecting a batch with trak, against BasicProjector.project alone",
            "≥ 20 × faster",
            against_basic,
            against_basic >= 20,
        ),
        *(
            Target(
                f"collecting in metric {name}, its fit apart, against collecting in none",
                f"≤ {most:g} ×",
                ratio[f"sjlt, metric {name}"] / without,
                ratio[f"sjlt, metric {name}"] / without <= most,
            )
            for name, most in METRICS.items()
        ),
        Target("sjlt alone", "≤ 5 × reading the gradients", sparse_ratio, sparse_ratio <= 5),
        Target("peak memory", "≤ 1 × --memory", worst, worst <= 1),
    ]
    figures = {
        "collect": small,
        "collect_large": large,
        "sjlt_alone_seconds": alone,
        "trak_draw_seconds": draw,
        "trak_product": share,
        "products_per_second": product_rates(),
        "basic_projector_seconds_per_batch": basic_seconds,
        "plan_of_trak_for_the_large_model": bill,
        "floor": floor,
        "memory": footprints,
        "rank_correlation": agreement,
    }
    inputs = {
        "num_parameters": num_parameters,
        "large_num_parameters": sum(p.numel() for p in large_model.parameters()),
        "batch": BATCH,
        "samples": preset.samples,
        "large_samples": preset.large_samples,
        "proj_dim": preset.proj_dim,
        "repeats": preset.repeats,
        "seed": seed,
    }
    page = _page(inputs, figures, targets)
    save(out, "collect", inputs=inputs, figures=figures, targets=targets, page=page)
    basic = basic_seconds / small["sjlt"]["plain"]["median"]
    _plot(out / "collect.png", {"plain step": 1.0, **ratio, "BasicProjector alone": basic})
    return targets


def _collecting(
    model: UNet2DModel,
    ways: Mapping[str, tuple[ProjectorSpec, dict[str, Any]]],
    *,
    samples: int,
    repeats: int,
    once: Mapping[str, float],
    batch_size: int = BATCH,
) -> dict[str, dict[str, Any]]:
    """Seconds per batch of each way to collect, in turns, each beside a plain step."""
    side = model.config["sample_size"]
    images = torch.rand(samples + batch_size, 3, side, side) * 2 - 1
    step = _plain_step(model, images)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint-1"
        DDIMPipeline(model, DDIMScheduler()).save_pretrained(checkpoint)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
        step()
        optimizer.step()
        save_moments(checkpoint, optimizer, model)
        for repeat in range(repeats):
            for number, (name, (projector, options)) in enumerate(ways.items()):
                before = interleaved({"step": step}, 3)["step"]["median"]
                timed = _Timed()
                collect(
                    Samples(images),
                    checkpoint,
                    Path(folder) / f"{number}-{repeat}.gradstore",
                    objective="l1",
                    events=EventSpec(events="planned", timesteps=1),
                    projector=projector,
                    executor=timed,
                    shard_samples=samples,
                    batch_size=batch_size,
                    **{"metric": "none", **options},
                )
                after = interleaved({"step": step}, 3)["step"]["median"]
                seconds = timed.seconds * BATCH / samples
                seconds += once.get(name, 0.0) * BATCH / TRAINING_SET
                measured[name].append((seconds, (before + after) / 2))
    return {
        name: {
            "seconds": spread([seconds for seconds, _ in pairs]),
            "plain": spread([plain for _, plain in pairs]),
            "ratio": spread([seconds / plain for seconds, plain in pairs]),
        }
        for name, pairs in measured.items()
    }


def _plain_step(model: UNet2DModel, images: torch.Tensor) -> Callable[[], None]:
    objective = DiffusionLoss(DDIMScheduler(), "l1")
    inputs = images[:BATCH]
    timesteps, noise = torch.randint(0, 1000, (BATCH,)), torch.randn_like(inputs)

    def step() -> None:
        model.zero_grad()
        loss = objective.losses(model, inputs, timesteps, noise, {}).mean()
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def _draw_seconds(spec: ProjectorSpec, num_parameters: int, repeats: int) -> dict[str, float]:
    """Seconds of drawing a checkpoint's matrix: the first product less the second."""
    seconds = []
    for _ in range(repeats + 1):
        projection = TrakProjector(spec).at(0, num_parameters, torch.device("cpu"), 1 << 40)
        buffer = torch.zeros(1, projection.width, dtype=projection.dtype)
        times = []
        for _ in range(2):
            start = perf_counter()
            projection.finish(buffer)
            times.append(perf_counter() - start)
        seconds.append(times[0] - times[1])
    return spread(seconds[1:])  # the very first also finds the generator's taps


def _usable() -> bool:
    """Whether bfloat16 is worth measuring: if slow, it takes hours and is never chosen."""
    rates = product_rates()
    return rates["bfloat16"] > rates["float32"] / 4


def _product_share(spec: ProjectorSpec, num_parameters: int, repeats: int) -> dict[str, Any]:
    """Trak's product of full buffers beside the fastest product of that shape, in turns.

    The others have their matrix ready. They are tried in both orders of the factors, with the
    columns of one block and with all columns.
    """
    length, rows = min(num_parameters, 1 << 17), 256
    projection = TrakProjector(spec).at(0, length, torch.device("cpu"), 1 << 40)
    buffer = torch.randn(rows, length).to(projection.dtype)
    matrix = torch.ones(length, spec.proj_dim, dtype=projection.dtype)
    block = matrix[:, : spec.resolved_block_size].contiguous()
    blocks = spec.proj_dim / block.shape[1]
    jobs: dict[str, Callable[[], object]] = {
        "ours": lambda: projection.finish(buffer),
        "whole": lambda: buffer @ matrix,
        "whole, transposed": lambda: matrix.T @ buffer.T,
        "block": lambda: buffer @ block,
        "block, transposed": lambda: block.T @ buffer.T,
    }
    turns = []
    for job in jobs.values():
        job()
    for _ in range(repeats):
        seconds = {}
        for name, job in jobs.items():
            start = perf_counter()
            job()
            seconds[name] = (perf_counter() - start) * (blocks if "block" in name else 1)
        turns.append(seconds)
    others = [name for name in jobs if name != "ours"]
    return {
        "rows": rows,
        "parameters": length,
        "dtype": str(projection.dtype),
        "seconds": {name: spread([turn[name] for turn in turns]) for name in jobs},
        "share": spread([min(turn[name] for name in others) / turn["ours"] for turn in turns]),
    }


def _projectors_alone(
    sparse: ProjectorSpec, full: ProjectorSpec, num_parameters: int, repeats: int
) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds of sjlt and of reading its gradients; and of one `BasicProjector.project` call."""
    gradients = torch.randn(BATCH, num_parameters)
    projection = SjltProjector(sparse).at(0, num_parameters, torch.device("cpu"), 0)
    buffer = torch.zeros(BATCH, projection.width)
    alone = interleaved(
        {"read": gradients.sum, "sjlt": lambda: projection.add(buffer, 0, gradients)}, 5 * repeats
    )
    basic = BasicProjector(
        num_parameters,
        full.proj_dim,
        full.proj_seed,
        "rademacher",
        torch.device("cpu"),
        block_size=full.resolved_block_size,
    )
    start = perf_counter()
    basic.project(gradients, model_id=0)
    return alone, perf_counter() - start


def _floor(plain: float, read: float, num_parameters: int, dim: int) -> dict[str, float]:
    """Lower bound of the time of a batch, from this machine's best rates.

    Every way needs the products of a plain step. Per-row gradients are written once and read once
    (`read` is the time of one pass over them). trak also multiplies them with a matrix, at the rate
    of the faster product of 128 rows and columns with ready operands.
    """
    rate = max(product_rates().values()) * torch.get_num_threads()  # rates are per core
    operations = 2 * BATCH * num_parameters * dim
    return {
        "operations_per_second": rate,
        "read_bytes_per_second": 4 * BATCH * num_parameters / read,
        "trak_operations_per_batch": operations,
        "sjlt": 1 + 2 * read / plain,
        "trak": 1 + 2 * read / plain + operations / rate / plain,
    }


def _bill(model: UNet2DModel, spec: ProjectorSpec) -> dict[str, Any]:
    """`gradstore plan` for the paper's 5,200 samples with trak, and its alternatives."""
    side = model.config["sample_size"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint-1"
        DDIMPipeline(model, DDIMScheduler()).save_pretrained(checkpoint)
        # One image repeated: only its shape matters here.
        images = torch.zeros(1, 3, side, side).expand(TRAINING_SET, -1, -1, -1)
        found = plan(
            Samples(images),
            checkpoint,
            Path(folder) / "s.gradstore",
            objective="l1",
            events=EventSpec(events="planned", timesteps=1),
            projector=spec,
            metric="none",
        )
    return {
        "text": str(found),
        "seconds": found.seconds,
        "alternatives": {one.flags: one.seconds for one in found.alternatives},
    }


def _footprints(preset: Preset) -> list[dict[str, Any]]:
    """Peak memory without program and model, each case in its own process."""
    cases = [
        (preset.model, memory, preset.samples, "sjlt", preset.proj_dim)
        for memory in preset.budgets[0]
    ]
    cases += [
        (preset.model, preset.budgets[0][-1], preset.samples * 4, "sjlt", preset.proj_dim),
        (preset.model, preset.budgets[0][-1], preset.samples, "trak", preset.proj_dim),
    ]
    for memory in preset.budgets[1]:
        cases.append((preset.large, memory, preset.large_samples // 2, "sjlt", preset.proj_dim))
    few = preset.proj_dim // 16
    cases.append((preset.large, preset.budgets[1][-1], preset.large_samples // 2, "trak", few))
    found = []
    for model, memory, samples, projector, dim in cases:
        spec = ProjectorSpec(projector=projector, proj_dim=dim)
        figures = footprint(model, memory, samples, spec)
        found.append(
            {
                "model": model,
                "samples": samples,
                "projector": projector,
                "proj_dim": dim,
                "budget": memory * 2**30,
                "taken": figures["peak"] - figures["before"] - figures["weights"],
                **figures,
            }
        )
    return found


def _agreement(preset: Preset, seed: int) -> dict[str, dict[str, float]]:
    """Spearman correlation of scores in cheaper arithmetic with those in float32.

    Uses a UNet trained on digits: every query against every training digit; mean over queries.
    """
    base = ProjectorSpec(proj_dim=preset.proj_dim // 4, proj_seed=seed, precision="float32")
    half = base.model_copy(update={"precision": "bfloat16"})
    plain, cast = GradientSpec(autocast="float32"), GradientSpec(autocast="bfloat16")
    ways = {
        "float32": (base, plain),
        "another seed of the projection": (base.model_copy(update={"proj_seed": seed + 1}), plain),
    }
    if _usable():
        ways |= {"trak in bfloat16": (half, plain), "autocast bfloat16": (base, cast)}
    scores: dict[str, dict[str, NDArray[np.float32]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            dataset="digits",
            limit=preset.digits,
            out=f"{folder}/run",
            epochs=preset.epochs,
            checkpoint_every=preset.epochs // 2,
            seed=seed,
        )
        checkpoints = train(config)
        digits = Samples.from_spec(config)
        asked = Samples.from_spec(config.model_copy(update={"split": "test", "limit": 20}))
        for number, (name, (projector, gradients)) in enumerate(ways.items()):
            common: dict[str, Any] = {"projector": projector, "gradients": gradients}
            place = f"{folder}/{number}.gradstore"
            store = collect(digits, checkpoints, place, events="replayed", metric="none", **common)
            queries = collect(
                asked,
                checkpoints,
                f"{folder}/{number}-q.gradstore",
                like=store,
                events=EventSpec(events="planned", timesteps=10, draws=2),
                **common,
            )
            scores[name] = {
                measure: _features(queries, measure) @ _features(store, measure).T
                for measure in ("tracin", "retrac")
            }
    return {
        name: {
            measure: float(
                np.mean(
                    [
                        spearmanr(left, right).statistic
                        for left, right in zip(
                            found[measure], scores["float32"][measure], strict=True
                        )
                    ]
                )
            )
            for measure in found
        }
        for name, found in scores.items()
        if name != "float32"
    }


def _features(store: Store, measure: str) -> NDArray[np.float32]:
    return Features.of(store, measure).range(store)


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    small, large = figures["collect"], figures["collect_large"]
    basic = figures["basic_projector_seconds_per_batch"]
    plain = small["sjlt"]["plain"]["median"]

    def row(name: str, one: dict[str, Any]) -> str:
        ratio = one["ratio"]
        return (
            f"| collect, {name}, written and sealed | {one['seconds']['median'] * 1e3:.0f} | "
            f"{ratio['median']:.2f} ({ratio['low']:.2f} … {ratio['high']:.2f}) |"
        )

    lines = [
        "# What does a row cost, relative to a plain training step?",
        "",
        (
            f"`python -m benchmarks.collect`; batch {inputs['batch']}, {inputs['proj_dim']:,} "
            f"dimensions, {processor()}, torch "
            f"{machine()['versions']['torch']}. Medians of {inputs['repeats']} and the range; each "
            "figure relative to a plain step measured just before and after it."
        ),
        "",
        f"| {inputs['num_parameters']:,} parameters | ms per batch | × a plain step |",
        "|---|---|---|",
        f"| plain step: forward and backward of the mean loss | {plain * 1e3:.0f} | 1 |",
        *[row(name, one) for name, one in small.items()],
        f"| BasicProjector.project alone | {basic * 1e3:.0f} | {basic / plain:.0f} |",
        "",
        f"| {inputs['large_num_parameters']:,} parameters | ms per batch | × a plain step |",
        "|---|---|---|",
        f"| plain step | {large['sjlt']['plain']['median'] * 1e3:.0f} | 1 |",
        *[row(name, one) for name, one in large.items()],
        "",
        target_table(targets),
        "",
        "## The floor",
        "",
        _floor_text(figures),
        "",
        "## Memory",
        "",
        "Peak of the process over its memory before collecting, less one copy of the model.",
        "",
        "| model | samples | projector | --memory | taken |",
        "|---|---|---|---|---|",
        *[
            f"| {one['model']} | {one['samples']} | {one['projector']}, {one['proj_dim']} | "
            f"{one['budget'] / 2**30:g} GiB | {one['taken'] / 2**30:.2f} GiB |"
            for one in figures["memory"]
        ],
        "",
        "## Cheaper arithmetic",
        "",
        (
            f"Spearman correlation of scores with those in float32: a UNet trained on digits, "
            f"{inputs['proj_dim'] // 4:,} dimensions, 20 held-out queries, mean over queries. The "
            "line for another seed shows the effect of the projection itself."
        ),
        "",
        "| | tracin | retrac |",
        "|---|---|---|",
        *[
            f"| {name} | {one['tracin']:.4f} | {one['retrac']:.4f} |"
            for name, one in figures["rank_correlation"].items()
        ],
        "",
        "## The paper's size with trak",
        "",
        "Output of `gradstore plan` for 5,200 samples at one checkpoint:",
        "",
        "```",
        figures["plan_of_trak_for_the_large_model"]["text"],
        "```",
        "",
        notes("collect"),
    ]
    return "\n".join(lines)


def _floor_text(figures: dict[str, Any]) -> str:
    small, floor = figures["collect"], figures["floor"]
    draw = figures["trak_draw_seconds"]["median"]
    drawn = draw * BATCH / TRAINING_SET / small["sjlt"]["plain"]["median"]
    read, rate = floor["read_bytes_per_second"] / 1e9, floor["operations_per_second"] / 1e9
    return (
        "Every way of collecting needs the products of a plain step, and writes and reads per-row "
        f"gradients once at the {read:.1f} GB/s of a sum over them. This takes "
        f"**{floor['sjlt']:.2f} ×** a plain step; collecting with sjlt takes "
        f"{small['sjlt']['ratio']['median']:.2f}. trak also multiplies: "
        f"{floor['trak_operations_per_batch'] / 1e9:.0f} GFLOP a batch at the {rate:.0f} GFLOP/s "
        f"of the fastest product here give **{floor['trak']:.2f} ×**; it takes "
        f"{small['trak']['ratio']['median']:.2f}, including {drawn:.2f} for drawing the "
        f"matrix ({draw:.1f} s once per checkpoint)."
    )


def _plot(path: Path, ratios: dict[str, float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    bars = axes.barh(list(ratios), list(ratios.values()))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xscale("log")
    axes.set_xlabel("time per batch, in plain training steps")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
