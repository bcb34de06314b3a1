"""What committed sweeps, controls and attention summaries say: blocks and tables."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.pairing import METRICS
from bidir_core.analyse.stats import Retention
from bidir_core.common import formatting
from bidir_core.explain.controls import CONTROLS, OUTCOME_WORDS, above, judge, observed, together
from bidir_core.explain.sweep_outcomes import Outcomes, Sweep, percent
from bidir_core.explain.sweep_points import CLIP, RANDOM
from bidir_core.regimes import Regime, parse_regime, visibility
from bidir_core.report.plots_lab import layer_ranges
from bidir_core.runs.layout import COMMITTED_RUNS, LAB
from bidir_core.runs.run import Run
from scripts.pages import Blocks, delta, table

EMBEDDED, SECOND = "smollm2-135m-instruct", "gemma3-270m"
CAUSAL, PLAIN, SINK = "causal", "bidirectional", "bidirectional:sink=1"
EVIDENCE = {
    EMBEDDED: {
        "sweep": "20261123-084103_sweep",
        "controls": "20261130-084150_controls-smollm2",
        "attention": "20261123-091515_attention-20-each",
    },
    SECOND: {
        "sweep": "20261123-084301_sweep-gemma",
        "controls": "20261130-142924_controls-gemma",
        "attention": "20261123-084459_attention-20-each-gemma",
    },
    "qwen2.5-coder-0.5b-instruct": {"controls": "20261130-143149_controls-qwen-0.5b"},
    "qwen2.5-coder-1.5b-instruct": {"controls": "20261130-143456_controls-qwen-1.5b"},
}
FIRST = 500  # the study's own limit: items of each task
COSTLIEST = 6  # windows of layers shown
ENDS = ("mean", "low", "high")
LAYERS = re.compile(r"layers=\d+-(?=`)")
FAMILY = 3  # so many ranges of one width are a sweep's windows; fewer were given one by one


def evidence(model: str, name: str) -> Run:
    """The committed run that speaks for a model."""
    return Run(COMMITTED_RUNS / LAB / EVIDENCE[model][name])


# Controls


def controls() -> str:
    """What was fixed beforehand as refuting the story, and what came of it on each model."""
    cells = {model: outcomes_of_controls(model) for model in EVIDENCE}
    sources = [basis(evidence(model, "controls")) for model in EVIDENCE]
    rows = [
        [title, refuted_by, *(cells[model].get(name, "not run") for model in EVIDENCE)]
        for name, title, _, refuted_by, _ in CONTROLS
    ]
    header = " | ".join(["control", "the story is refuted by", *EVIDENCE])
    return "".join(sources) + table(header, rows)


def outcomes_of_controls(model: str) -> dict[str, str]:
    """By control: the share of the damage that its points remove, if it has any; the verdict."""
    run = evidence(model, "controls")
    view = Sweep(run)
    numbers = _outcomes(view, "acc")
    middle, cells = run.config.get("middle_token"), {}
    points: dict[str, list[tuple[str, str | None]]] = {
        "necessity": [("sink=1", None)],
        "sufficiency": [("rows=0-0", None)],
        "placebo": [(f"skip={middle}", None)],
        "relocated": [(f"self={middle}", None)],
        "keys-values": [("", "keys=0"), ("", "values=0")],
        "amount": [(dials, RANDOM) for dials in ("sink=1", "layers=2-", "rows=0-0")],
        "norm": [(CAUSAL, CLIP)],
        "tail": [("tail=1", None)],
    }
    judged = {row["name"]: row["outcome"] for row in judge(view)}
    observation = "attention" in EVIDENCE[model] and evidence(model, "attention").metrics
    if observation and (attention_answer := observed(observation)):
        judged["triviality"] = together(judged.get("triviality", "undecided"), attention_answer[0])
    for name, outcome in judged.items():
        verdict = OUTCOME_WORDS[outcome]
        verdict = f"**{verdict}**" if verdict.startswith("refuted") else verdict
        removed = []
        for dials, patch in points.get(name, []):
            regime = CAUSAL if dials == CAUSAL else f"{PLAIN}:{dials}" if dials else PLAIN
            if slug := view.slug_of(regime, view.usual, patch):
                label = f"{dials} {patch or ''}".strip() if len(points[name]) > 1 else ""
                part = numbers.removed(CAUSAL, PLAIN, slug)
                if part is not None and name == "norm":  # what it does of the damage by itself
                    value, low, high = (1 - (end or 0) for end in (part.value, part.high, part.low))
                    part = Retention(value, low, high, part.n, part.why_suppressed)
                removed.append(f"{label} {share(part)}".strip())
        verb = "does" if name == "norm" else "removes"
        cells[name] = f"{verb} {', '.join(removed)}: {verdict}" if removed else verdict
    return cells


def points(model: str) -> str:
    """The controls' points of the usual prompt, by both measures."""
    view, rows, reach = Sweep(evidence(model, "controls")), [], ""
    for slug, point in view.points.items():
        if point.condition != view.usual or point.part != "control":
            continue
        patched = f", patched `{point.patch}`" if point.patch else ""
        row = [short(point.regime) + patched]
        for metric in METRICS:
            numbers = _outcomes(view, metric)
            row += [
                f"{100 * numbers.accuracy(slug):.1f}",
                delta(numbers.delta(PLAIN, slug)),
                share(numbers.removed(CAUSAL, PLAIN, slug)),
            ]
        rows.append(row)
        reach += _where_it_reaches(view, slug)
    columns = ("", "to bidirectional, ", "damage removed, ")
    header = " | ".join(["point", *(f"{column}`{m}`" for m in METRICS for column in columns)])
    return table(header, rows) + reach


def _where_it_reaches(view: Sweep, slug: str) -> str:
    """What moving the sink does in the prompts that have the token it is moved to."""
    token = parse_regime(view.points[slug].regime).self_token
    if token is None:
        return ""
    lengths = view.runs[CAUSAL].items_table(("n_prefix_tokens",)).column("n_prefix_tokens")
    reached = np.array([min(by_context) > token for by_context in lengths.to_pylist()])
    removed = only(_outcomes(view, "acc"), reached).removed(CAUSAL, PLAIN, slug)
    return (
        f"\n{formatting.count(int((~reached).sum()))} prompts are too short to have a token {token}; "
        f"in the others `self={token}` removes {share(removed)} of the damage by `acc`.\n"
    )


def prompts(model: str) -> str:
    """The causal accuracy with each prompt, and what bidirectional prefill then costs."""
    view, rows = Sweep(evidence(model, "controls")), []
    none = view.slug_of(CAUSAL, view.usual._replace(context="none"))
    for condition in dict.fromkeys(point.condition for point in view.points.values()):
        causal, plain, sink = (view.slug_of(regime, condition) for regime in (CAUSAL, PLAIN, SINK))
        numbers = view.outcomes(condition, "acc")
        if numbers and causal and plain and sink and none:
            pairs = condition.chat_template == view.usual.chat_template
            rows.append(
                [
                    condition.words(view.usual) or "usual",
                    f"{100 * numbers.accuracy(causal):.1f}",
                    delta(above(view.runs[none], view.runs[causal])) if pairs else "",
                    delta(numbers.delta(causal, plain)),
                    delta(numbers.delta(causal, sink)),
                    share(numbers.removed(causal, plain, sink)),
                ]
            )
    header = (
        "prompt | causal | over no context | bidirectional to causal | sink=1 to causal | "
        "damage removed by sink=1"
    )
    return table(header, rows)


# Attention and whole sets


def attention(model: str) -> str:
    """Where the prompt's tokens look, and how long the first one's state is, under each regime."""
    run = evidence(model, "attention")
    metrics = run.metrics or {}
    middle, rows = metrics["n_layers"] // 2, []
    for number, entry in enumerate(metrics["observed"]):
        shares, norms = entry["overall"]["prefix"], metrics["drift"][f"norm_{number}_first"]
        ends = [[100 * shares[n][end][0] for end in ENDS] for n in ("first", "top", "future")]
        value, low, high = (f"{norms[end][middle]:,.0f}" for end in ENDS)
        rows.append(
            [
                f"`{entry['regime']}`",
                *(f"{mean:.1f} % ({start:.1f} to {end:.1f})" for mean, start, end in ends),
                f"{value} ({low} to {high})",
            ]
        )
    header = (
        "regime | attention on the first token | on each head's most attended token | "
        f"on tokens ahead | length of the first token's state behind layer {middle}"
    )
    return basis(run) + table(header, rows)


SINK_RUNS = {
    "SmolLM2 135M": ("20261130-210904_sink-smollm2", "20261130-213959_rescued-smollm2"),
    "Gemma 3 270M": ("20261130-213244_sink-gemma", "20261130-215429_rescued-gemma"),
    "Qwen2.5-Coder 0.5B": ("20261130-211418_sink-qwen-0.5b", "20261130-214315_rescued-qwen-0.5b"),
    "Qwen2.5-Coder 1.5B": ("20261130-220506_sink-qwen-1.5b", "20261130-221539_rescued-qwen-1.5b"),
}


def sinks() -> str:
    """How much of the prompt's attention goes to each head's most attended token: is there a sink?"""
    rows, header, notes = [], [""], []
    for title, names in SINK_RUNS.items():
        runs = [Run(COMMITTED_RUNS / LAB / name) for name in names]
        every = [entry for run in runs for entry in (run.metrics or {})["observed"]]
        shown = [entry for entry in every if entry["regime"] != "bidirectional:hide=0"]
        header = ["model", *(LAYERS.sub("layers=A-", short(e["regime"])) for e in shown)]
        shares = [entry["overall"]["prefix"]["top"] for entry in shown]
        ends = [[f"{100 * share[end][0]:.1f}" for end in ENDS] for share in shares]
        rows.append([title, *(f"{mean} ({low} to {high})" for mean, low, high in ends)])
        notes.append(str((runs[0].metrics or {})["n_items"]))
    return f"In %; {', '.join(notes)} items, float32, CPU.\n\n" + table(" | ".join(header), rows)


def sweep(model: str) -> str:
    """Every swept point but windows of layers."""
    run = evidence(model, "sweep")
    view = Sweep(run)
    numbers = _outcomes(view, "acc")
    windows = {slug for family in _windows(view) for slug, _, _ in family}
    rows = [
        [
            short(point.regime),
            f"{100 * ahead_left(view, point.regime):.0f} %",
            f"{100 * numbers.accuracy(slug):.1f}",
            "" if slug == CAUSAL else delta(numbers.delta(CAUSAL, slug)),
            "" if slug in (CAUSAL, PLAIN) else share(numbers.removed(CAUSAL, PLAIN, slug)),
        ]
        for slug, point in view.points.items()
        if _swept(view, slug) and slug not in windows
    ]
    header = "point | ahead left | accuracy | to causal, points | damage removed"
    return basis(run) + table(header, rows)


def ahead_left(view: Sweep, regime: str) -> float:
    """How much of looking ahead a regime leaves open: of the pairs of a prompt token and a later
    one, over layers and items, with tasks alike. A weakened pair (lambda) is open."""
    causal_run = view.runs[view.slug_of(CAUSAL, view.usual) or CAUSAL]
    lengths = causal_run.items_table(("task", "n_prefix_tokens")).to_pandas()
    parsed, n_layers = parse_regime(regime), int(view.run.config["n_layers"])
    by_layer = Counter(parsed.at_layer(layer) for layer in range(n_layers))
    shares: dict[str, list[float]] = {}
    for task, by_context in zip(lengths["task"], lengths["n_prefix_tokens"], strict=True):
        n = int(by_context[0])
        if n > 1:
            n_open = sum(n_same * _open_pairs(r, n) for r, n_same in by_layer.items())
            shares.setdefault(task, []).append(n_open / n_layers / (n * (n - 1) / 2))
    return float(np.mean([np.mean(of_task) for of_task in shares.values()]))


@cache
def _open_pairs(regime: Regime, n_prefix: int) -> int:
    return int(np.triu(visibility(regime, n_prefix, n_prefix), k=1).sum())


def layers(model: str) -> str:
    """The costliest windows of each width, with intervals that hold for all of them together."""
    view = Sweep(evidence(model, "sweep"))
    numbers, texts = _outcomes(view, "acc"), []
    for family in _windows(view):
        n, width = len(family), family[0][2]
        level = 1 - (1 - stats.CONFIDENCE) / n
        costs = []
        for slug, first, _ in family:
            cost = numbers.delta(CAUSAL, slug, confidence=level)
            assert cost is not None
            costs.append((cost, f"{first}-{first + width - 1}", slug))
        costs.sort(key=lambda row: row[0].value)
        rows = [
            [
                f"`layers={name}`",
                delta(cost),
                share(_remaining_share(numbers.removed(CAUSAL, PLAIN, slug, confidence=level))),
            ]
            for cost, name, slug in costs[:COSTLIEST]
        ]
        clear = [name for cost, name, _ in costs if cost.high < 0]
        text = (
            f"Bidirectional in {width} {'layer' if width == 1 else 'layers'} only, at each of {n} "
            f"places; intervals hold for all {n} together (each {100 * level:.1f} %). "
        )
        text += f"Of layers {', '.join(clear)} it leaves out 0." if clear else "None leaves out 0."
        if others := [formatting.points(cost.value, signed=True) for cost, *_ in costs[COSTLIEST:]]:
            text += f" The {COSTLIEST} costliest; the other {len(others)} lie between {others[0]} and {others[-1]}."
        header = "point | to causal, points | share of the damage there"
        texts.append(f"{text}\n\n" + table(header, rows))
    return "\n".join(texts)


def _remaining_share(removed: Retention | None) -> Retention | None:
    """The share of the damage that is left at a point, from the share that is removed there."""
    if removed is None or removed.value is None or removed.low is None or removed.high is None:
        return removed
    return replace(removed, value=1 - removed.value, low=1 - removed.high, high=1 - removed.low)


def _windows(view: Sweep) -> list[list[tuple[str, int, int]]]:
    """(slug, first layer, width) of the families of windows, by width."""
    swept = [point.to_json(view.usual) for slug, point in view.points.items() if _swept(view, slug)]
    ranges = layer_ranges(swept, view.usual._asdict()).get("", [])
    widths = sorted({width for _, _, width in ranges})
    families = [[span for span in ranges if span[2] == width] for width in widths]
    return [family for family in families if len(family) >= FAMILY]


def _swept(view: Sweep, slug: str) -> bool:
    point = view.points[slug]
    return point.part != "control" and point.condition == view.usual and point.patch is None


# Numbers and words


def _outcomes(view: Sweep, metric: str) -> Outcomes:
    outcomes = view.outcomes(view.usual, metric)
    assert outcomes is not None
    return outcomes


def only(outcomes: Outcomes, mask: np.ndarray) -> Outcomes:
    """These items only; a task without any leaves the macro mean."""
    right = {slug: values[mask] for slug, values in outcomes.right.items()}
    known = {slug: values[mask] for slug, values in outcomes.known.items()}
    return Outcomes(outcomes.task[mask], outcomes.halves[mask], right, known)


def share(retention: Retention | None) -> str:
    """Which part of the damage, with its interval."""
    assert retention is not None
    if retention.value is None or retention.low is None or retention.high is None:
        return "not stated"
    return f"{percent(retention.value)} % ({percent(retention.low)} to {percent(retention.high)} %)"


def short(regime: str) -> str:
    """A regime's name in a table."""
    name = regime.removeprefix("bidirectional:")
    return name if name in (CAUSAL, PLAIN) else f"`{name}`"


def basis(run: Run) -> str:
    """Which run a table is of: its items, number format and device."""
    metrics, settings = run.metrics or {}, run.settings
    limit, sample = settings.get("limit"), settings.get("sample", "first")
    kinds = {
        "first": f"the first {limit} of each task",
        "stratified": f"{limit} of each task, spread",
    }
    extent = "whole sets" if limit is None else kinds.get(sample, f"{limit} of each task, {sample}")
    device = (metrics.get("cost") or {}).get("device") or run.config.get("device")
    items = f"{formatting.count(metrics['n_items'])} items"
    place = "a CPU" if device == "cpu" else device
    facts = ", ".join(filter(None, (items, extent, str(run.config.get("dtype")), place)))
    return f"`{run.id}`: {facts}.\n\n"


TABLES_BY_MODEL = (sweep, points, prompts, layers, attention)
BLOCKS: Blocks = {"sinks": sinks}
TABLES: Blocks = {
    **{block.__name__: partial(block, EMBEDDED) for block in TABLES_BY_MODEL},
    "controls": controls,
    **{f"gemma_{block.__name__}": partial(block, SECOND) for block in TABLES_BY_MODEL},
}
