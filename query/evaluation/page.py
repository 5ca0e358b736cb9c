"""An evaluation as a table and as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from query.statistics import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradstore.flags.evaluate import EvaluateConfig

# Column, and the section of the figures that holds it.
_COLUMNS: Final = (
    ("lds", "retrained"),
    ("lds, exponential", "retrained"),
    ("label share", "methods"),
    ("copies found", "methods"),
)


def table(figures: Mapping[str, Any]) -> str:
    """The figures of each method as a Markdown table; columns without a figure are left out."""
    names = list(figures["methods"])
    shown = [
        (column, section)
        for column, section in _COLUMNS
        if any(column in figures.get(section, {}).get(name, {}) for name in names)
    ]
    lines = [
        "| method | " + " | ".join(column for column, _ in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for name in names:
        cells = []
        for column, section in shown:
            found = figures[section].get(name, {}).get(column)
            cells.append("" if found is None else text(found, 2))
        lines.append(f"| {name.replace('|', '/')} | " + " | ".join(cells) + " |")
    if "ceiling" in figures and shown:
        ceiling = f"{figures['ceiling']['ceiling']:.2f}"
        lines.append(f"| ceiling for any method | {ceiling} |" + " |" * (len(shown) - 1))
    return "\n".join(lines)


def page(config: EvaluateConfig, figures: Mapping[str, Any]) -> str:
    """The page of an evaluation, in Markdown."""
    lines = [
        f"# How far can answers from {', '.join(config.stores)} be trusted?",
        "",
        (
            f"{figures['queries']:,} queries at {config.timesteps} timesteps below "
            f"{config.timesteps_below:g} of the scheduler's × {config.draws} noises. 95% intervals "
            "resample queries and, for LDS, subsets of training samples."
        ),
        "",
        table(figures),
        "",
    ]
    if "retrained" in figures:
        lines += [
            (
                "LDS, the linear datamodeling score (arXiv 2303.14186): over "
                f"{figures['subsets']} random halves of the training samples, the rank correlation "
                "of the influence that a method gives a half with the fall of the query's loss "
                f"when {figures['seeds']} models are trained on that half. *Exponential*: the "
                "influence of a half is Σ exp(z/2) of its samples' standardised scores, not their "
                "sum. Two trainings differ by their seed, hence the ceiling."
            ),
            "",
        ]
    if "chosen" in figures:
        chosen = figures["chosen"]
        lines += [
            (
                f"Chosen on every other query: **{chosen['method']}**. Its LDS on the remaining "
                f"ones, which is not flattered by the choice: {text(chosen['lds'], 2)}."
            ),
            "",
        ]
    if "copies found" in next(iter(figures["methods"].values())):
        lines += [
            (
                f"Copies found: share of {config.copies} training samples that, as queries, are "
                "among their own first ten proponents."
            ),
            "",
        ]
    if "outliers" in figures:
        lines += [
            f"## Samples with {config.outliers}, by self-influence",
            "",
            "| measure | AUROC |",
            "|---|---|",
            *[f"| {name} | {text(one, 2)} |" for name, one in figures["outliers"].items()],
            "",
        ]
    if "removal" in figures:
        lines += [
            f"## Loss of a query when its first {config.removed} proponents are removed",
            "",
            "| removed by | rise of the loss | more than by as many at random |",
            "|---|---|---|",
            *[
                f"| {name.replace('|', '/')} | {text(one['loss change'], 4)} | "
                f"{text(one['over random'], 4)} |"
                for name, one in figures["removal"].items()
            ],
            "",
        ]
    return "\n".join(lines)
