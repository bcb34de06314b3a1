"""``recommend``: the smallest A for which ``bidirectional:layers=A-`` stays close to causal.

Answered from prompts alone: no label is asked for, so that the answer can be stored as a prediction
before any labelled item is scored. Three candidates, each with a threshold that was fixed here
before any model's curve had been looked at, and a fourth:

- ``kl``, the one that is recommended: the smallest A whose mean KL(causal || regime) of the
  next-token distribution behind the prompt is below 0.02 nats. By Pinsker's inequality the total
  variation is at most sqrt(KL / 2): at 0.02 nats no event's probability moves by more than 10
  points on average. It is a convention, not a fit to accuracies.
- ``outlier``: the first layer whose causal input holds a first token whose norm is more than 10
  times the median of the others' (a massive activation), taken as the median over prompts.
- ``attention``: the first layer whose causal attention puts more than 0.3 on the first token, the
  mean over heads, over the prompt's other tokens and over prompts.
- ``share``: the smallest A whose mean KL is below a tenth of that of A = 0 (none where that is
  below the threshold of ``kl``). Added on 2026-11-29 after one curve had been seen, SmolLM2-135M's
  on 20 prompts, which falls steeply at first and then slowly: a prediction for other models only.

Under A = L - 1 (L layers) predictions are causal's exactly: what the last layer computes at a prompt
token reaches no other token. So there is always an answer, and A = L - 1 says "nowhere".

    runs/lab/<stamp>_<name>/prompts.jsonl   a line a prompt: where it is from, KL and agreement by A
                            metrics.json    the recommendation, the curves, the thresholds
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.progress import Progress, phase
from bidir_core.common.settings import to_json
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item, hash_doc
from bidir_core.data.tasks import load_items
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain import lab_run
from bidir_core.explain.attend import mean_interval
from bidir_core.explain.configs import PROMPTS_PER_TASK, RecommendConfig, recommendation
from bidir_core.explain.controls import same_prompts
from bidir_core.explain.recommend_measure import PromptMeasures, measure, n_passes
from bidir_core.explain.sweep_points import SINK, open_from
from bidir_core.models import loading
from bidir_core.models.loading import LoadedModel, Preflight
from bidir_core.regimes import BIDIRECTIONAL
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import check_new_run, runs_roots
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter

KIND = "recommend"  # of its runs
# Nats; a ratio of norms; a share of attention; a share of the KL.
THRESHOLDS = {"kl": 0.02, "outlier": 10.0, "attention": 0.3, "share": 0.1}


@dataclass(frozen=True)
class Prompt:
    """``source``: ``piqa/3`` for an item's context, the line's number in a file."""

    source: str
    text: str


def recommend(config: RecommendConfig, *, loaded: LoadedModel | None = None) -> Path:
    """Measure, write the recommendation down, and return the run folder.

    ``loaded`` reuses a model in memory. Raises UserError on bad input, before anything is written.
    """
    check_new_run(config.runs_dir, config.name)
    prompts = read_prompts(config)
    plan = loaded or loading.preflight(**loading.asked_by(config, regime=SINK))
    ids, bos_added = _encode(config, plan, prompts)
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]
    writer = lab_run.begin(
        config,
        KIND,
        loaded,
        [_as_item(i, prompt) for i, prompt in enumerate(prompts)],
        name=config.name or KIND,
        settings={"regime": str(BIDIRECTIONAL)},  # whose layers are in question
        bos_added=bos_added,
        thresholds=THRESHOLDS,
    )
    _write(writer, config, loaded, prompts, ids)
    return writer.path


def predict(config: EvalConfig, loaded: LoadedModel) -> Run:
    """What unlabelled prompts predict for a model: the newest stored answer, else a new one.

    The answer is of the same model and the same way of making prompts; a new one asks the contexts
    of the explore half of ``config``'s tasks, twenty of each at most.
    """
    roots = [Path(config.runs_dir)] if config.runs_dir else runs_roots()
    for run in list_runs(roots):
        if (
            run.config.get("kind") == KIND
            and run.state == "done"
            and run.config.get("model_fingerprint") == loaded.fingerprint
            and same_prompts(to_json(config), run.settings)
        ):
            return run
    phase("Predicting from unlabelled prompts")
    names = {spec.name for spec in fields(RecommendConfig)} & {s.name for s in fields(EvalConfig)}
    settings = {name: getattr(config, name) for name in names - {"limit", "name"}}
    settings["limit"] = min(config.limit or PROMPTS_PER_TASK, PROMPTS_PER_TASK)
    settings["name"] = f"{config.name}-{KIND}"[-80:] if config.name else None
    return Run(recommend(RecommendConfig(**settings), loaded=loaded))


def predicted_regime(prediction: Mapping[str, Any]) -> str:
    """The regime that a recommendation's ``metrics.json`` predicts by the share of the KL that is
    left; where that is not stated, by the KL itself.

    The threshold in nats asks for nearly causal models, which leaves little to look ahead with.
    """
    predictions = prediction["predictions"]
    first = predictions["kl"] if predictions["share"] is None else predictions["share"]
    return str(open_from(min(first, prediction["n_layers"] - 1)))


def read_prompts(config: RecommendConfig) -> list[Prompt]:
    """The prompts of the file, or the contexts of the first items of each task's explore half.

    Of an item with a context per choice the first is taken; its label is never asked for.
    """
    if config.prompts is not None:
        prompts = list(_file_prompts(Path(config.prompts)))[: config.limit]
        if not prompts:
            raise UserError(f"{config.prompts} has no prompts; write one a line")
        return prompts
    n = config.limit or PROMPTS_PER_TASK
    prompts = []
    for task in config.tasks:
        # The limit comes before the fold, which is a coin toss: of four times as many half are kept.
        items = load_items(
            [task], limit=4 * n, fold="explore", split=config.split, data_source=config.data_source
        )
        prompts += [Prompt(item.item_id, item.contexts[0]) for item in items[:n]]
    if not prompts:
        raise UserError(
            f"no item of {', '.join(config.tasks)} is in the explore half, so there is no prompt to "
            "ask; give more items, or --prompts FILE"
        )
    return prompts


def _file_prompts(path: Path) -> Iterator[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(
            f"--prompts {path}: {why}; give a text file with one prompt a line"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = line
        if path.suffix == ".jsonl":
            try:
                text = json.loads(line)["prompt"]
                blank = not text.strip()
            except (ValueError, TypeError, KeyError, AttributeError):
                blank = True
            if blank:
                raise UserError(
                    f'{path}, line {number}: write a JSON object with a text "prompt" on each line'
                )
        yield Prompt(f"line {number}", text)


def _as_item(index: int, prompt: Prompt) -> Item:
    """The prompt alone as an item: what stands behind it is not used."""
    return Item(KIND, index, hash_doc({"prompt": prompt.text}), 0, (prompt.text,), (" .",))


def _encode(
    config: RecommendConfig, plan: LoadedModel | Preflight, prompts: Sequence[Prompt]
) -> tuple[list[np.ndarray], bool]:
    """Each prompt's tokens, int64 ``[n_tokens]``, as an evaluation would read it as a context."""
    encoder = Encoder.of(plan, bos=config.bos, chat_template=config.chat_template)
    encoded = encoder.encode([_as_item(i, prompt) for i, prompt in enumerate(prompts)])
    for prompt, item in zip(prompts, encoded, strict=True):
        n_tokens = len(item.prefixes[0])
        if n_tokens < 2:
            raise UserError(
                f"prompt {prompt.source} ({prompt.text[:40]!r}) is {n_tokens} token long: it has no "
                "later token to look ahead at; leave it out"
            )
        if n_tokens > plan.max_length:
            raise UserError(
                f"prompt {prompt.source} has {n_tokens} tokens and the model's window holds "
                f"{plan.max_length}; shorten it (nothing is truncated)"
            )
    return [item.prefixes[0].ids for item in encoded], encoder.bos_added(encoded)


def _write(
    writer: RunWriter,
    config: RecommendConfig,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    ids: Sequence[np.ndarray],
) -> None:
    with lab_run.at_work(writer) as log:
        log.info("recommend for %s on %d prompts -> %s", config.model, len(ids), writer.id)
        probed = (BIDIRECTIONAL, open_from(1), SINK)
        lab_run.probe(writer, loaded, probed, "so nothing can be recommended")
        started = time.monotonic()
        total = len(ids) * n_passes(loaded.n_layers)
        progress = Progress(total, unit="pass", title="recommend", report=writer.heartbeat)
        measured = measure(loaded, ids, batch_tokens=config.batch_tokens, advance=progress.advance)
        by_prompt: dict[int, PromptMeasures] = {}
        with open(writer.path / "prompts.jsonl", "w", encoding="utf-8") as lines:
            for index, measures in measured:
                if not np.isfinite([*measures.kl, measures.sink_kl]).all():
                    raise UserError(
                        f"prompt {prompts[index].source}: the model's predictions are not numbers "
                        f"in {loaded.dtype}; use another --dtype"
                    )
                by_prompt[index] = measures
                print(json.dumps(_line(prompts[index], measures)), file=lines, flush=True)
        progress.close()
        result = summarise([by_prompt[i] for i in range(len(ids))])
        for line in terminal_lines(result):
            log.info("%s", line)
        counts = {"n_prompts": len(ids), "n_prompt_tokens": sum(map(len, ids))}
        lab_run.end(writer, loaded, {**counts, **result}, started=started)


def _line(prompt: Prompt, measures: PromptMeasures) -> dict[str, Any]:
    return {
        "source": prompt.source,
        "n_tokens": measures.n_tokens,
        "kl": _rounded(measures.kl),
        "agrees": _rounded(measures.agrees),
        "sink_kl": _rounded(measures.sink_kl),
        "sink_agrees": measures.sink_agrees,
    }


def summarise(measures: Sequence[PromptMeasures]) -> dict[str, Any]:
    """The recommendation and the other two predictions, the curves and the thresholds.

    Curves are lists: ``kl`` and ``top1_agreement`` by A = 0 .. L, the others by layer.
    """
    kl = np.stack([prompt.kl for prompt in measures])
    curve = mean_interval(kl)
    means = kl.mean(0)
    n_layers = len(means) - 1
    agreement = np.mean([prompt.agrees for prompt in measures], axis=0)
    norm = np.median([prompt.first_norm for prompt in measures], axis=0)
    to_first = np.mean([prompt.to_first for prompt in measures], axis=0)
    best = _first_below(means, THRESHOLDS["kl"])
    sink_kl = np.array([prompt.sink_kl for prompt in measures])
    sink = mean_interval(sink_kl[:, None])
    matters = means[0] >= THRESHOLDS["kl"]
    result = {
        "n_layers": n_layers,
        "recommended": {
            "first_layer": best,
            "regime": str(open_from(best)),
            "measure": "kl",
            "mean_kl": _rounded(means[best]),
            "top1_agreement": _rounded(agreement[best]),
        },
        "predictions": {
            "kl": best,
            "outlier": _first_above(norm, THRESHOLDS["outlier"]),
            "attention": _first_above(to_first, THRESHOLDS["attention"]),
            "share": _first_below(means, THRESHOLDS["share"] * means[0]) if matters else None,
        },
        "thresholds": THRESHOLDS,
        "curves": {
            "kl": _rounded(means),
            "kl_low": curve["low"] and _rounded(curve["low"]),
            "kl_high": curve["high"] and _rounded(curve["high"]),
            "top1_agreement": _rounded(agreement),
            "first_token_norm_over_median": _rounded(norm),
            "attention_to_first_token": _rounded(to_first),
        },
        "sink": {
            "regime": "bidirectional:sink=1",
            "mean_kl": _rounded(sink_kl.mean()),
            "low": sink["low"] and _rounded(sink["low"][0]),
            "high": sink["high"] and _rounded(sink["high"][0]),
            "top1_agreement": _rounded(np.mean([prompt.sink_agrees for prompt in measures])),
            # Of a difference that is next to nothing a share would mean nothing.
            "share_of_kl_removed": _rounded(1 - sink_kl.mean() / means[0]) if matters else None,
        },
    }
    return {**result, "sentence": recommendation(result)}


def _first_below(means: np.ndarray, limit: float) -> int:
    """The smallest A whose KL is below ``limit``, above 0; A = L is causal, so there is one."""
    return next(a for a, mean in enumerate(means) if mean < limit)


def _first_above(values: np.ndarray, threshold: float) -> int | None:
    return next((layer for layer, value in enumerate(values) if value > threshold), None)


def terminal_lines(result: dict[str, Any]) -> list[str]:
    """The curves as a table, the other predictions, and the sentence."""
    curves = result["curves"]
    lines = [f"{'A':>4}{'mean KL':>12}{'top-1':>8}{'norm':>10}{'attention':>11}"]
    for first, kl in enumerate(curves["kl"]):
        row = f"{first:>4}{kl:>12.5f}{curves['top1_agreement'][first]:>8.3f}"
        if first < result["n_layers"]:
            norm = curves["first_token_norm_over_median"][first]
            row += f"{norm:>10.1f}{curves['attention_to_first_token'][first]:>11.3f}"
        lines.append(row)
    lines += [
        "KL in nats and top-1 agreement of layers=A- with causal; in layer A's input the first",
        "token's norm over the others' median; attention of layer A on the first token (causal)",
    ]
    sink = result["sink"]
    removed = sink["share_of_kl_removed"]
    share = "" if removed is None else f" ({removed:.0%} of plain bidirectional's removed)"
    lines.append(f"{sink['regime']}: mean KL {sink['mean_kl']:.5f}{share}")
    for name in ("outlier", "attention", "share"):
        value = result["predictions"][name]
        lines.append(f"by {name}: {'no layer' if value is None else f'A = {value}'}")
    return [*lines, result["sentence"]]


def _rounded(values: Any) -> Any:
    """Six significant digits, as plain numbers."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return float(f"{float(values):.6g}")
