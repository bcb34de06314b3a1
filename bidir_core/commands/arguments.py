"""What several commands do with their arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import MISSING, Field
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.launch import is_helper
from bidir_core.common.settings import flag_of, parse_value, settings_of


def given_in(parsed: argparse.Namespace, *leave_out: str) -> dict[str, Any]:
    """The settings that stood on the command line, without arguments of other kinds."""
    return {k: v for k, v in vars(parsed).items() if k not in ("run", *leave_out)}


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """The flag of the commands whose cost can be estimated before they run."""
    parser.add_argument(
        "--estimate",
        nargs="?",
        type=int,
        const=0,
        default=argparse.SUPPRESS,
        metavar="G",
        help="print the time and memory this would take, on G devices if given, and stop: no "
        "weights are loaded and nothing is written",
    )


def estimate_instead(make_config: Callable[[], Any], parsed: argparse.Namespace) -> int:
    """What ``--estimate`` prints in place of running the command. Checks the settings first."""
    if getattr(parsed, "resume", None) is not None:
        raise UserError("--estimate says what a new run takes; leave --resume out")
    return estimate_command(make_config(), parsed.estimate)


def estimate_command(config: Any, n_devices: int = 0) -> int:
    """Print the estimate of a command's configuration, on so many devices; always returns 0."""
    # Here, since other commands should not wait for what these import.
    from bidir_core.jobs.doctor import layer_rate
    from bidir_core.jobs.estimate import estimated, to_text

    estimate = estimated(config, n_devices, layer_rate=layer_rate)
    if estimate.memory_bytes is None:
        raise UserError(
            f"{estimate.basis[0]}: name it with its size (such as owner/name-3B), or give its folder"
        )
    if not is_helper():
        print(to_text(estimate, config))
    return 0


def require_model(given: dict[str, Any]) -> None:
    """Refuse settings that name no model."""
    if "model" not in given:
        raise UserError("--model is missing; name one, for example smollm2-135m-instruct")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The flag of the commands whose runs can be finished later."""
    parser.add_argument(
        "--resume", metavar="RUN", default=None, help="finish this unfinished run (id or folder)"
    )


def add_pairing(parser: argparse.ArgumentParser) -> None:
    """How runs are compared: by which score, and which difference counts as none."""
    parser.add_argument("--metric", choices=("acc", "acc_norm"), default="acc")
    parser.add_argument(
        "--margin",
        type=_margin,
        default="1",
        metavar="POINTS",
        help="how small a difference counts as none (default: 1 point)",
    )


def _margin(text: str) -> float:
    """Points on the command line, a fraction inside."""
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not 0 < points < 100:
        raise argparse.ArgumentTypeError(f"{text}: give a number of points above 0, such as 1")
    return points / 100


def add_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add one argument per field. Arguments not given stay absent from the parsed namespace."""
    for spec in settings_of(config_class):
        if not spec.metadata["cli"]:
            continue
        kind, help_text = str(spec.type), spec.metadata["help"]
        if spec.default is MISSING:
            help_text += " (required for a new run)"
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if kind == "bool":
            options["action"] = argparse.BooleanOptionalAction if spec.default else "store_true"
        else:
            options["type"] = _argument(spec)
            choices = spec.metadata["choices"]
            options["metavar"] = spec.metadata["metavar"] or (
                "{" + ",".join(choices) + "}" if choices else spec.name.split("_")[-1].upper()
            )
            if spec.default not in (MISSING, None):
                shown = ",".join(spec.default) if kind.startswith("tuple") else spec.default
                help_text += f" (default: {shown})"
        parser.add_argument(flag_of(spec), help=help_text.replace("%", "%%"), **options)


def _argument(spec: Field[Any]) -> Any:
    """A field's converter as argparse wants it: it names the flag itself."""

    def convert(text: str) -> Any:
        try:
            return parse_value(spec, text)
        except UserError as error:
            message = str(error).removeprefix(flag_of(spec)).strip()
            raise argparse.ArgumentTypeError(message) from None

    return convert
