from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gradstore.errors import ConfigError
from gradstore.flags.query import QueryConfig
from query.results.folder import claimed

NAME = "query.yaml"


def claim(folder: Path, config: QueryConfig) -> None:
    with claimed(folder, config, NAME):
        pass


def made(folder: Path, config: QueryConfig) -> dict[str, object]:
    """A results folder that was cut off, and its settings."""
    claim(folder, config)
    (folder / "block-0.parquet").touch()
    found = yaml.safe_load((folder / NAME).read_text())
    assert isinstance(found, dict)
    return found


def config(folder: Path, **more: object) -> QueryConfig:
    return QueryConfig.model_validate(
        {"store": "t.gradstore", "dataset": "digits", "out": str(folder), **more}
    )


def test_a_setting_that_an_earlier_version_lacked_has_its_default(tmp_path: Path) -> None:
    found = made(tmp_path, config(tmp_path))
    for name in ("images", "draws", "generate"):
        del found[name]
    (tmp_path / NAME).write_text(yaml.safe_dump(found))
    claim(tmp_path, config(tmp_path))
    with pytest.raises(ConfigError, match="other settings"):
        claim(tmp_path, config(tmp_path, draws=7))


@pytest.mark.parametrize(
    "content", ["draws: 7", "[1, 2]", "draws: [", "a: &a 1\nb: *a", "unknown: 1", "\x00", ""]
)
def test_a_damaged_file_of_settings_is_no_reason_to_resume(tmp_path: Path, content: str) -> None:
    made(tmp_path, config(tmp_path))
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ConfigError, match="other settings"):
        claim(tmp_path, config(tmp_path))
