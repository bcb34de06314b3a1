"""One frozen configuration per command: it serves the command line, the app's forms and config.json.

Each field carries its help text and its *role*. ``identity`` fields decide the numbers, so two
runs that differ there are different runs and a run can't be resumed with them changed; a field is one
unless it says that it is ``runtime``: those decide only where and how the work is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, field, fields
from typing import Any, Literal, TypeVar

from bidir_core.common.errors import UserError

Role = Literal["identity", "runtime"]

ConfigT = TypeVar("ConfigT")


def setting(
    default: Any = MISSING,
    *,
    help: str,
    role: Role = "identity",
    choices: Iterable[str] | None = None,
    metavar: str | None = None,
    cli: bool = True,
) -> Any:
    """A configuration field. ``cli=False`` keeps it off the command line's generated arguments."""
    metadata = {
        "help": help,
        "role": role,
        "choices": tuple(choices) if choices else None,
        "metavar": metavar,
        "cli": cli,
    }
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def same_as(owner: type, name: str, *, default: Any = MISSING, **changes: Any) -> Any:
    """A field of another config again: its help, role and choices, and its default unless given."""
    spec = next(spec for spec in fields(owner) if spec.name == name)
    value = spec.default if default is MISSING else default
    return field(default=value, metadata={**spec.metadata, **changes})


def flag_of(spec: Field[Any]) -> str:
    """The command-line flag of a field: ``batch_tokens`` -> ``--batch-tokens``."""
    return "--" + spec.name.replace("_", "-")


def settings_of(config_class: type) -> tuple[Field[Any], ...]:
    """The fields that flags and forms are made of; a config made of others lists theirs."""
    return getattr(config_class, "SETTINGS", None) or fields(config_class)


def check_config(config: Any, **least: int) -> None:
    """Raise UserError for a value that is not one of its choices, or below the ``least`` of its field."""
    for spec in fields(config):
        choices, value = spec.metadata.get("choices"), getattr(config, spec.name)
        if choices and value is not None and value not in choices:
            raise UserError(f"{flag_of(spec)} {value}: choose one of {', '.join(choices)}")
        if spec.name in least and value is not None and value < least[spec.name]:
            otherwise = ", or leave it out" if spec.default is None else ""
            raise UserError(
                f"{flag_of(spec)} {value}: give a number from {least[spec.name]} up{otherwise}"
            )


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list; a backslash keeps the comma behind it in a part."""
    parts = re.split(r"(?<!\\),", text)
    return tuple(part.strip().replace("\\,", ",") for part in parts if part.strip())


def join_list(parts: Iterable[str]) -> str:
    """What :func:`split_list` takes apart again."""
    return ",".join(part.replace(",", "\\,") for part in parts)


def parse_value(spec: Field[Any], text: str) -> Any:
    """``text`` converted as the command line does. Raises UserError for a bad value."""
    kind = str(spec.type)
    if kind.startswith("tuple[str"):
        return split_list(text)
    if "None" in kind and not kind.startswith("str") and text in ("auto", "none", "all"):
        return None
    try:
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except ValueError:
        expected = "a whole number" if kind.startswith("int") else "a number"
        raise UserError(f"{flag_of(spec)} {text}: give {expected}") from None
    return text


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON values, for config.json."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def from_json(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Rebuild a config from config.json; fields of newer versions are ignored."""
    known = {spec.name: spec for spec in fields(config_class)}  # type: ignore[arg-type]
    kept = {
        name: tuple(value) if str(known[name].type).startswith("tuple") else value
        for name, value in values.items()
        if name in known
    }
    return config_class(**kept)


def command_line(command: str, config: Any) -> str:
    """The terminal line that runs this config; defaults are left out."""
    import shlex

    line = ["python", "-m", "bidir_core", command]
    for spec in settings_of(type(config)):
        value = getattr(config, spec.name)
        if not spec.metadata["cli"] or value == spec.default:
            continue
        if isinstance(value, bool):
            line.append(flag_of(spec) if value else "--no-" + flag_of(spec)[2:])
        else:
            line += [flag_of(spec), join_list(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(line)
