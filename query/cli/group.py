"""The command `gradstore`, to which the other files add theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gradstore import __version__

if TYPE_CHECKING:
    from query.ask import Result


class _Group(click.Group):
    """Commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="gradstore")
def cli() -> None:
    """Which training images pushed a diffusion model towards an image, and which against?

    The road: train (or bring your own checkpoints), collect, index, query. Every command takes a
    YAML file of settings, flags, or both; flags win.
    """


def tell(result: Result) -> None:
    """Print a summary, and what was written."""
    click.echo(result.text)
    click.echo(f"wrote {result.table} and {result.report}")
    next_step(f"open {result.report}")


def next_step(command: str) -> None:
    """Print the command that usually comes next."""
    click.echo(f"\nNext: {command}")
