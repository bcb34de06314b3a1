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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bidir_core.common.errors import UserError
from bidir_core.common.formatting import table
from bidir_core.common.progress import Progress, phase
from bidir_core.common.settings import to_json
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item, hash_doc
from bidir_core.data.tasks import load_items
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.scoring import gather_before_head
from bidir_core.explain import lab_run
from bidir_core.explain.configs import PROMPTS_PER_TASK, RecommendConfig, recommendation
from bidir_core.explain.controls import same_prompts
from bidir_core.explain.observe import watching
from bidir_core.explain.sweep_points import SINK, open_from
from bidir_core.explain.variants import replaced_forwards
from bidir_core.models import loading
from bidir_core.models.attention import rope_switch, without_plans
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel, Preflight
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import check_new_run, runs_roots
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter

KIND = "recommend"  # of its runs
# Nats; a ratio of norms; a share of attention; a share of the KL.
THRESHOLDS = {"kl": 0.02, "outlier": 10.0, "attention": 0.3, "share": 0.1}


class Prompt(NamedTuple):
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
    ids, items, bos_added = _encode(config, plan, prompts)
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]
    writer = lab_run.begin(
        config,
        KIND,
        loaded,
        items,
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


def _encode(
    config: RecommendConfig, plan: LoadedModel | Preflight, prompts: Sequence[Prompt]
) -> tuple[list[np.ndarray], list[Item], bool]:
    """Each prompt's tokens, int64 ``[n_tokens]``, as an evaluation would read it as a context; the
    prompts as items, of which nothing else is used; whether a BOS stands in front."""
    items = [
        Item(KIND, i, hash_doc({"prompt": text}), 0, (text,), (" .",))
        for i, (_, text) in enumerate(prompts)
    ]
    encoder = Encoder.of(plan, bos=config.bos, chat_template=config.chat_template)
    encoded = encoder.encode(items)
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
    return [item.prefixes[0].ids for item in encoded], items, encoder.bos_added(encoded)


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
        # Of each prompt: causal, each first layer, the sink, and one pass that shows attention.
        total = len(ids) * (loaded.n_layers + 3)
        progress = Progress(total, unit="pass", title="recommend", report=writer.heartbeat)
        measured = measure(loaded, ids, batch_tokens=config.batch_tokens, advance=progress.advance)
        progress.close()
        with open(writer.path / "prompts.jsonl", "w", encoding="utf-8") as lines:
            for (source, _), measures in zip(prompts, measured, strict=True):
                if not np.isfinite([*measures.kl, measures.sink_kl]).all():
                    raise UserError(
                        f"prompt {source}: the model's predictions are not numbers in "
                        f"{loaded.dtype}; use another --dtype"
                    )
                curves = {
                    name: _rounded(getattr(measures, name)) for name in ("kl", "agrees", "sink_kl")
                }
                record = {"source": source, "n_tokens": measures.n_tokens, **curves}
                print(json.dumps(record), file=lines)
        result = summarise(measured)
        for line in terminal_lines(result):
            log.info("%s", line)
        counts = {"n_prompts": len(ids), "n_prompt_tokens": sum(map(len, ids))}
        lab_run.end(writer, loaded, {**counts, **result}, started=started)


def summarise(measures: Sequence[PromptMeasures]) -> dict[str, Any]:
    """The recommendation and the other two predictions, the curves and the thresholds.

    Curves are lists: ``kl`` and ``top1_agreement`` by A = 0 .. L, the others by layer.
    """
    kl = np.stack([prompt.kl for prompt in measures])
    means = kl.mean(0)
    n_layers = len(means) - 1
    agreement = np.mean([prompt.agrees for prompt in measures], axis=0)
    norm = np.median([prompt.first_norm for prompt in measures], axis=0)
    to_first = np.mean([prompt.to_first for prompt in measures], axis=0)
    best = _first_below(means, THRESHOLDS["kl"])
    sink_kl = float(np.mean([prompt.sink_kl for prompt in measures]))
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
            "top1_agreement": _rounded(agreement),
            "first_token_norm_over_median": _rounded(norm),
            "attention_to_first_token": _rounded(to_first),
        },
        "sink": {
            "regime": "bidirectional:sink=1",
            "mean_kl": _rounded(sink_kl),
            # Of a difference that is next to nothing a share would mean nothing.
            "share_of_kl_removed": _rounded(1 - sink_kl / means[0]) if matters else None,
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
    curves, n_layers = result["curves"], result["n_layers"]
    norms, attention = curves["first_token_norm_over_median"], curves["attention_to_first_token"]
    rows = [
        [str(first), f"{kl:.5f}", f"{curves['top1_agreement'][first]:.3f}"]
        + ([f"{norms[first]:.1f}", f"{attention[first]:.3f}"] if first < n_layers else ["", ""])
        for first, kl in enumerate(curves["kl"])
    ]
    sink = result["sink"]
    removed = sink["share_of_kl_removed"]
    share = "" if removed is None else f" ({removed:.0%} of plain bidirectional's removed)"
    others = {name: result["predictions"][name] for name in ("outlier", "attention", "share")}
    return [
        *table(("A", "mean KL", "top-1", "norm", "attention"), rows).splitlines(),
        "KL in nats and top-1 agreement of layers=A- with causal; in layer A's input the first",
        "token's norm over the others' median; attention of layer A on the first token (causal)",
        f"{sink['regime']}: mean KL {sink['mean_kl']:.5f}{share}",
        *(f"by {n}: {'no layer' if a is None else f'A = {a}'}" for n, a in others.items()),
        result["sentence"],
    ]


def _rounded(values: Any) -> Any:
    """Six significant digits, as plain numbers."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return float(f"{float(values):.6g}")


# How far predictions move. Below layer A ``layers=A-`` computes what causal computed, so those layers
# hand out what they gave then: half of the work, and the same numbers.

# Smaller than an evaluation's: on a GPU every layer's output is kept for a batch.
BATCH_TOKENS = {"cpu": 256, "cuda": 8192, "mps": 4096}


@dataclass(frozen=True)
class PromptMeasures:
    """One prompt, for a model of L layers.

    ``kl`` and ``agrees`` ``[L + 1]``: KL(causal || bidirectional from layer A on) in nats and top-1
    agreement, by A; at A = L it is causal. ``first_norm`` ``[L]``: the norm of the first token
    over the median of the others', in each layer's input. ``to_first`` ``[L]``: the share of
    attention on the first token. The last two are causal's.
    """

    n_tokens: int
    kl: np.ndarray
    agrees: np.ndarray
    sink_kl: float
    first_norm: np.ndarray
    to_first: np.ndarray


def measure(
    loaded: LoadedModel,
    prompts: Sequence[np.ndarray],
    *,
    batch_tokens: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> list[PromptMeasures]:
    """Each prompt's measures.

    ``prompts``: token ids, int64 ``[n_tokens]``. ``advance`` is told of every prompt's every pass.
    Raises UserError when memory runs out.
    """
    budget = batch_tokens or BATCH_TOKENS.get(loaded.device.type, 256)
    lengths = [len(ids) for ids in prompts]
    by_prompt: dict[int, PromptMeasures] = {}
    for batch in _batches(lengths, budget, rope_switch(loaded.model.config)):
        try:
            with torch.inference_mode(), without_plans(loaded.device):
                measures = _measure_batch(loaded, [prompts[i] for i in batch], advance)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {len(batch)} prompts of up to {lengths[batch[0]]} tokens; "
                "give a smaller --batch-tokens, or shorter prompts"
            ) from error
        by_prompt |= zip(batch, measures, strict=True)
    return [by_prompt[i] for i in range(len(prompts))]


def _batches(lengths: Sequence[int], budget: int, switch: int | None) -> Iterator[list[int]]:
    """Prompts of like length, the longest first, as many as fit when padded to the longest.

    Those longer than ``switch`` are apart, since they change how the whole batch is read.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    n_long = 0 if switch is None else sum(length > switch for length in lengths)
    for group in (order[:n_long], order[n_long:]):
        while group:
            n = max(1, budget // lengths[group[0]])
            yield group[:n]
            group = group[n:]


def _measure_batch(
    loaded: LoadedModel, prompts: Sequence[np.ndarray], advance: Callable[[int], None]
) -> list[PromptMeasures]:
    """The measures of one batch, in its order."""
    n_layers, n, layers = loaded.n_layers, len(prompts), loaded.handle.layers()
    # Gemma 3n's later layers read keys of earlier ones, which must then run.
    shares = not getattr(loaded.model.config.get_text_config(), "num_kv_shared_layers", 0)
    rows = [torch.from_numpy(ids) for ids in prompts]
    n_prompt = torch.tensor([len(ids) for ids in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(loaded.device)
    layout = Layout.pad([(len(row), len(row)) for row in rows]).to(loaded.device)
    with _recording(layers, n_prompt) as (outputs, ratios):
        causal = _logits(loaded, ids, layout, CAUSAL).log_softmax(-1)
    advance(n)
    kl, agrees = np.zeros((n, n_layers + 1)), np.ones((n, n_layers + 1))  # at L it is causal
    for first in range(n_layers):
        below = zip(layers[: first if shares else 0], outputs)
        given = {layer: lambda *_, out=out, **__: out for layer, out in below}
        with replaced_forwards(given):
            logits = _logits(loaded, ids, layout, open_from(first))
        kl[:, first], agrees[:, first] = _distance(causal, logits)
        advance(n)
    sink_kl, _ = _distance(causal, _logits(loaded, ids, layout, SINK))
    advance(n)
    attention = _attention_to_first(loaded, ids, layout, n_prompt)
    advance(n)
    ratio = np.stack(ratios, axis=1)
    return [
        PromptMeasures(
            n_tokens=int(n_prompt[i]),
            kl=kl[i],
            agrees=agrees[i],
            sink_kl=float(sink_kl[i]),
            first_norm=ratio[i],
            to_first=attention[i],
        )
        for i in range(n)
    ]


def _logits(loaded: LoadedModel, ids: torch.Tensor, layout: Layout, regime: Regime) -> torch.Tensor:
    """float32 ``[prompt, vocabulary]`` behind each prompt's last token."""
    first_columns = torch.arange(len(ids), device=ids.device) * ids.shape[1]
    rows = first_columns + layout.n_prefix[:, 0] - 1
    with loaded.handle.use(regime, layout), gather_before_head(loaded.model, rows):
        logits = loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False).logits
    return logits.float().view(len(ids), -1)


@contextmanager
def _recording(
    layers: Sequence[nn.Module], n_prompt: torch.Tensor
) -> Iterator[tuple[list[Any], list[np.ndarray]]]:
    """Keep each layer's output, and of its input the first token's norm over the median."""
    outputs: list[Any] = []
    ratios: list[np.ndarray] = []

    def keep(_: Any, arguments: Any, named: Any, output: Any) -> None:
        outputs.append(output)
        entering = arguments[0] if arguments else named["hidden_states"]
        ratios.append(_first_over_median(entering, n_prompt))

    with ExitStack() as stack:
        for layer in layers:
            hook = layer.register_forward_hook(keep, with_kwargs=True)
            stack.callback(hook.remove)
        yield outputs, ratios


def _attention_to_first(
    loaded: LoadedModel, ids: torch.Tensor, layout: Layout, n_prompt: torch.Tensor
) -> np.ndarray:
    """Causal attention on the first token: ``[prompt, layer]``, the mean over heads and over
    the prompt's other tokens."""
    by_layer: dict[int, np.ndarray] = {}

    def on_layer(module: Any, weights: torch.Tensor, _: Any) -> None:
        to_first = weights[..., 0].float().mean(1).cpu()  # [prompt, query]
        by_layer[module.layer_idx] = np.array(
            [float(row[1:n].mean()) for row, n in zip(to_first, n_prompt.tolist(), strict=True)]
        )

    handle = loaded.handle
    with handle.use(CAUSAL, layout), watching(handle, on_layer):
        handle.decoder(input_ids=ids, position_ids=layout.position, use_cache=False)
    return np.stack([by_layer[layer] for layer in sorted(by_layer)], axis=1)


def _distance(causal: torch.Tensor, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(causal || other) in nats and top-1 agreement, each ``[prompt]``, from causal's
    log-probabilities and the other's logits, both ``[prompt, vocabulary]``."""
    other = logits.log_softmax(-1)
    kl = (causal.exp() * (causal - other)).sum(-1).clamp(min=0)  # rounding may fall below 0
    agrees = (causal.argmax(-1) == other.argmax(-1)).float()
    return kl.cpu().double().numpy(), agrees.cpu().double().numpy()


def _first_over_median(hidden: torch.Tensor, n_prompt: torch.Tensor) -> np.ndarray:
    """The first token's norm over the median of the prompt's others': ``[prompt]``."""
    norms = hidden.float().norm(dim=-1).cpu()
    pairs = zip(norms, n_prompt.tolist(), strict=True)
    return np.array([float(row[0] / row[1:n].median().clamp(min=1e-30)) for row, n in pairs])
