"""Flags and YAML for any configuration: each field of a pydantic model is a flag of its name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, ValidationError

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Model = TypeVar("Model", bound=BaseModel)


def flags(model: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a click command a flag per field, and `[CONFIG]`, a YAML file."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            kind, many = _kind(field.annotation)
            text = field.description or ""
            default = field.get_default(call_default_factory=True)
            if kind is bool:  # given or not, as other programs have it
                flag = f"--{name.replace('_', '-')}"
                command = click.option(flag, name, is_flag=True, default=None, help=text)(command)
                continue
            if not field.is_required() and default not in (None, "", []):
                shown = ", ".join(map(str, default)) if isinstance(default, list) else default
                text += f"  [default: {shown}]"
            command = click.option(
                f"--{name.replace('_', '-')}",
                name,
                type=str if many else kind,
                default=None,
                metavar="A,B,…" if many else None,
                help=text,
            )(command)
        return click.argument(
            "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
        )(command)

    return decorate


def parse(model: type[Model], config: Path | None, given: dict[str, Any]) -> Model:
    """The configuration that a YAML file and flags amount to; flags win.

    Raises:
        ConfigError: naming the file or flag, what was found, and what is allowed.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config} is not YAML: {error}. Mend the file.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{config} is not a mapping of settings to values. Mend the file.")
    for name, value in given.items():
        if value is not None:
            many = _kind(model.model_fields[name].annotation)[1]
            values[name] = value.split(",") if many else value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, config, model, given)) from error


def _explain(
    error: ValidationError, config: Path | None, model: type[BaseModel], given: dict[str, Any]
) -> str:
    lines = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        flag = f"--{name.replace('_', '-')}"
        if config is not None and given.get(name) is None and item["type"] != "missing":
            flag = f"{config}: {name}"
        if item["type"] == "missing":
            lines.append(f"{flag} is missing: {model.model_fields[name].description}")
        elif item["type"] == "extra_forbidden":
            near = get_close_matches(name, model.model_fields, n=1)
            meant = f"did you mean {near[0]!r}?" if near else "see --help for those there are."
            lines.append(f"{config} has a setting {name!r} that does not exist; {meant}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            lines.append(f"{flag} is {item['input']!r}: {reason}")
    return "\n".join(lines)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """What click makes of a value of this annotation, and whether there may be several."""
    if get_origin(annotation) is UnionType or NoneType in get_args(annotation):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    if get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in get_args(annotation)]), False
    return annotation, False
