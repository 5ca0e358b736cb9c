"""Settings in YAML files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class _Plain(yaml.SafeLoader):
    """Reads settings. Aliases can make a short file huge, and no setting needs one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None,
                None,
                "it has an alias",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


def settings_of(config: Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        ConfigError: if it is not a mapping of settings to values.
    """
    try:
        values = yaml.load(config.read_text(encoding="utf-8"), _Plain) or {}  # noqa: S506, it is safe
    # A number may have too many digits, and brackets may be nested too deeply.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{config} is not YAML: {reason}. Correct the file.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{config} is not a mapping of settings to values. Correct the file.")
    return {str(name): value for name, value in values.items()}
