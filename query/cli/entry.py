"""Entry point of the command line."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from tempfile import mkstemp
from typing import Final, NoReturn

import click

from gradstore.errors import GradstoreError
from gradstore.text import printable
from query.cli import INTERRUPTED

try:
    import indexer.measure  # noqa: F401
except ImportError as error:
    sys.exit(
        f"Error: {error}. Another package or folder called 'indexer' comes before gradstore's on "
        "the path: rename it, or run from another folder."
    )

# Each module adds its commands to the group; `gradstore --help` lists them in this order.
from query.cli import collect, index, query, serve, studies, change, inspect  # noqa: F401, I001
from query.cli.group import cli

_KEPT: Final = "What is finished is kept: run the same command again to go on."


class _Printable(logging.Formatter):
    """Escapes texts from files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def main() -> None:
    """Run the command line and exit; no error but a bug in gradstore shows a traceback, in a file.

    Exit status: 0, 1 for an error that the message explains, 2 for wrong usage, 70 for a bug, 130
    if interrupted.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.getLogger("gradstore").setLevel(logging.INFO)
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.Abort as error:
        _stop(f"Interrupted. {str(error) or _KEPT}", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GradstoreError as error:
        _stop(f"Error: {error}", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _stop(
            f"Error: {where}{error.strerror or error}. Check that the path exists and is allowed, "
            "that its disk has space, and that the network is available.",
            1,
        )
    except Exception as error:
        file = Path(mkstemp(prefix="gradstore-", suffix=".log")[1])
        file.write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
        _stop(
            f"Error: unexpected {type(error).__name__}. This is a bug in gradstore; please report "
            f"it with the traceback in {file}.",
            70,
        )
    sys.exit(status if isinstance(status, int) else 0)  # click returns that of --help


def _stop(text: str, status: int) -> NoReturn:
    click.echo(printable(text), err=True)
    sys.exit(status)
