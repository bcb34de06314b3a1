"""How much of a regime's damage comes from running 8-bit weights as they are.

The weights are the same numbers either way. Native ones also round what goes into each layer to
8 bits, by scales that were calibrated under causal attention; so the damage may differ, and
regime x weights, four evaluations of the same items, says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import cast

import torch

from bidir_core.analyse import stats
from bidir_core.analyse.compare import Comparison, compare, interaction_of_runs
from bidir_core.analyse.pairing import METRICS, Metric
from bidir_core.analyse.phrases import phrase
from bidir_core.analyse.verdict import judge
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.settings import check_config, same_as, setting
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.jobs.pipeline import Known, find_run_of, known_of, say
from bidir_core.jobs.pipeline_config import Stage
from bidir_core.models import devices, loading
from bidir_core.regimes import parse_regime
from bidir_core.runs.layout import check_new_run
from bidir_core.runs.run import Run


@dataclass(frozen=True)
class WeightsEffect:
    """Under one metric: what the regime does to either kind of weights, and how far they differ.

    ``difference``: (regime - causal) of the native weights minus that of the dequantised ones.
    """

    metric: Metric
    dequantised: Comparison
    native: Comparison
    difference: stats.Estimate


def run_four(config: WeightsConfig) -> dict[str, Run]:
    """The four finished runs, by :func:`~bidir_core.jobs.weights.key_of`; does what is missing.

    Raises UserError on bad input before anything is written. One model is in memory at a time.
    """
    stages = plan(config)
    known = preflight(stages)
    runs: dict[str, Run] = {}
    for _, both in groupby(stages, lambda stage: _config(stage).weights):
        _run_pair(list(both), stages, known, runs)
        devices.sweep()  # this model must be gone before the next comes
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return runs


def preflight(stages: list[Stage]) -> Known:
    """Every check that needs no weights in memory; that of native weights comes first."""
    native = _config(stages[0])
    check_new_run(native.runs_dir, native.name)
    # The regime in question, so that its layers are checked too.
    with _both_ways():
        checked = evaluate.preflight(native, parse_regime(_config(stages[1]).regime))
    items = evaluate.read_items(native)
    evaluate.encode(native, checked, items)
    return known_of(checked, items)


def _run_pair(both: list[Stage], stages: list[Stage], known: Known, runs: dict[str, Run]) -> None:
    """Evaluate one kind of weights causal and under the regime, loading them at most once."""
    loaded: loading.LoadedModel | None = None
    for stage in both:
        config = _config(stage)
        found = find_run_of(stage, stages, runs, known, config, named=config.name)
        where = f"evaluation {stages.index(stage) + 1} of {len(stages)}: {stage.title}"
        if found is not None and found.state == "done":
            say(f"{where}: done, {found.id}")
            runs[stage.key] = found
            continue
        if found is not None and found.state == "running":
            raise UserError(f"{where}: '{found.id}' is being written by another process; wait")
        say(f"{where}{f': resuming {found.id}' if found else ''}")
        try:
            loaded = loaded or _load(config)
            if found is not None:
                path = evaluate.resume(found.path, {}, loaded=loaded)
            else:
                path = evaluate.evaluate(config, loaded=loaded)
        except UserError as error:
            raise UserError(f"{where}: {error} (the same line then goes on from here)") from error
        runs[stage.key] = Run(path)


def _load(config: EvalConfig) -> loading.LoadedModel:
    with _both_ways():
        return loading.load_weights(evaluate.preflight(config, parse_regime(config.regime)))


@contextmanager
def _both_ways() -> Iterator[None]:
    """Leaves out of a refusal the flag that this command does not have."""
    flag = "--weights native: "
    try:
        yield
    except UserError as error:
        if not str(error).startswith(flag):
            raise
        reason = str(error).removeprefix(flag).rpartition(";")[0]
        raise UserError(
            f"the weights cannot be run both ways: {reason}; evaluate the model with eval instead"
        ) from error


def _config(stage: Stage) -> EvalConfig:
    return cast(EvalConfig, stage.config)


def effects_of(config: WeightsConfig, runs: Mapping[str, Run]) -> list[WeightsEffect]:
    """What the four runs show, by metric: paired by item, as a comparison and a report do it."""

    def cell(weights: str, regime: str) -> Run:
        return runs[key_of(weights, regime)]

    return [
        WeightsEffect(
            metric=metric,
            dequantised=compare(
                cell("dequantise", CAUSAL), cell("dequantise", config.regime), metric=metric
            ),
            native=compare(cell("native", CAUSAL), cell("native", config.regime), metric=metric),
            difference=interaction_of_runs(
                [cell("native", config.regime)],
                [cell("dequantise", config.regime)],
                [cell("native", CAUSAL)],
                [cell("dequantise", CAUSAL)],
                metric=metric,
            ).estimate,
        )
        for metric in METRICS
    ]


def effect_text(
    config: WeightsConfig, runs: Mapping[str, Run], effects: list[WeightsEffect]
) -> str:
    """The four runs, a table a metric, and a sentence under each."""
    lines = [f"{key}: {run.path}" for key, run in runs.items()]
    for effect in effects:
        lines += [
            "",
            *_table(config.regime, effect),
            "",
            sentence(effect.metric, effect.difference),
        ]
    notes = [note for e in effects for one in (e.dequantised, e.native) for note in one.notes]
    return "\n".join([*lines, *(f"note: {note}" for note in dict.fromkeys(notes))])


def _table(regime: str, effect: WeightsEffect) -> list[str]:
    rows = []
    for weights, found in (("dequantise", effect.dequantised), ("native", effect.native)):
        macro = found.macro
        accuracies = f"{macro.acc_a:.4f}", f"{macro.acc_b:.4f}"
        rows.append([TITLES[weights], *accuracies, *_cells(macro.estimate)])
    rows.append(["difference of the damage", "", "", *_cells(effect.difference)])
    tasks = ", ".join(row.task for row in effect.native.tasks)
    n = formatting.count(effect.native.macro.n)
    return [
        f"macro {effect.metric}, {n} items of {tasks}; damage ({regime} - causal) and intervals in "
        "points",
        formatting.table(("", "causal", regime, "damage", "95 % CI", "verdict"), rows),
    ]


def _cells(estimate: stats.Estimate) -> list[str]:
    verdict = phrase(judge(estimate))
    return [formatting.points(estimate.value, signed=True), _interval(estimate), verdict]


def _interval(estimate: stats.Estimate) -> str:
    return " to ".join(formatting.points(end, signed=True) for end in (estimate.low, estimate.high))


def sentence(metric: str, difference: stats.Estimate) -> str:
    """The answer in words; it takes a side only where the interval excludes 0."""
    size = formatting.points(abs(difference.value))
    interval = f"95 % CI {_interval(difference)}"
    if difference.excludes_zero:
        more = "more" if difference.value < 0 else "less"
        return f"Run in 8 bits, the model loses {size} points {more} {metric} to the regime ({interval})."
    verdict = phrase(judge(difference))
    value = formatting.points(difference.value, signed=True)
    return f"Running in 8 bits changes the damage to {metric} by {value} points ({interval}): {verdict}."


# What ``weights`` is told, and the four evaluations that follow from it.

CAUSAL = "causal"

# Native first: what only loading can tell of it is refused before there is any run.
WEIGHTS = ("native", "dequantise")

TITLES = {"native": "8-bit weights as they are", "dequantise": "dequantised weights"}

_eval = partial(same_as, EvalConfig)


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """One model with 8-bit weights, run both ways, each causal and under a regime."""

    model: str = _eval("model")
    revision: str | None = _eval("revision")
    regime: str = setting(
        "bidirectional",
        help="the regime beside causal, e.g. bidirectional:sink=1",
        role="identity",
    )
    tasks: tuple[str, ...] = _eval("tasks")
    split: str = _eval("split")
    limit: int | None = _eval("limit")
    sample: str = _eval("sample")
    seed: int = _eval("seed", help="for --sample random")
    fold: str = _eval("fold")
    bos: str = _eval("bos")
    chat_template: bool = _eval("chat_template")
    num_fewshot: int = _eval("num_fewshot")
    data_source: str = _eval("data_source")
    dtype: str = _eval("dtype")
    device: str = _eval("device")
    attn: str = _eval("attn")
    batch_tokens: int | None = _eval("batch_tokens")
    compact: bool = _eval("compact")
    runs_dir: str | None = _eval("runs_dir")
    name: str | None = _eval("name", help="a name at the end of the four run folders")

    def __post_init__(self) -> None:
        check_config(self)
        regime = parse_regime(self.regime)
        if regime.is_causal:
            raise UserError(
                f"--regime {self.regime}: causal is evaluated anyway; give the regime beside it, "
                "or leave it out for bidirectional"
            )
        object.__setattr__(self, "regime", str(regime))
        plan(self)  # its evaluations' own checks


def key_of(weights: str, regime: str) -> str:
    return f"{weights}, {regime}"


def plan(config: WeightsConfig) -> list[Stage]:
    """The four evaluations in order; those that use one loaded model stand together."""
    shared = {
        spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name != "regime"
    }
    return [
        Stage(
            key_of(weights, regime),
            f"{TITLES[weights]}, {regime}",
            EvalConfig(**shared, weights=weights, regime=regime),
        )
        for weights in WEIGHTS
        for regime in (CAUSAL, config.regime)
    ]
