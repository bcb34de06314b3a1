"""What the JSON files of a run folder may hold: the fields that readers use, and their types.

Fields that are not named here are free: readers ignore them, and later versions add some. A named
field may be null or absent unless it is said to be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.regimes import parse_regime
from bidir_core.runs.status import STORED_STATES


@dataclass(frozen=True)
class Kind:
    """A plain value: in words, and the test for it."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class ListOf:
    each: Shape


@dataclass(frozen=True)
class MapOf:
    """An object with any names, all values of one shape."""

    each: Shape


@dataclass(frozen=True)
class Fields:
    """An object with these fields. ``needs``: not null. ``keys``: there, though perhaps null."""

    shapes: Mapping[str, Shape]
    needs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


Shape = Kind | ListOf | MapOf | Fields


def problem(value: Any, shape: Shape, where: str = "") -> str | None:
    """What does not fit, such as ``'tasks.piqa.n' is not a whole number``, or None."""
    if isinstance(shape, Kind):
        return None if shape.fits(value) else f"'{where[:120]}' is not {shape.words}"
    if isinstance(shape, ListOf):
        if not isinstance(value, list):
            return f"'{where[:120]}' is not a list"
        inner = ((f"{where}[{index}]", each, shape.each) for index, each in enumerate(value))
    elif not isinstance(value, dict):
        return f"'{where[:120]}' is not an object"
    else:
        prefix = f"{where}." if where else ""
        if isinstance(shape, MapOf):
            inner = ((prefix + name, each, shape.each) for name, each in value.items())
        else:
            for name in (*shape.needs, *shape.keys):
                if name not in value or (value[name] is None and name in shape.needs):
                    return f"'{prefix}{name}' is missing"
            inner = (
                (prefix + name, value[name], each)
                for name, each in shape.shapes.items()
                if value.get(name) is not None
            )
    found = (problem(each, inner_shape, place) for place, each, inner_shape in inner)
    return next((said for said in found if said), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_regime(value: Any) -> bool:
    try:
        return isinstance(value, str) and len(value) <= 1000 and bool(parse_regime(value))
    except UserError:
        return False


def _is_condition(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() - {"repeat_prompt"} == {"bos", "chat_template", "context"}
        and _is_count(value.get("repeat_prompt", 1))
        and isinstance(value["chat_template"], bool)
        and all(isinstance(value[name], str) for name in ("bos", "context"))
    )


def _are_numbers(value: Any) -> bool:
    """A number, or lists and objects of numbers; null where one is not known."""
    if isinstance(value, list | dict):
        return all(map(_are_numbers, value.values() if isinstance(value, dict) else value))
    return value is None or _is_number(value)


ANY = Kind("anything", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
WORD = Kind("a text or a number", lambda value: isinstance(value, str | int | float))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", _is_number)
COUNT = Kind("a whole number of at least 0", _is_count)
WHOLE = Kind("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool))
SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
SECONDS = Kind("a time", lambda value: _is_number(value) and 0 <= value < 1e11)
REGIME = Kind("a regime", _is_regime)
CONDITION = Kind("a prompt condition", _is_condition)
NUMBERS = Kind("numbers", _are_numbers)
STATE = Kind(f"one of {', '.join(STORED_STATES)}", lambda v: v in STORED_STATES)
SCHEMA = Kind("a schema that this program reads (1)", lambda v: v == 1 and not isinstance(v, bool))
TEXTS = ListOf(TEXT)


def _all(shape: Shape, names: str) -> dict[str, Shape]:
    return dict.fromkeys(names.split(), shape)


POSITIONS = Fields(
    {
        "n": COUNT,
        "right": Kind(
            "a list of counts", lambda v: isinstance(v, list) and bool(v) and all(map(_is_count, v))
        ),
        "best_constant_guess": SHARE,
        "one_sided": FLAG,
    },
    needs=("n", "right", "best_constant_guess"),
)

SETTINGS = Fields(
    {
        "compile": Kind("a text or true or false", lambda value: isinstance(value, str | bool)),
        **_all(
            TEXT,
            "model revision checkpoint split dtype device attn weights sample fold context bos "
            "data_source patch runs_dir name objective method data task prompt continuation metric "
            "prompt_column response_column messages_column over_long tracker adapter prompts preset "
            "items_file",
        ),
        **_all(
            FLAG, "chat_template compact controls gradient_checkpointing decontaminate append_eos"
        ),
        **_all(WHOLE, "seed"),
        **_all(
            COUNT,
            "num_fewshot limit steps batch_samples doc_id choice repeat_prompt lora_rank warmup_steps "
            "max_tokens batch_tokens micro_tokens eval_items eval_every log_every checkpoint_every "
            "positions",
        ),
        **_all(
            NUMBER,
            "lr causal_anchor beta2 clip weight_decay final_lr_fraction lora_dropout lora_alpha",
        ),
        "regime": REGIME,
        "regimes": ListOf(REGIME),
        **_all(TEXTS, "tasks sweep items"),
    }
)

TRAINING_RECORD = Fields(
    {
        **_all(
            TEXT,
            "base_fingerprint base_model base_revision data data_fingerprint method objective run what",
        ),
        **_all(FLAG, "bos_added chat_template leaky"),
        **_all(COUNT, "steps tokens"),
        **_all(NUMBER, "causal_anchor"),
        "seed": WHOLE,
        "regime": REGIME,
        "trained_tasks": TEXTS,
    }
)

PLANNED_POINT = Fields(
    {
        **_all(TEXT, "slug part patch condition_words"),
        "regime": REGIME,
        "condition": CONDITION,
    },
    needs=("slug", "regime", "condition", "part"),
)

CONFIG = Fields(
    {
        "schema": SCHEMA,
        **_all(
            TEXT,
            "kind stage created git_commit model_fingerprint tokenizer_fingerprint data_fingerprint "
            "dtype device attention source texts texts_in",
        ),
        **_all(FLAG, "bos_added leaky"),
        **_all(COUNT, "n_layers batch_tokens split_from_tokens middle_token"),
        **_all(TEXTS, "warnings notes fused_kernels"),
        "config": SETTINGS,
        "packages": MapOf(WORD),
        "training_record": TRAINING_RECORD,
        "training_data": Fields({"n_used": COUNT, "tasks": MapOf(COUNT), "data": TEXT}),
        "answer_positions": MapOf(POSITIONS),
        "given_items": Fields({"sha256": TEXT, "count": COUNT}),
        "points": ListOf(PLANNED_POINT),
        "predicted": Fields(
            {"run": TEXT, "regime": REGIME, "predictions": NUMBERS},
            needs=("run", "regime", "predictions"),
        ),
    }
)

COST = Fields(
    {
        **_all(
            COUNT,
            "computed_tokens prefix_tokens continuation_tokens out_of_memory peak_bytes processes",
        ),
        **_all(SECONDS, "seconds wall_seconds"),
        "tokens_per_second": NUMBER,
        "device": TEXT,
        "shared_device": FLAG,
        "peak_memory_bytes": Fields(_all(COUNT, "host device")),
    }
)

PROCESS = Fields(
    {"host": TEXT, **_all(COUNT, "pid pid_ticks"), "pid_started": SECONDS, "heartbeat": SECONDS}
)

STATUS = Fields(
    {
        "schema": SCHEMA,
        "state": STATE,
        **PROCESS.shapes,
        **_all(TEXT, "error point"),
        **_all(COUNT, "done total"),
        **_all(SECONDS, "started finished resumed eta_seconds"),
        **_all(NUMBER, "rate loss anchor grad_norm tokens_per_second"),
        "cost": COST,
    },
    needs=("state",),
)

INTERVAL = Fields(
    {**_all(NUMBER, "value low high"), "n": COUNT},
    keys=("value", "low", "high"),
)

POINT = Fields(
    {
        **PLANNED_POINT.shapes,
        "n": COUNT,
        "seconds": SECONDS,
        **dict.fromkeys(
            ("acc", "acc_norm"),
            Fields(
                {"value": SHARE, "half_width": NUMBER, "delta": INTERVAL, "removed": INTERVAL},
                keys=("value", "delta", "removed"),
            ),
        ),
    },
    needs=(*PLANNED_POINT.needs, "n", "acc", "acc_norm", "condition_words"),
)

BEST = Fields({**_all(TEXT, "slug sentence"), "regime": REGIME})

LAW = Fields({"sentence": TEXT}, needs=("sentence",))

ORDER_EFFECT = Fields(
    {
        "family": TEXT,
        "n": COUNT,
        **_all(INTERVAL, "first last gap"),
        **_all(SHARE, "first_prob last_prob"),
    },
    needs=("family", "n", "first", "last", "gap"),
    keys=("first_prob", "last_prob"),
)

GAP_RECOVERED = Fields(
    {
        **_all(TEXT, "family why_not_stated"),
        "n": COUNT,
        **_all(INTERVAL, "gap first_change last_change share"),
    },
    needs=("family", "n", "gap", "first_change", "last_change"),
    keys=("share",),
)

ORDER_ARM = Fields(
    {
        **_all(TEXT, "run words"),
        "trained": FLAG,
        "effect": ORDER_EFFECT,
        "recovered": GAP_RECOVERED,
        "prompt_tokens": NUMBER,
        "constant_guess": SHARE,
        "seconds": SECONDS,
        "peak_bytes": COUNT,
    },
    needs=("run", "words", "trained", "effect", "prompt_tokens"),
    keys=("recovered", "constant_guess", "seconds", "peak_bytes"),
)

METRICS = Fields(
    {
        "schema": SCHEMA,
        **_all(TEXT, "stage model split method objective mode item"),
        **_all(
            COUNT,
            "limit n_items n_scored n_errors steps tokens loss_tokens weight_bytes n_layers n_heads "
            "trained_parameters n_points n_planned n_prompts n_prompt_tokens",
        ),
        **_all(NUMBER, "final_loss final_anchor final_grad_norm padding"),
        "regime": REGIME,
        "tasks": MapOf(
            Fields(
                {
                    **_all(COUNT, "n n_errors"),
                    **_all(SHARE, "acc acc_norm acc_bytes acc_tokens chance gold_prob"),
                    **_all(NUMBER, "acc_stderr acc_norm_stderr"),
                },
                needs=("n",),
            )
        ),
        "macro": Fields(_all(SHARE, "acc acc_norm acc_bytes acc_tokens chance")),
        "cost": COST,
        "checksums": MapOf(TEXT),
        # sweeps
        "points": ListOf(POINT),
        "controls": ListOf(
            Fields(_all(TEXT, "name title question refuted_by outcome finding"), needs=("name",))
        ),
        "best": MapOf(Kind("an object or null", lambda v: v is None or problem(v, BEST) is None)),
        "best_of_dials": MapOf(MapOf(BEST)),
        "law": MapOf(Kind("an object or null", lambda v: v is None or problem(v, LAW) is None)),
        "orders": MapOf(MapOf(ListOf(ORDER_ARM))),
        # observed attention
        "regimes": ListOf(REGIME),
        "n_by_task": MapOf(COUNT),
        "notes": TEXTS,
        "windows": ListOf(Kind("a whole number or null", lambda v: v is None or _is_count(v))),
        "drift": NUMBERS,
        "observed": ListOf(
            Fields(
                {
                    "regime": REGIME,
                    **_all(NUMBERS, "layers overall minus_first by_task off_scoring_nats"),
                },
                needs=("layers",),
            )
        ),
    }
)

PROBE = Fields({"schema": SCHEMA, "passed": FLAG, "checks": ListOf(MapOf(ANY))})

# Files that belong to one kind of run

CURVE_LINE = Fields(
    {
        **_all(COUNT, "step tokens loss_tokens"),
        **_all(NUMBER, "seconds loss anchor lr grad_norm tokens_per_second"),
        "evals": MapOf(Fields({"n": COUNT, **_all(SHARE, "acc acc_norm")})),
    },
    needs=("step",),
)

ATTENTION = Fields(
    {"regimes": MapOf(Fields({"future": ListOf(NUMBER)}, needs=("future",)))}, needs=("regimes",)
)

TOKENS = Fields({"pieces": TEXTS, "n_prefix": COUNT}, needs=("pieces", "n_prefix"))

RESTORED = Fields(
    {"choice": COUNT, "lead": NUMBER, "first": COUNT, "last": COUNT, "lambda": NUMBER},
    needs=("choice", "lead"),
)

WHY = Fields(
    {
        "schema": SCHEMA,
        **_all(TEXT, "doc_hash metric"),
        **_all(COUNT, "n_layers n_prefix"),
        "flips": FLAG,
        "sentences": Kind("a list of texts", lambda v: bool(v) and problem(v, TEXTS) is None),
        "pieces": TEXTS,
        **_all(RESTORED, "causal opened"),
        "layers": Fields(
            _all(ListOf(RESTORED), "single from_first from_last"),
            needs=("single", "from_first", "from_last"),
        ),
        "tokens": ListOf(
            Fields(
                {**RESTORED.shapes, "looks_ahead": FLAG},
                needs=("choice", "lead", "first", "last", "looks_ahead"),
            )
        ),
        "lambda": Fields(
            {
                "points": ListOf(Fields(RESTORED.shapes, needs=("choice", "lead", "lambda"))),
                **_all(NUMBER, "low high"),
            },
            needs=("points",),
            keys=("low", "high"),
        ),
    },
    needs=(
        "schema",
        "metric",
        "n_layers",
        "flips",
        "sentences",
        "pieces",
        "causal",
        "opened",
        "layers",
        "tokens",
        "lambda",
    ),
)

BY_FILE = {
    "config.json": CONFIG,
    "status.json": STATUS,
    "metrics.json": METRICS,
    "probe.json": PROBE,
}
