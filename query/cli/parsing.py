"""Flags and YAML for configurations: each field of a pydantic model is a flag of the same name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, ValidationError

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS: Final = "Settings"
ADVANCED: Final = "Advanced"

Model = TypeVar("Model", bound=BaseModel)


class Flag(click.Option):
    """A flag that `--help` lists under a heading."""

    def __init__(self, *arguments: Any, heading: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.heading = heading


class Command(click.Command):
    """A command whose `--help` groups flags by their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags grouped by heading, in the order of the headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(one, "heading", "Options"), []).append(record)
        known = {SETTINGS: -1, ADVANCED: 1, "Options": 2}
        for heading in sorted(groups, key=lambda one: known.get(one, 0)):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])


def flags(model: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a click command with one flag per field, and `[CONFIG]`, a YAML file."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            kind, many = _kind(field.annotation)
            text = field.description or ""
            default = field.get_default(call_default_factory=True)
            flag, heading = f"--{name.replace('_', '-')}", _heading(model, name)
            settings: dict[str, Any] = {"default": None, "cls": Flag, "heading": heading}
            if kind is bool:  # a flag without a value
                command = click.option(flag, name, is_flag=True, help=text, **settings)(command)
                continue
            if field.is_required():
                text += "  [required]"
            elif default not in (None, "", []):
                shown = ", ".join(map(str, default)) if isinstance(default, list) else default
                text += f"  [default: {shown}]"
            command = click.option(
                flag,
                name,
                type=str if many else kind,
                metavar="A,B,…" if many else None,
                help=text,
                **settings,
            )(command)
        return click.argument(
            "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
        )(command)

    return decorate


def _heading(model: type[BaseModel], name: str) -> str:
    """Heading of a field: the name of the specification that declares it."""
    extra = model.model_fields[name].json_schema_extra
    if isinstance(extra, dict) and extra.get("advanced"):
        return ADVANCED
    owner = next(
        cls for cls in reversed(model.__mro__) if name in vars(cls).get("__annotations__", ())
    )
    return owner.__name__.removesuffix("Spec") if owner.__name__.endswith("Spec") else SETTINGS


def parse(model: type[Model], config: Path | None, given: dict[str, Any]) -> Model:
    """Build a configuration from a YAML file and flags; flags override the file.

    Raises:
        ConfigError: names the file or flag, what was found, and what is allowed.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config} is not YAML: {error}. Correct the file.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{config} is not a mapping of settings to values. Correct the file.")
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
            meant = f"did you mean {near[0]!r}?" if near else "see --help for all settings."
            lines.append(f"{config} has a setting {name!r} that does not exist; {meant}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            lines.append(f"{flag} is {item['input']!r}: {reason}")
    return "\n".join(lines)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Click type of a value with this annotation, and whether several values are allowed."""
    if get_origin(annotation) is UnionType or NoneType in get_args(annotation):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    if get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in get_args(annotation)]), False
    return annotation, False
