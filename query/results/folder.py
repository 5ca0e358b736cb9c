"""Results folders: made once and resumed only with the same configuration."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import yaml

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.format.spec import Spec


_log = logging.getLogger("gradstore")


def claim(out: Path, config: Spec, name: str) -> None:
    """Create a results folder, or resume one with the same configuration.

    Args:
        out: the folder.
        config: the configuration, which is saved in the folder.
        name: name of the saved file.

    Raises:
        ConfigError: if `out` exists with other content.
    """
    if require_free(out, config, name):
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(_settings(config))
    else:
        _log.info("%s has the same settings: resuming", out)


def _settings(config: Spec) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def require_free(out: Path, config: Spec, name: str) -> bool:
    """Whether a results folder must still be made; raises as `claim` does."""
    settings = out / name
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} exists and is not a folder. Choose another --out.")
    # A folder with only settings is free: that run failed before it made anything.
    if out.exists() and {entry.name for entry in out.iterdir()} - {name}:
        if settings.is_file() and settings.read_text() == _settings(config):
            return False
        what = "was made with other settings" if settings.is_file() else "holds something else"
        raise ConfigError(
            f"{out} exists and {what}; nothing was changed. Choose another --out or move it."
        )
    return True
