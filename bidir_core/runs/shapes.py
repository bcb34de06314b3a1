"""What the JSON files of a run folder may hold: the fields that readers use, and their types.

Fields that are not named here are free: readers ignore them, and later versions add some. A named
field may be null or absent unless it is said to be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bidir_core.common.errors import UserError
from bidir_core.regimes import parse_regime

State = Literal[
    "queued", "running", "done", "failed", "cancelled", "lost", "partial", "corrupt", "reference"
]
STORED_STATES = ("queued", "running", "done", "failed", "cancelled")


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
        parts = [(f"{where}[{i}]", element, shape.each) for i, element in enumerate(value)]
    elif not isinstance(value, dict):
        return f"'{where[:120]}' is not an object"
    else:
        prefix = f"{where}." if where else ""
        if isinstance(shape, MapOf):
            parts = [(prefix + name, element, shape.each) for name, element in value.items()]
        else:
            for name in (*shape.needs, *shape.keys):
                if name not in value or (value[name] is None and name in shape.needs):
                    return f"'{prefix}{name}' is missing"
            parts = [
                (prefix + name, element, shape.shapes[name])
                for name, element in value.items()
                if element is not None and name in shape.shapes
            ]
    for path, element, inner_shape in parts:
        if fault := problem(element, inner_shape, path):
            return fault
    return None


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
    """A number or null (unknown), or lists and objects of these."""
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

_KINDS: dict[str, Shape] = {
    "text": TEXT,
    "texts": TEXTS,
    "flag": FLAG,
    "count": COUNT,
    "whole": WHOLE,
    "number": NUMBER,
    "numbers": NUMBERS,
    "share": SHARE,
    "seconds": SECONDS,
    "regime": REGIME,
}


def fields(*, needs: str = "", keys: str = "", **given: str | Shape) -> Fields:
    """An object's fields: ``count="n steps"`` names all of one kind, ``cost=COST`` a single one."""
    shapes: dict[str, Shape] = {}
    for name, value in given.items():
        names, shape = (value.split(), _KINDS[name]) if isinstance(value, str) else ([name], value)
        shapes |= dict.fromkeys(names, shape)
    return Fields(shapes, tuple(needs.split()), tuple(keys.split()))


def _or_null(shape: Fields) -> Kind:
    return Kind("an object or null", lambda v: v is None or problem(v, shape) is None)


POSITIONS = fields(
    count="n",
    share="best_constant_guess",
    flag="one_sided",
    right=Kind(
        "a list of counts", lambda v: isinstance(v, list) and bool(v) and all(map(_is_count, v))
    ),
    needs="n right best_constant_guess",
)

SETTINGS = fields(
    compile=Kind("a text or true or false", lambda value: isinstance(value, str | bool)),
    text="model revision checkpoint split dtype device attn weights sample fold context bos "
    "data_source patch runs_dir name objective method data task prompt continuation metric "
    "prompt_column response_column messages_column over_long tracker adapter prompts preset "
    "items_file",
    flag="chat_template compact controls gradient_checkpointing decontaminate append_eos",
    whole="seed",
    count="num_fewshot limit steps batch_samples doc_id choice repeat_prompt lora_rank warmup_steps "
    "max_tokens batch_tokens micro_tokens eval_items eval_every log_every checkpoint_every "
    "positions",
    number="lr causal_anchor beta2 clip weight_decay final_lr_fraction lora_dropout lora_alpha",
    regime="regime",
    regimes=ListOf(REGIME),
    texts="tasks sweep items",
)

TRAINING_RECORD = fields(
    text="base_fingerprint base_model base_revision data data_fingerprint method objective run what",
    flag="bos_added chat_template leaky",
    count="steps tokens",
    number="causal_anchor",
    whole="seed",
    regime="regime",
    texts="trained_tasks",
)

PLANNED_POINT = fields(
    text="slug part patch condition_words",
    regime="regime",
    condition=CONDITION,
    needs="slug regime condition part",
)

CONFIG = fields(
    schema=SCHEMA,
    text="kind stage created git_commit model_fingerprint tokenizer_fingerprint data_fingerprint "
    "dtype device attention source texts texts_in",
    flag="bos_added leaky",
    count="n_layers batch_tokens split_from_tokens middle_token",
    texts="warnings notes fused_kernels",
    config=SETTINGS,
    packages=MapOf(WORD),
    training_record=TRAINING_RECORD,
    training_data=fields(count="n_used", text="data", tasks=MapOf(COUNT)),
    answer_positions=MapOf(POSITIONS),
    given_items=fields(text="sha256", count="count"),
    points=ListOf(PLANNED_POINT),
    predicted=fields(
        text="run", regime="regime", numbers="predictions", needs="run regime predictions"
    ),
)

COST = fields(
    count="computed_tokens prefix_tokens continuation_tokens out_of_memory peak_bytes processes",
    seconds="seconds wall_seconds",
    number="tokens_per_second",
    text="device",
    flag="shared_device",
    peak_memory_bytes=fields(count="host device"),
)

PROCESS = fields(text="host", count="pid pid_ticks", seconds="pid_started heartbeat")

STATUS = fields(
    schema=SCHEMA,
    state=STATE,
    text="host error point",
    count="pid pid_ticks done total recorded right",
    seconds="pid_started heartbeat started finished resumed eta_seconds",
    number="rate loss anchor grad_norm tokens_per_second",
    cost=COST,
    needs="state",
)

INTERVAL = fields(number="value low high", share="p_value", count="n", keys="value low high")

_SCORE = fields(
    share="value",
    number="half_width",
    delta=INTERVAL,
    removed=INTERVAL,
    keys="value delta removed",
)

POINT = fields(
    text="slug part patch condition_words",
    regime="regime",
    condition=CONDITION,
    count="n",
    seconds="seconds",
    acc=_SCORE,
    acc_norm=_SCORE,
    needs="slug regime condition part n acc acc_norm condition_words",
)

BEST = fields(text="slug sentence", regime="regime")

ORDER_EFFECT = fields(
    text="family",
    count="n",
    share="first_prob last_prob",
    first=INTERVAL,
    last=INTERVAL,
    gap=INTERVAL,
    needs="family n first last gap",
    keys="first_prob last_prob",
)

GAP_RECOVERED = Fields(
    {
        **fields(text="family why_not_stated", count="n").shapes,
        **dict.fromkeys(("gap", "first_change", "last_change", "share"), INTERVAL),
    },
    needs=("family", "n", "gap", "first_change", "last_change"),
    keys=("share",),
)

ORDER_ARM = fields(
    text="run words",
    flag="trained",
    effect=ORDER_EFFECT,
    recovered=GAP_RECOVERED,
    number="prompt_tokens",
    share="constant_guess",
    seconds="seconds",
    count="peak_bytes",
    needs="run words trained effect prompt_tokens",
    keys="recovered constant_guess seconds peak_bytes",
)

METRICS = fields(
    schema=SCHEMA,
    text="stage model split method objective mode item",
    count="limit n_items n_scored n_errors steps tokens loss_tokens weight_bytes n_layers n_heads "
    "trained_parameters n_points n_planned n_prompts n_prompt_tokens",
    number="final_loss final_anchor final_grad_norm padding",
    regime="regime",
    tasks=MapOf(
        fields(
            count="n n_errors",
            share="acc acc_norm acc_bytes acc_tokens chance gold_prob",
            number="acc_stderr acc_norm_stderr",
            needs="n",
        )
    ),
    macro=fields(share="acc acc_norm acc_bytes acc_tokens chance"),
    cost=COST,
    checksums=MapOf(TEXT),
    # sweeps
    points=ListOf(POINT),
    controls=ListOf(fields(text="name title question refuted_by outcome finding", needs="name")),
    best=MapOf(_or_null(BEST)),
    best_of_dials=MapOf(MapOf(BEST)),
    law=MapOf(_or_null(fields(text="sentence", needs="sentence"))),
    orders=MapOf(MapOf(ListOf(ORDER_ARM))),
    # observed attention
    regimes=ListOf(REGIME),
    n_by_task=MapOf(COUNT),
    texts="notes",
    windows=ListOf(Kind("a whole number or null", lambda v: v is None or _is_count(v))),
    numbers="drift",
    observed=ListOf(
        fields(
            regime="regime",
            numbers="layers overall minus_first by_task off_scoring_nats",
            needs="layers",
        )
    ),
)

PROBE = fields(schema=SCHEMA, flag="passed", checks=ListOf(MapOf(ANY)))

# Files that belong to one kind of run

CURVE_LINE = fields(
    count="step tokens loss_tokens",
    number="seconds loss anchor lr grad_norm tokens_per_second",
    evals=MapOf(fields(count="n", share="acc acc_norm")),
    needs="step",
)

ATTENTION = fields(regimes=MapOf(fields(future=ListOf(NUMBER), needs="future")), needs="regimes")
TOKENS = fields(texts="pieces", count="n_prefix", needs="pieces n_prefix")
RESTORED = fields(count="choice first last", number="lead lambda", needs="choice lead")

_LAMBDA = fields(
    points=ListOf(Fields(RESTORED.shapes, needs=("choice", "lead", "lambda"))),
    number="low high",
    needs="points",
    keys="low high",
)

WHY = fields(
    schema=SCHEMA,
    text="doc_hash metric",
    count="n_layers n_prefix",
    flag="flips",
    sentences=Kind("a list of texts", lambda v: bool(v) and problem(v, TEXTS) is None),
    texts="pieces",
    causal=RESTORED,
    opened=RESTORED,
    layers=Fields(
        dict.fromkeys(("single", "from_first", "from_last"), ListOf(RESTORED)),
        needs=("single", "from_first", "from_last"),
    ),
    tokens=ListOf(
        Fields(
            {**RESTORED.shapes, "looks_ahead": FLAG},
            needs=("choice", "lead", "first", "last", "looks_ahead"),
        )
    ),
    **{"lambda": _LAMBDA},  # type: ignore[arg-type]  # no name that Python takes
    needs="schema metric n_layers flips sentences pieces causal opened layers tokens lambda",
)

BY_FILE = {
    "config.json": CONFIG,
    "status.json": STATUS,
    "metrics.json": METRICS,
    "probe.json": PROBE,
}
