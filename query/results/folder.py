"""A folder of results, made once and continued by the same configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.format.spec import Spec


def claim(out: Path, config: Spec, name: str) -> None:
    """Make a folder of results, or go on with one of the very same configuration.

    Args:
        out: the folder.
        config: the configuration, kept in the folder.
        name: name of the file that it is kept in.

    Raises:
        ConfigError: if something else stands at `out`.
    """
    if require_free(out, config, name):
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(_settings(config))


def _settings(config: Spec) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def require_free(out: Path, config: Spec, name: str) -> bool:
    """Whether a folder of results is yet to be made; see `claim` for what is raised."""
    settings = out / name
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} exists and is not a folder. Choose another --out.")
    # Nothing but settings: what failed before it made anything may be mended and run again.
    if out.exists() and {entry.name for entry in out.iterdir()} - {name}:
        if settings.is_file() and settings.read_text() == _settings(config):
            return False
        what = "was made with other settings" if settings.is_file() else "holds something else"
        raise ConfigError(
            f"{out} exists and {what}; nothing was changed. Choose another --out or move it."
        )
    return True
