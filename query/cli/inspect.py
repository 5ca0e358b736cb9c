"""Commands that inspect: info, verify, demo, doctor."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from shutil import which
from typing import Any, Final

import click

from gradstore.errors import StoreError
from gradstore.flags.demo import DemoConfig
from gradstore.text import one_line
from query.cli.group import cli, follow, kept, next_step, say, trusting
from query.cli.parsing import flags, parse

_SHOWN: Final = 5


@cli.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
def info(store: str, *, as_json: bool) -> None:
    """Show what a store contains and how it was made."""
    import json

    from gradstore import open_store
    from query.info import describe, examine

    say(json.dumps(examine(open_store(store)), indent=2) if as_json else describe(store))


@cli.command()
@click.argument("store")
@click.option(
    "--repair", is_flag=True, help="collect damaged shards again, and rewrite array metadata"
)
@trusting
def verify(store: str, *, repair: bool, follow_recorded: bool) -> None:
    """Check every byte of a store against its seals."""
    from gradstore import open_store
    from gradstore.store.changes.vacuum import left_inside
    from gradstore.store.verify import describe_anew
    from gradstore.store.verify import verify as check
    from query.leftovers import left_beside

    opened = open_store(store)
    for key in describe_anew(opened) if repair else ():
        say(f"{key}: rewritten")
    problems = [report for report in check(opened) if report.problem]
    for report in problems:
        say(report)
    damaged = [report for report in problems if report.sealed]
    unsealed = len(problems) - len(damaged)
    if damaged and repair:
        from gradstore.collect import repair as collect_again

        follow(store, wanted=follow_recorded)
        collect_again(opened, damaged)
        problems = [report for report in check(opened) if report.problem]
        damaged = [report for report in problems if report.sealed]
    if damaged:
        raise StoreError(
            f"{store}: {len(damaged)} sealed shards are damaged. Collect them again with "
            f"`gradstore verify {store} --repair`, or restore them from a copy."
        )
    if unsealed:
        raise StoreError(
            f"{store}: {unsealed} shards are not collected yet; the sealed ones are intact. "
            "Run the same `gradstore collect` again to resume."
        )
    say(f"{store}: every shard is as it was sealed")
    left = [*left_inside(opened), *map(str, left_beside(opened))]
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        shown = ", ".join(left[:_SHOWN])
        say(one_line(f"{store}: interrupted or running commands left {shown}{more}"), end="")
        say(f". If none is running, remove them: gradstore vacuum {store}")


@cli.command()
@flags(DemoConfig)
def demo(config: Path | None, **given: Any) -> None:
    """Run the whole pipeline on scikit-learn's handwritten digits."""
    settings = parse(DemoConfig, config, given)
    from query.cli.demo import run

    result = run(settings)
    say(result.text)
    say(f"\nwrote {result.table} and {result.report}: open the report, or")
    out = Path(settings.out)
    program = "gradstore" if which("gradstore") else sys.argv[0]
    next_step(
        f"{shlex.quote(program)} serve {shlex.quote(str(out / 'train.gradstore'))} "
        f"--queries {shlex.quote(str(out / 'asked.gradstore'))}"
    )


@cli.command()
def doctor() -> None:
    """Check versions, devices, the FAISS build, fast_jl, and shadowed packages."""
    with kept("Nothing was written."):
        from query.cli.doctor import examine

        findings = examine()
    for finding in findings:
        say(f"{'ok ' if finding.good else 'BAD'}  {finding.what}: {finding.found}")
        if finding.mend:
            say(f"     {finding.mend}")
    if not all(finding.good for finding in findings):
        sys.exit(1)
