"""Results folders: made once and resumed only with the same configuration."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from gradstore.errors import ConfigError
from gradstore.flags.files import settings_of
from gradstore.store import locks
from query.results.writing import alone, link_in, named, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gradstore.store.format.spec import Spec


_log = logging.getLogger("gradstore")


def require_place(out: Path) -> None:
    """Raise `ConfigError` unless something can be made at a path, before any work.

    Missing folders above it can be made later.
    """
    try:
        str(out).encode()
        if out.exists():
            return
        above = out.parent
        while not above.exists():
            above = above.parent
    except OSError as error:  # for example: a name is too long
        raise ConfigError(
            f"--out is {str(out)!r}, which cannot be made: {error.strerror or error}. Choose "
            "another --out."
        ) from error
    except ValueError as error:  # a null character, or no Unicode text
        raise ConfigError(
            f"--out is {str(out)!r}, which cannot be made: {error}. Choose another --out."
        ) from error
    if not above.is_dir():
        raise ConfigError(
            f"--out is {str(out)!r}, but {above} is a file and not a folder. Choose another --out."
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--out is {str(out)!r}, but nothing may be written into {above}. Choose another "
            "--out, or get write permission."
        )


@contextmanager
def claimed(out: Path, config: Spec, name: str) -> Iterator[None]:
    """Create a results folder, or resume one with the same configuration, and hold it.

    Args:
        out: the folder.
        config: the configuration, which is saved in the folder.
        name: name of the saved file.

    Raises:
        ConfigError: if `out` exists with other content.
        QueryError: if it cannot be written, or another process writes into it.
    """
    require_free(out, config, name)
    lock = out / locks.name_of("results")
    with ExitStack() as held:
        with named(out):
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(out, lock))
        if require_free(out, config, name):  # not made by another process meanwhile
            with written(out / name) as writing:
                writing.write_text(_settings(config))
        else:
            _log.info("%s has the same settings: resuming", out)
        yield


def _settings(config: Spec) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _same(file: Path, config: Spec) -> bool:
    """Whether a file has these settings; those that it lacks have their defaults.

    Files of earlier versions lack the settings that came later.
    """
    try:
        return type(config).model_validate(settings_of(file)) == config
    except (OSError, ConfigError, ValidationError):
        return False


def require_free(out: Path, config: Spec, name: str) -> bool:
    """Whether a results folder must still be made; raises as `claimed` does."""
    settings = out / name
    require_place(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} exists and is not a folder. Choose another --out.")
    # A folder with only settings is free: that run failed before it made anything.
    if out.exists() and any(
        entry.name != name and not locks.is_lock(entry.name) for entry in out.iterdir()
    ):
        link = link_in(out)
        if link is not None:
            raise ConfigError(
                f"{link} is a link, through which the work would go on elsewhere; nothing was "
                "changed. Choose another --out, or remove the link."
            )
        if settings.is_file() and _same(settings, config):
            return False
        what = "was made with other settings" if settings.is_file() else "holds something else"
        raise ConfigError(
            f"{out} exists and {what}; nothing was changed. Choose another --out or move it."
        )
    return True
