"""Entry point of the command line."""

from __future__ import annotations

import logging
import sys

import click

from gradstore.errors import GradstoreError

try:
    import indexer.measure  # noqa: F401
except ImportError as error:
    sys.exit(
        f"Error: {error}. Another package or folder called 'indexer' comes before gradstore's on "
        "the path: rename it, or run from another folder."
    )

# Each module adds its commands to the group; `gradstore --help` lists them in this order.
from query.cli import collect, index, query, studies, change, inspect  # noqa: F401, I001
from query.cli.group import cli


def main() -> None:
    """Run the command line; a gradstore error prints a message, exit status 1, no traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("gradstore").setLevel(logging.INFO)
    try:
        cli()
    except GradstoreError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
