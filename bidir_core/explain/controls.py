"""Controls that could refute the story "the damage comes from the first token looking ahead".

Each control says beforehand what would refute the story; ``control_points`` says what is run for
it. Its outcome follows from intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from bidir_core.analyse import stats
from bidir_core.analyse.compare import retention_above_run
from bidir_core.analyse.pairing import pair
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged
from bidir_core.explain.sweep_outcomes import Sweep, points_text, removes, share_text
from bidir_core.explain.sweep_points import ATTENTION_FILE, CLIP, RANDOM, SINK
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.runs.read import read_object
from bidir_core.runs.run import Run
from bidir_core.runs.shapes import ATTENTION

Outcome = Literal["supports", "refutes", "partly", "undecided", "open"]
Answer = tuple[Outcome, str]
TRIVIAL = 0.02  # less attention on future tokens than this would make them irrelevant

# Settings that must agree for two runs to be of one model and one way of making prompts.
SAME = ("model", "revision", "checkpoint", "chat_template", "bos", "repeat_prompt")

# name, title, question, what would refute the story, how it is judged
Control = tuple[str, str, str, str, Callable[[Sweep], Answer]]


def judge(sweep: Sweep) -> list[dict[str, Any]]:
    """Each control with its question, what would refute the story, its outcome and finding."""
    judged = []
    for control in CONTROLS:
        *_, ask = control
        try:
            outcome, finding = ask(sweep)
        except UserError as error:
            outcome, finding = "undecided", f"cannot be judged: {error}"
        if finding:
            judged.append(_row(control, outcome, finding))
    return judged


def _row(control: Control, outcome: str, finding: str) -> dict[str, Any]:
    name, title, question, refuted_by, _ = control
    row = {"name": name, "title": title, "question": question, "refuted_by": refuted_by}
    return {**row, "outcome": outcome, "finding": finding}


def context_floor(sweep: Sweep) -> Answer:
    """Whether causal beats the same model without any context."""
    floor = sweep.slug_of(str(CAUSAL), sweep.usual._replace(context="none"))
    causal = sweep.slug_of(str(CAUSAL), sweep.usual)
    plain = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual)
    if floor is None or causal is None or plain is None:
        return NOT_RUN
    runs = sweep.runs
    gains = {slug: above(runs[floor], runs[slug]) for slug in (causal, plain)}
    pairs = pair(runs[causal], runs[plain], "acc", intersect=True)
    retention = retention_above_run(pairs, runs[floor])
    outcome: Outcome = "supports" if gains[causal].low > 0 else "undecided"
    if gains[causal].high < 0:
        outcome = "refutes"
    share_kept = ""
    if retention.value is not None and retention.low is not None and retention.high is not None:
        share_kept = (
            f" Bidirectional keeps {100 * retention.value:.0f} % of what the context gives (95 % CI "
            f"{100 * retention.low:.0f} to {100 * retention.high:.0f} %)."
        )
    return outcome, (
        f"Over no context at all, causal gains {points_text(vars(gains[causal]))} and "
        f"bidirectional {points_text(vars(gains[plain]))}.{share_kept}"
    )


def keys_or_values(sweep: Sweep) -> Answer:
    """The first token's causal keys, or values, alone patched in: by which path."""
    texts, standings = [], []
    for patch, name in (("keys=0", "keys"), ("values=0", "values")):
        slug = sweep.slug_of(str(BIDIRECTIONAL), sweep.usual, patch)
        if slug is None:
            return NOT_RUN
        removed, text = _removes(sweep, slug, s="")
        standings.append(removed)
        texts.append(f"the first token's causal {name} alone {text}")
    reading = {
        ("most", "little"): " It is how the others find the token that matters.",
        ("little", "most"): " It is what the others read from it that matters.",
        ("most", "most"): " Either is enough.",
        ("little", "little"): " Neither alone is enough.",
    }.get((standings[0], standings[1]), " Which of the two matters is undecided.")
    finding = f"{texts[0]}; {texts[1]}."
    return "open", finding[0].upper() + finding[1:] + reading


def random_look_ahead(sweep: Sweep) -> Answer:
    """As much look-ahead as under a regime, at random: does how much is seen decide, or who looks?

    The story wants such a twin of sink=1 or of the layers left causal to remove little, since the
    first token looks ahead again, and one of rows=0-0 to remove most, since hardly it alone does.
    """
    texts, outcomes = [], []
    for slug, point in sweep.points.items():
        if point.patch != RANDOM or point.condition != sweep.usual:
            continue
        removed, text = _removes(sweep, slug)
        if parse_regime(point.regime).rows is None:
            outcomes.append(_outcome(removed, if_most="refutes", if_little="supports"))
        else:
            outcomes.append(_outcome(removed, if_most="supports", if_little="refutes"))
        texts.append(f"as much as under {point.regime.removeprefix('bidirectional:')} {text}")
    if not texts:
        return NOT_RUN
    outcome: Outcome = "undecided"
    if "refutes" in outcomes:
        outcome = "partly" if "supports" in outcomes else "refutes"
    elif set(outcomes) == {"supports"}:
        outcome = "supports"
    return outcome, f"At random, {'; '.join(texts)}."


def clipped_norm(sweep: Sweep) -> Answer:
    """The first token's norm clipped under causal: is a lost norm what the damage consists of?"""
    slug = sweep.slug_of(str(CAUSAL), sweep.usual, CLIP)
    if slug is None:
        return NOT_RUN
    removed, text = _removes(sweep, slug)
    reading = {
        "most": " Losing the norm alone does not cost it.",
        "little": " Losing the norm alone costs it, without any look-ahead.",
    }.get(removed, " Whether losing the norm costs as much is undecided.")
    if stays := _stays(sweep, slug):
        text = f"does {stays}"
    return "open", f"Causal with the first token's norm clipped {text}.{reading}"


def one_point(dial: str, subject: str, if_most: Outcome, if_little: Outcome) -> Callable[..., Any]:
    """How a control of one point, whose ``dial`` has a value fixed beforehand, is judged."""

    def ask(sweep: Sweep) -> Answer:
        control = _control_with(sweep, dial)
        if control is None:
            return NOT_RUN
        slug, value = control
        removed, text = _removes(sweep, slug)
        return _outcome(removed, if_most, if_little), f"{subject.format(value)} {text}."

    return ask


def prompt_conditions(sweep: Sweep) -> Answer:
    """Whether ``sink=1`` removes the damage with another BOS, with the chat template."""
    conditions = dict.fromkeys(
        p.condition for p in sweep.points.values() if p.condition.context == sweep.usual.context
    )
    texts, standings = [], []
    for condition in conditions:
        plain, sink = (sweep.slug_of(str(r), condition) for r in (BIDIRECTIONAL, SINK))
        if plain is None or sink is None:
            continue
        damage = sweep.numbers(plain, "acc")["delta"]
        removed, text = _removes(sweep, sink)
        standings.append(removed)
        name = condition.words(sweep.usual) or "usual prompt"
        if damage:
            texts.append(f"{name}: bidirectional {points_text(damage)}, sink=1 {text}")
    if len(texts) < 2:
        return NOT_RUN
    if set(standings) == {"most"}:
        outcome: Outcome = "supports"
    elif "little" in standings:
        outcome = "partly" if "most" in standings else "refutes"
    else:
        outcome = "undecided"
    finding = "; ".join(texts)
    return outcome, finding[0].upper() + finding[1:] + "."


def sufficiency(sweep: Sweep) -> Answer:
    """``rows=0-0``: is the damage there if only the first token looks ahead?"""
    slug = sweep.slug_of("bidirectional:rows=0-0", sweep.usual)
    if slug is None:
        return NOT_RUN
    removed, text = _removes(sweep, slug)
    stays = _stays(sweep, slug)
    if stays is None:
        return "undecided", f"Only the first token looking ahead {text}."
    outcome = _outcome(removed, if_most="refutes", if_little="supports")
    return outcome, f"With only the first token looking ahead, {stays} is there."


def triviality(sweep: Sweep) -> Answer:
    """What the sweep's own measurement says."""
    try:
        regimes = read_object(sweep.run.path, ATTENTION_FILE, ATTENTION)["regimes"]
        sink, plain = (regimes[str(regime)]["future"] for regime in (SINK, BIDIRECTIONAL))
    except (FileNotFoundError, Damaged, KeyError):
        return NOT_RUN
    outcome, finding = answer(stats.student_mean(sink), stats.student_mean(plain))
    return outcome, finding + _changed_answers(sweep)


CONTROLS: tuple[Control, ...] = (
    (
        "necessity",
        "Necessity (sink=1)",
        "Does keeping the first token causal remove the damage?",
        "Less than half of the damage removed, with its whole interval.",
        one_point("sink", "Keeping the first token causal", "supports", "refutes"),
    ),
    (
        "sufficiency",
        "Sufficiency (rows=0-0)",
        "If only the first token looks ahead, is the damage there?",
        "Less than half of the damage, with its whole interval.",
        sufficiency,
    ),
    (
        "placebo",
        "Placebo (skip=J)",
        "Does keeping one token in the middle causal help as well?",
        "More than half of the damage removed, with its whole interval: any token would do.",
        one_point("skip", "Keeping token {} causal", "refutes", "supports"),
    ),
    (
        "relocated",
        "Relocated sink (self=J)",
        "Can another token that sees only itself stand in for the first?",
        "More than half of the damage removed, with its whole interval: it is not the first token.",
        one_point("self_token", "Letting token {} see only itself", "refutes", "supports"),
    ),
    (
        "keys-values",
        "Key or value (patched)",
        "Is it how the first token is found (keys), or what is read from it (values)?",
        "Nothing here: patching both is sink=1 exactly. It says by which path.",
        keys_or_values,
    ),
    (
        "amount",
        "Random look-ahead (random=0)",
        "Does as much look-ahead, but at random, do the same: is it how much is seen?",
        "At random, sink=1's or the upper layers' amount removes more than half of the damage, or "
        "the first row's less than half, with the whole interval: it is the amount.",
        random_look_ahead,
    ),
    (
        "norm",
        "Outlier's norm (clip=0)",
        "Does clipping the first token's norm do the damage, while it is attended to as before?",
        "Nothing here: under causal nothing looks ahead. More than half of the damage, with its "
        "whole interval, says that a lost norm is what the damage consists of; less, that it is not.",
        clipped_norm,
    ),
    (
        "triviality",
        "Triviality (attention ahead)",
        "Is bidirectional attention still used under sink=1, or did it merely stop mattering?",
        f"Under {100 * TRIVIAL:.0f} % of attention on tokens ahead, with its whole interval.",
        triviality,
    ),
    (
        "prompts",
        "Prompt conditions",
        "Does it hold with the BOS token the other way, and with the chat template?",
        "A prompt in which sink=1 removes less than half of the damage.",
        prompt_conditions,
    ),
    (
        "tail",
        "Last prompt token (tail=1)",
        "Is it instead that earlier tokens see the last one, from which the answer is predicted?",
        "More than half of the damage removed, with its whole interval.",
        one_point("tail", "Hiding the last prompt token from earlier ones", "refutes", "supports"),
    ),
    (
        "floor",
        "Context floor (no context)",
        "Is there any use of the context to lose?",
        "A causal run that does not beat the same model without any context.",
        context_floor,
    ),
)

Standing = Literal["most", "little", "undecided"]
STORY = "the damage comes from the first token looking ahead"

# What is said of the story after a control with this outcome.
OUTCOME_WORDS: Mapping[Outcome, str] = {
    "supports": "not refuted",
    "refutes": "refuted",
    "partly": "refuted in part",
    "undecided": "undecided",
    "open": "for information",
}

HALF = 0.5
NOT_RUN: Answer = ("undecided", "")


def standing(share: Mapping[str, Any] | None) -> Standing:
    """Whether a share of the damage is most of it, little of it, or cannot be told."""
    if not share or share["value"] is None:
        return "undecided"
    return "most" if share["low"] > HALF else "little" if share["high"] < HALF else "undecided"


def _outcome(removed: Standing, if_most: Outcome, if_little: Outcome) -> Outcome:
    return if_most if removed == "most" else if_little if removed == "little" else "undecided"


def _removes(sweep: Sweep, slug: str, s: str = "s") -> tuple[Standing, str]:
    """How much of the damage a point removes, and the same in words (``s``: the verb's ending)."""
    numbers = sweep.numbers(slug, "acc")
    return standing(numbers["removed"]), removes(numbers, s=s)


def _stays(sweep: Sweep, slug: str) -> str | None:
    """How much of the damage a point leaves, in words; None where no share is stated."""
    share = sweep.numbers(slug, "acc")["removed"]
    if not share or share["value"] is None:
        return None
    staying = {"value": 1 - share["value"], "low": 1 - share["high"], "high": 1 - share["low"]}
    return share_text({**share, **staying})


def _control_with(sweep: Sweep, dial: str) -> tuple[str, Any] | None:
    """The finished control point that turns this dial and no other, and the dial's value.

    A sweep may hold more of the kind: which token is the control's was fixed before any was run.
    """
    fixed_value = 1 if dial in ("sink", "tail") else sweep.run.config.get("middle_token")
    for slug, point in sweep.points.items():
        regime = parse_regime(point.regime)
        value = getattr(regime, dial)
        is_control = point.part == "control" if fixed_value is None else value == fixed_value
        is_usual = point.condition == sweep.usual and not point.patch
        only_dial = str(regime).count("=") == 1
        if is_usual and only_dial and is_control and value not in (None, 0):
            return slug, value
    return None


def above(floor: Run, run: Run) -> stats.Estimate:
    """Macro accuracy of ``run`` minus that of ``floor``, whose context is another one or none."""
    pairs = pair(floor, run, "acc", intersect=True, check_context=False)
    a, b = pairs.by_task(pairs.correct_a), pairs.by_task(pairs.correct_b)
    return stats.macro_delta([stats.paired_delta(a[task], b[task]) for task in a])


def with_observation(
    judged: list[dict[str, Any]], metrics: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """A sweep's judged controls with what an ``attend`` summary says of triviality.

    Without ``metrics`` that row says ``missing``, if the sweep has controls and none of its own.
    """
    name = "triviality"
    measured = next((row for row in judged if row["name"] == name), None)
    observation = observed(metrics)
    if observation is None and (measured is not None or not judged):
        return judged
    names = [control[0] for control in CONTROLS]
    outcome, finding = observation if observation is not None else ("missing", "Not measured.")
    if observation is not None and measured is not None:
        outcome = together(measured["outcome"], observation[0])
        finding = f"{measured['finding']} On more items: {finding[0].lower()}{finding[1:]}"
    row = _row(CONTROLS[names.index(name)], outcome, finding)
    rows = [*(entry for entry in judged if entry is not measured), row]
    return sorted(rows, key=lambda entry: names.index(entry["name"]))


def together(*outcomes: Outcome) -> Outcome:
    """One word for what several sources say: undecided ones give way, contrary ones are partly."""
    decided = set(outcomes) - {"undecided"}
    if len(decided) > 1:
        return "partly"
    return decided.pop() if decided else "undecided"


def _changed_answers(sweep: Sweep) -> str:
    """How often sink=1 answers otherwise than causal: a mask that did nothing would never."""
    causal, sink = (sweep.slug_of(str(regime), sweep.usual) for regime in (CAUSAL, SINK))
    if causal is None or sink is None:
        return ""
    pairs = pair(sweep.runs[causal], sweep.runs[sink], "acc", intersect=True)
    changed = int((pairs.pred_a != pairs.pred_b).sum())
    return (
        f" It answers {100 * changed / pairs.n:.1f} % of the items otherwise than causal "
        f"({formatting.count(changed)} of {formatting.count(pairs.n)})."
    )


# Triviality: is bidirectional attention still used under ``sink=1``, or did it stop mattering? Answered
# by a sweep's own measurement, or by an ``attend`` summary of the same model and prompts.


def observed(metrics: Mapping[str, Any] | None) -> Answer | None:
    """What an ``attend`` summary's metrics say; None if they do not hold both regimes."""
    if metrics is None:
        return None
    try:
        shares = {
            entry["regime"]: entry["overall"]["prefix"]["future"] for entry in metrics["observed"]
        }
        n_items = int(metrics["n_items"])
        sink, plain = (
            stats.Estimate(share["mean"][0], share["low"][0], share["high"][0], n_items)
            for share in (shares[str(SINK)], shares[str(BIDIRECTIONAL)])
        )
        return answer(sink, plain)
    except (KeyError, IndexError, TypeError):
        return None


def same_prompts(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs' settings are of one model and one way of making prompts."""
    usual = {"bos": "auto", "chat_template": False, "repeat_prompt": 1}
    return all(
        (first.get(name) or usual.get(name)) == (second.get(name) or usual.get(name))
        for name in SAME
    )


def largest_summary(settings: Mapping[str, Any], runs: Iterable[Any]) -> Any:
    """The ``attend`` summary of most items that answers for a sweep of these settings; of equal
    ones the first, None without any. ``runs``: runs, or what a page made of them."""
    summaries = [
        run
        for run in runs
        if same_prompts(settings, run.settings) and observed(run.metrics) is not None
    ]
    return max(summaries, key=lambda run: int((run.metrics or {})["n_items"]), default=None)


def answer(sink: stats.Estimate, plain: stats.Estimate) -> Answer:
    """From the mean attention on later tokens under ``sink=1`` and under plain bidirectional."""
    outcome: Outcome = "undecided"
    if sink.low > TRIVIAL:
        outcome = "supports"
    elif sink.high < TRIVIAL:
        outcome = "refutes"
    return outcome, (
        f"Under sink=1 prompt tokens send {_percent(sink)} of their attention to tokens "
        f"ahead of them (mean over layers and heads, {formatting.count(sink.n)} items); under plain "
        f"bidirectional prefill {_percent(plain)}."
    )


def _percent(share: stats.Estimate) -> str:
    interval = f"95 % CI {100 * share.low:.1f} to {100 * share.high:.1f} %"
    return f"{100 * share.value:.1f} % ({'no interval' if math.isnan(share.low) else interval})"
