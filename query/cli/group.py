"""The command group `gradstore`, to which the other modules add commands."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from gradstore import __version__
from gradstore.progress import VARIABLE
from gradstore.text import printable
from query.cli.parsing import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from query.results.files import Result


class _Group(click.Group):
    """Lists commands in the order in which they are used."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="gradstore")
@click.option("--quiet", "-q", is_flag=True, help="Show results, warnings and errors only.")
def cli(*, quiet: bool) -> None:
    """Which training images pushed a diffusion model towards an image, and which against?

    Usual order: train (or use your own checkpoints), collect, index, query. Every command takes a
    YAML file of settings, flags, or both; flags override the file.
    """
    if quiet:
        os.environ[VARIABLE] = "0"
        logging.getLogger("gradstore").setLevel(logging.WARNING)


trusting = click.option(
    "--follow-recorded",
    is_flag=True,
    help="follow the paths and datasets that the store records, now and later, though you never "
    "named them on this machine; only for stores of people you trust",
)
"""The flag of commands that may read what a store records."""


def follow(store: str | None, *, wanted: bool) -> None:
    """Do what `--follow-recorded` says for a store."""
    if wanted and store is not None:
        from gradstore import open_store
        from gradstore.collect.provenance import follow_recorded

        follow_recorded(open_store(store))


def say(text: object, *, end: str = "\n") -> None:
    """Print a text. It may have names from a stranger's YAML or store, so it is made printable."""
    click.echo(printable(str(text)) + end, nl=False)


def tell(result: Result) -> None:
    """Print a summary and the names of the written files."""
    say(result.text)
    say(f"wrote {result.table} and {result.report}")
    next_step(f"open {result.report}")


@contextmanager
def kept(text: str) -> Iterator[None]:
    """Say what is kept if the command is interrupted in this context, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise click.exceptions.Abort(text) from error


def next_step(command: str) -> None:
    """Print the usual next command."""
    say(f"\nNext: {command}")
