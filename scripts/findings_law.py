"""The tables on four models: damage, what removes it, and from which layer on looking ahead is free.

Pairs each committed ``law-*`` sweep with the ``recommend-*`` run of the same name: the prediction was
stored before any label of that model was scored.
"""

from __future__ import annotations

import re
from functools import cache

from bidir_core.analyse.stats import MARGIN
from bidir_core.explain.sweep_outcomes import Law, Sweep, hits, law_of, outcomes
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts.pages import Blocks, delta, table

NAMES = {
    "smollm2": "SmolLM2 135M",
    "gemma": "Gemma 3 270M",
    "qwen-0.5b": "Qwen2.5-Coder 0.5B",
    "qwen-1.5b": "Qwen2.5-Coder 1.5B",
}
CAUSAL, OF_WHAT = "causal", ", of what "


def named(prefix: str) -> dict[str, Run]:
    """The newest finished run of each name with the prefix, by what follows it."""
    newest: dict[str, Run] = {}
    for run in list_runs([COMMITTED_RUNS]):
        if run.state == "done" and (run.name or "").startswith(prefix):
            newest.setdefault(str(run.name).removeprefix(prefix), run)
    return dict(sorted(newest.items()))


@cache
def laws() -> dict[str, tuple[Law, Run]]:
    """What each sweep says, by model."""
    return {name: (law_of(run), run) for name, run in named("law-").items()}


def models() -> str:
    """One row a model: what looking ahead costs, and what leaves it out without training."""
    controls, hidden, twice = named("controls-"), named("causal-hide0-"), named("twice-")
    rows = []
    for name, title in NAMES.items():
        result, run = laws()[name]
        views = Sweep(run), Sweep(controls[name])
        swept, moved = (view.outcomes(view.usual, "acc") for view in views)
        assert swept is not None
        assert moved is not None
        causal = views[0].runs[CAUSAL]
        others = {CAUSAL: causal, "hidden": hidden[name], "twice": twice[name]}
        beside = outcomes(causal, others, "acc")
        (chosen,) = [opened for opened in result.curve if opened.first_layer == result.first_layer]
        equal = next(o for o in result.curve if o.whole.low > -MARGIN and o.whole.high < MARGIN)
        rows.append(
            [
                title,
                f"{100 * swept.accuracy(CAUSAL):.1f} %",
                delta(swept.delta(CAUSAL, "bidirectional")),
                delta(swept.delta(CAUSAL, "bidirectional_sink-1")),
                delta(moved.delta(CAUSAL, "bidirectional_self-10")),
                delta(beside.delta(CAUSAL, "hidden")),
                delta(beside.delta(CAUSAL, "twice")),
                str(result.first_layer),
                delta(chosen.confirm),
                str(equal.first_layer),
            ]
        )
    header = (
        "model | causal | bidirectional | `sink=1` | `self=10` | `causal:hide=0` | prompt twice | "
        "A | `layers=A-`, confirm half | first A that is equivalent, all items"
    )
    return made_with(laws()["smollm2"][1]) + table(header, rows)


def made_with(run: Run) -> str:
    """The line above the table: items, number format, device, day, versions."""
    versions, metrics = run.config["packages"], run.metrics or {}
    return (
        f"Whole validation sets, {metrics['n_items']:,} items, {run.config['dtype']}, "
        f"{metrics['cost']['device']}, {run.config['created'][:10]}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}. Points of macro accuracy against causal, 95 % CI.\n\n"
    )


def context() -> str:
    """What the models keep, under bidirectional prefill, of what their contexts are worth."""
    parts = []
    controls = named("controls-")
    for name, title in NAMES.items():
        (floor,) = [c for c in (controls[name].metrics or {})["controls"] if c["name"] == "floor"]
        share, low_to_high = re.findall(r"keeps (\S+ %).*CI ([^)]*)", floor["finding"])[0]
        parts.append(f"{title} {share} ({low_to_high})")
    return "; ".join(parts) + ".\n"


def chat() -> str:
    """What looking ahead costs where the prompt is a turn of a chat, of models with a template."""
    parts = []
    for name, title in NAMES.items():
        sweep = Sweep(named("controls-")[name])
        condition = sweep.usual._replace(chat_template=True)
        compared = sweep.outcomes(condition, "acc")
        causal, plain = (sweep.slug_of(regime, condition) for regime in (CAUSAL, "bidirectional"))
        if compared and causal and plain:
            parts.append(f"{title} {delta(compared.delta(causal, plain))}")
    return "; ".join(parts) + ".\n"


def top() -> str:
    """Upper layers that see the first token, and that cannot, looking ahead or not; last, which share of
    what it costs looking ahead it costs without."""
    rows = []
    for name, run in named("causal-top-hide0-").items():
        sweep = Sweep(named("top-")[name])
        ahead = str(run.regime).replace(CAUSAL, "bidirectional")
        beside = sweep.slug_of(ahead, sweep.usual)
        assert beside is not None
        compared = outcomes(sweep.runs[CAUSAL], {**sweep.runs, "hidden": run}, "acc")
        for slug, point in sweep.points.items():
            if slug != CAUSAL:
                rows.append([name, sweep.run.id, point.regime, delta(compared.delta(CAUSAL, slug))])
        rows.append([name, run.id, str(run.regime), delta(compared.delta(CAUSAL, "hidden"))])
        both = f"{run.regime} minus {ahead}"
        rows.append([name, run.id, both, delta(compared.delta(beside, "hidden"))])
        removed = compared.removed(CAUSAL, beside, "hidden")
        assert removed is not None
        share = removed.why_suppressed or "{:.0f} % ({:.0f} to {:.0f} %)".format(
            *(100 - 100 * (end or 0) for end in (removed.value, removed.high, removed.low))
        )
        rows.append([name, run.id, f"{run.regime}{OF_WHAT}{ahead} costs", share])
    return table("model | run | regime | against causal, points (95 % CI)", rows)


def hidden() -> str:
    """Which share of the cost of hiding the first token half way is there without looking ahead."""
    cells = [row.strip("| ").split(" | ") for row in top().splitlines() if OF_WHAT in row]
    shares = [f"{cell[0]} {cell[-1]}" for cell in cells if cell[-1][0].isdigit()]
    return f"Of its cost looking ahead: {'; '.join(shares)}.\n"


def law() -> str:
    """Every swept A of every model, by half."""
    rows = []
    for name, (result, run) in laws().items():
        for opened in result.curve:
            for half in ("explore", "confirm", "whole"):
                cost = getattr(opened, half)
                ends = [f"{100 * end:.2f}" for end in (cost.value, cost.low, cost.high)]
                rows.append([name, run.id, str(opened.first_layer), half, *ends, str(cost.n)])
    header = (
        "model | run | first layer A of layers=A- | half | macro accuracy against causal, points | "
        "95 % from | to | n"
    )
    return table(header, rows)


def dials() -> str:
    """Every other point of the models' sweeps: dials, controls, prompt conditions."""
    rows = []
    for name in NAMES:
        for run in (laws()[name][1], named("controls-")[name]):
            sweep = Sweep(run)
            for slug, point in sweep.points.items():
                base = sweep.slug_of(CAUSAL, point.condition)
                compared = sweep.outcomes(point.condition, "acc")
                if compared is None or base is None or ":layers=" in point.regime:
                    continue
                what = ", ".join(filter(None, (point.patch, point.condition.words(sweep.usual))))
                cost = "" if slug == base else delta(compared.delta(base, slug))
                accuracy = f"{100 * compared.accuracy(slug):.1f}"
                rows.append([name, run.id, point.regime, what, accuracy, cost])
    header = "model | run | regime | edit or prompt | macro accuracy, %"
    return table(f"{header} | against causal with that prompt, points (95 % CI)", rows)


def predictions() -> str:
    """Which A labels choose, and which one each way to predict had stored before."""
    predicted, rows = named("recommend-"), []
    for name, (result, _) in laws().items():
        metrics = predicted[name].metrics or {}
        right = [key for key, hit in hits(result, metrics).items() if hit]
        stored = [metrics["predictions"].get(k) for k in ("kl", "outlier", "attention", "share")]
        cells = [name, metrics.get("n_layers"), result.first_layer, *stored]
        rows.append([*map(str, cells), " ".join(right) or "none"])
    header = "model | layers | A by labels (explore) | kl | outlier | attention | share | right"
    return table(header, rows)


BLOCKS: Blocks = {
    "models": models,
    "context": context,
    "chat": chat,
    "hidden": hidden,
    "predictions": predictions,
}
TABLES: Blocks = {"law": law, "dials": dials, "top": top}
