"""Controls that could refute the story "the damage comes from the first token looking ahead".

Each control says beforehand what would refute the story, and its outcome follows from intervals
alone. The border is half of the damage, fixed here and not chosen after looking: a point removes
*most* of it if its whole 95 % interval lies above half, *little* if it lies below, and is
*undecided* otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bidir_core import stats, words
from bidir_core.errors import UserError
from bidir_core.lab.points import SINK, Condition, Point
from bidir_core.pairing import pair
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.store import Run

if TYPE_CHECKING:
    from bidir_core.lab.run import Prompts
    from bidir_core.lab.summary import Sweep
    from bidir_core.models import LoadedModel

Outcome = Literal["supports", "refutes", "partly", "undecided", "open"]
Standing = Literal["most", "little", "undecided"]

HALF = 0.5
ITEMS_PER_TASK = 5  # for the attention that triviality looks at
TRIVIAL = 0.02  # less attention on future tokens than this would make them irrelevant
NO_SHARE = "no share is stated, the damage itself is not separable from 0"
ATTENTION_FILE = "attention.json"
REFERENCES = (str(CAUSAL), str(BIDIRECTIONAL), str(SINK))


# --- what to run -------------------------------------------------------------------------------


def plan(prompts: Prompts) -> tuple[list[Point], list[str]]:
    """The points that the controls need, and a note for each that this model does not allow."""
    usual, notes = prompts.usual, []
    middle = middle_token(prompts)
    regimes = [
        str(SINK), "bidirectional:rows=0-0", f"bidirectional:skip={middle}",
        f"bidirectional:self={middle}", "bidirectional:tail=1",
    ]  # fmt: skip
    points = [Point(regime, usual) for regime in regimes]
    points += [Point(str(BIDIRECTIONAL), usual, patch) for patch in ("keys=0", "values=0")]
    for condition in _conditions(prompts):
        try:
            prompts.of(condition)
        except UserError as error:
            notes.append(f"no control with {condition.words(usual)}: {error}")
            continue
        points += [Point(regime, condition) for regime in REFERENCES]
    if usual.context == "full":
        points.append(Point(str(CAUSAL), usual._replace(context="none")))
    return points, notes


def middle_token(prompts: Prompts) -> int:
    """The placebo's token: half the median prompt length, so that most prompts have it inside."""
    encoded = prompts.of(prompts.usual)[1]
    lengths = [len(prefix) for one in encoded if not one.error for prefix in one.prefixes]
    return max(2, int(np.median(lengths)) // 2) if lengths else 2


def _conditions(prompts: Prompts) -> list[Condition]:
    """The usual prompt with the BOS token the other way, and with the chat template so."""
    usual, tokenizer = prompts.usual, prompts.loaded.tokenizer
    bos_added = prompts.of(usual)[2]
    found = []
    if bos_added:
        found.append(usual._replace(bos="none"))
    elif tokenizer.bos_token_id is not None:
        found.append(usual._replace(bos="add"))
    if usual.chat_template or getattr(tokenizer, "chat_template", None):
        found.append(usual._replace(chat_template=not usual.chat_template))
    return found


def measure_attention(folder: Path, prompts: Prompts, loaded: LoadedModel) -> None:
    """Where attention goes under each reference regime, on a few items of each task.

    Written to ``attention.json``; a resumed sweep does not measure twice.
    """
    from bidir_core.atomic import write_json
    from bidir_core.attend_observe import attention_shares

    if (folder / ATTENTION_FILE).exists():
        return
    by_task: dict[str, list[Any]] = {}
    for one in prompts.of(prompts.usual)[1]:
        if not one.error and len(one.prefix(one.item.gold)) > 1:
            by_task.setdefault(one.item.task, []).append(one)
    chosen = []
    for members in by_task.values():
        places = np.linspace(0, len(members) - 1, min(ITEMS_PER_TASK, len(members)))
        chosen += [members[int(place)] for place in places]
    found: dict[str, Any] = {}
    for regime in (CAUSAL, BIDIRECTIONAL, SINK):
        means = [shares.mean() for _, shares in attention_shares(loaded, chosen, regime)]
        found[str(regime)] = {
            name: [round(float(mean[name].mean()), 5) for mean in means]
            for name in ("first", "future", "past")
        } | {
            f"{name}_by_layer": np.mean([m[name].mean(-1) for m in means], axis=0).round(5).tolist()
            for name in ("first", "future")
        }
    items = [one.item.item_id for one in chosen]
    write_json(folder / ATTENTION_FILE, {"schema": 1, "items": items, "regimes": found})


# --- what they say -----------------------------------------------------------------------------


def judge(sweep: Sweep) -> list[dict[str, Any]]:
    """Each control with its question, what would refute the story, its outcome and finding."""
    found = []
    for control in CONTROLS:
        name, title, question, refuted_by, ask = control
        try:
            outcome, finding = ask(sweep)
        except UserError as error:
            outcome, finding = "undecided", f"cannot be judged: {error}"
        if finding:
            found.append(
                {
                    "name": name,
                    "title": title,
                    "question": question,
                    "refuted_by": refuted_by,
                    "outcome": outcome,
                    "finding": finding,
                }
            )
    return found


Answer = tuple[Outcome, str]
NOT_RUN: Answer = ("undecided", "")


def standing(share: Mapping[str, Any] | None) -> Standing:
    """Whether a share of the damage is most of it, little of it, or cannot be told."""
    if not share or share["value"] is None:
        return "undecided"
    return "most" if share["low"] > HALF else "little" if share["high"] < HALF else "undecided"


def _removes(
    sweep: Sweep, slug: str, *, they: bool = False
) -> tuple[Mapping[str, Any] | None, str]:
    """The share of the damage that a point removes, and the same in words (``they``: plural)."""
    s = "" if they else "s"
    numbers = sweep.numbers(slug, "acc")
    share, delta = numbers["removed"], numbers["delta"]
    if share and share["value"] is not None:
        return share, f"remove{s} {_share(share['value'], share['low'], share['high'], share['n'])}"
    if delta:
        return share, f"differ{s} from causal by {_points(delta)}; {NO_SHARE}"
    return share, f"ha{'ve' if they else 's'} no causal run to compare with"


def _share(value: float, low: float, high: float, n: int) -> str:
    return (
        f"{100 * value:.0f} % of the damage (95 % CI {100 * low:.0f} to {100 * high:.0f} %, "
        f"n = {words.count(n)})"
    )


def _points(delta: Mapping[str, Any]) -> str:
    ends = [words.points(delta[end], signed=True) for end in ("value", "low", "high")]
    return f"{ends[0]} points (95 % CI {ends[1]} to {ends[2]}, n = {words.count(delta['n'])})"


def _control_with(sweep: Sweep, dial: str) -> tuple[str, Any] | None:
    """The finished control point that turns this dial and no other, and the dial's value.

    A sweep may hold more of the kind: which token is the control's was fixed before any was run.
    """
    middle = sweep.run.config.get("middle_token")
    wanted = 1 if dial == "tail" else middle
    for slug, point in sweep.points.items():
        regime = parse_regime(point.regime)
        value = getattr(regime, dial)
        fixed = point.part == "control" if wanted is None else value == wanted
        alone = str(regime).count("=") == 1 and point.condition == sweep.usual and not point.patch
        if alone and fixed and value not in (None, 0):
            return slug, value
    return None


def _necessity(sweep: Sweep) -> Answer:
    slug = sweep.slug_of(str(SINK), sweep.usual)
    if slug is None:
        return NOT_RUN
    share, text = _removes(sweep, slug)
    outcome: Outcome = {"most": "supports", "little": "refutes"}.get(standing(share), "undecided")  # type: ignore[assignment]
    return outcome, f"Keeping the first token causal {text}."


def _sufficiency(sweep: Sweep) -> Answer:
    slug = sweep.slug_of("bidirectional:rows=0-0", sweep.usual)
    if slug is None:
        return NOT_RUN
    share, text = _removes(sweep, slug)
    if not share or share["value"] is None:
        return "undecided", f"Only the first token looking ahead {text}."
    there = _share(1 - share["value"], 1 - share["high"], 1 - share["low"], share["n"])
    outcome: Outcome = {"little": "supports", "most": "refutes"}.get(standing(share), "undecided")  # type: ignore[assignment]
    return outcome, f"With only the first token looking ahead, {there} is there."


def _one_point(dial: str, subject: str, if_most: Outcome, if_little: Outcome) -> Callable[..., Any]:
    def ask(sweep: Sweep) -> Answer:
        found = _control_with(sweep, dial)
        if found is None:
            return NOT_RUN
        slug, value = found
        share, text = _removes(sweep, slug)
        outcome = {"most": if_most, "little": if_little}.get(standing(share), "undecided")
        return outcome, f"{subject.format(value)} {text}."  # type: ignore[return-value]

    return ask


def _keys_or_values(sweep: Sweep) -> Answer:
    said, standings = [], []
    for patch, name in (("keys=0", "keys"), ("values=0", "values")):
        slug = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual, patch)
        if slug is None:
            return NOT_RUN
        share, text = _removes(sweep, slug, they=True)
        standings.append(standing(share))
        said.append(f"the first token's causal {name} alone {text}")
    reading = {
        ("most", "little"): " It is how the others find the token that matters.",
        ("little", "most"): " It is what the others read from it that matters.",
        ("most", "most"): " Either is enough.",
        ("little", "little"): " Neither alone is enough.",
    }.get((standings[0], standings[1]), " Which of the two matters is undecided.")
    finding = f"{said[0]}; {said[1]}."
    return "open", finding[0].upper() + finding[1:] + reading


def _triviality(sweep: Sweep) -> Answer:
    try:
        value = json.loads((sweep.run.path / ATTENTION_FILE).read_text(encoding="utf-8"))
        regimes = value["regimes"]
        sink, plain = regimes[str(SINK)]["future"], regimes[str(BIDIRECTIONAL)]["future"]
    except (OSError, ValueError, KeyError, TypeError):
        return NOT_RUN
    mean, low, high = _mean(sink)
    other, other_low, other_high = _mean(plain)
    outcome: Outcome = "undecided"
    if not math.isnan(low):
        outcome = "supports" if low > TRIVIAL else "refutes" if high < TRIVIAL else "undecided"
    return outcome, (
        f"Under sink=1 prompt tokens send {_percent(mean, low, high)} of their attention to tokens "
        f"ahead of them (mean over layers and heads, {len(sink)} items); under plain bidirectional "
        f"prefill {_percent(other, other_low, other_high)}.{_changed_answers(sweep)}"
    )


def _changed_answers(sweep: Sweep) -> str:
    """How often sink=1 answers otherwise than causal: a mask that did nothing would never."""
    causal, sink = (sweep.slug_of(str(regime), sweep.usual) for regime in (CAUSAL, SINK))
    if causal is None or sink is None:
        return ""
    pairs = pair(sweep.runs[causal], sweep.runs[sink], "acc", intersect=True)
    changed = int((pairs.pred_a != pairs.pred_b).sum())
    return (
        f" It answers {100 * changed / pairs.n:.1f} % of the items otherwise than causal "
        f"({words.count(changed)} of {words.count(pairs.n)})."
    )


def _mean(values: list[float]) -> tuple[float, float, float]:
    """A mean over items with its normal 95 % interval."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < 2:
        return mean, math.nan, math.nan
    half = 1.959964 * float(found.std(ddof=1)) / math.sqrt(len(found))
    return mean, mean - half, mean + half


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f} %)"


def _prompt_conditions(sweep: Sweep) -> Answer:
    conditions = dict.fromkeys(
        p.condition for p in sweep.points.values() if p.condition.context == sweep.usual.context
    )
    said, standings = [], []
    for condition in conditions:
        plain, sink = (sweep.slug_of(str(r), condition) for r in (BIDIRECTIONAL, SINK))
        if plain is None or sink is None:
            continue
        damage = sweep.numbers(plain, "acc")["delta"]
        share, text = _removes(sweep, sink)
        standings.append(standing(share))
        name = condition.words(sweep.usual) or "usual prompt"
        if damage:
            said.append(f"{name}: bidirectional {_points(damage)}, sink=1 {text}")
    if len(said) < 2:
        return NOT_RUN
    if all(one == "most" for one in standings):
        outcome: Outcome = "supports"
    elif "little" in standings:
        outcome = "partly" if "most" in standings else "refutes"
    else:
        outcome = "undecided"
    finding = "; ".join(said)
    return outcome, finding[0].upper() + finding[1:] + "."


def _context_floor(sweep: Sweep) -> Answer:
    floor = sweep.slug_of(str(CAUSAL), sweep.usual._replace(context="none"))
    causal = sweep.slug_of(str(CAUSAL), sweep.usual)
    plain = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual)
    if floor is None or causal is None or plain is None:
        return NOT_RUN
    runs = sweep.runs
    above = {slug: _above(runs[floor], runs[slug]) for slug in (causal, plain)}
    kept = _kept(runs[causal], runs[plain], runs[floor])
    outcome: Outcome = "supports" if above[causal].low > 0 else "undecided"
    if above[causal].high < 0:
        outcome = "refutes"
    said = ""
    if kept.value is not None and kept.low is not None and kept.high is not None:
        said = (
            f" Bidirectional keeps {100 * kept.value:.0f} % of what the context gives (95 % CI "
            f"{100 * kept.low:.0f} to {100 * kept.high:.0f} %)."
        )
    return outcome, (
        f"Over no context at all, causal gains {_points(vars(above[causal]))} and bidirectional "
        f"{_points(vars(above[plain]))}.{said}"
    )


def _above(floor: Run, run: Run) -> stats.Estimate:
    pairs = pair(floor, run, "acc", intersect=True, check_context=False)
    a, b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    return stats.macro_delta([stats.paired_delta(a[task], b[task]) for task in a])


def _kept(causal: Run, plain: Run, floor: Run) -> stats.Retention:
    pairs = pair(causal, plain, "acc", intersect=True)
    third = pair(causal, floor, "acc", intersect=True, check_context=False)
    score = dict(zip(zip(third.task, third.doc_id), third.correct_b))
    keys = list(zip(pairs.task, pairs.doc_id))
    known = np.array([key in score for key in keys])
    low = np.array([score.get(key, False) for key in keys])
    parts = [
        {task: values[known & (pairs.task == task)] for task in pairs.tasks}
        for values in (pairs.correct_a, pairs.correct_b, low)
    ]
    return stats.above_floor_retention(parts[0], parts[1], parts[2])


# (name, title, question, what would refute the story, how it is judged)
CONTROLS: tuple[tuple[str, str, str, str, Callable[[Sweep], Answer]], ...] = (
    (
        "necessity", "Necessity (sink=1)",
        "Does keeping the first token causal remove the damage?",
        "Less than half of the damage removed, with its whole interval.", _necessity,
    ),
    (
        "sufficiency", "Sufficiency (rows=0-0)",
        "If only the first token looks ahead, is the damage there?",
        "Less than half of the damage, with its whole interval.", _sufficiency,
    ),
    (
        "placebo", "Placebo (skip=J)",
        "Does keeping one token in the middle causal help as well?",
        "More than half of the damage removed, with its whole interval: any token would do.",
        _one_point("skip", "Keeping token {} causal", "refutes", "supports"),
    ),
    (
        "relocated", "Relocated sink (self=J)",
        "Can another token that sees only itself stand in for the first?",
        "More than half of the damage removed, with its whole interval: it is not the first token.",
        _one_point("self_token", "Letting token {} see only itself", "refutes", "supports"),
    ),
    (
        "keys-values", "Key or value (patched)",
        "Is it how the first token is found (keys), or what is read from it (values)?",
        "Nothing here: patching both is sink=1 exactly. It says by which path.", _keys_or_values,
    ),
    (
        "triviality", "Triviality (attention ahead)",
        "Is bidirectional attention still used under sink=1, or did it merely stop mattering?",
        f"Under {100 * TRIVIAL:.0f} % of attention on tokens ahead, with its whole interval.",
        _triviality,
    ),
    (
        "prompts", "Prompt conditions",
        "Does it hold with the BOS token the other way, and with the chat template?",
        "A prompt in which sink=1 removes less than half of the damage.", _prompt_conditions,
    ),
    (
        "tail", "Last prompt token (tail=1)",
        "Is it instead that earlier tokens see the last one, from which the answer is predicted?",
        "More than half of the damage removed, with its whole interval.",
        _one_point("tail", "Hiding the last prompt token from earlier ones", "refutes", "supports"),
    ),
    (
        "floor", "Context floor (no context)",
        "Is there any use of the context to lose?",
        "A causal run that does not beat the same model without any context.", _context_floor,
    ),
)  # fmt: skip
