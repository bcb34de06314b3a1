"""Why an item flips, on its page: what turns the answer back, as strips and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged
from bidir_core.data import assets, tasks
from bidir_core.data.items import name_of
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain.configs import RESULT, expected_tokens
from bidir_core.jobs import estimate
from bidir_core.jobs.cost_model import Work
from bidir_core.jobs.estimate import start_seconds
from bidir_core.report.share import (
    RESTORED,
    Strip,
    dial_strips,
    is_whole,
    layer_strips,
    recovered,
    restored,
)
from bidir_core.runs.dials import STRENGTHS
from bidir_core.runs.layout import is_read_only
from bidir_core.runs.read import read_object
from bidir_core.runs.run import Run
from bidir_core.runs.shapes import WHY
from bidir_ui import shell
from bidir_ui.kit import fmt, html, widgets
from bidir_ui.kit.html import Html, div, el, scrolling, span
from bidir_ui.launch import ask, jobs_view, review
from bidir_ui.overview import hero
from bidir_ui.reading.data import BY_CHANGE, RunInfo


def section(page: Any, item_id: str, record: Mapping[str, Any], metric: str) -> None:
    """The part of the Item page that explains the candidate's (else the baseline's) reading."""
    target = next((run for run in (page.pair.b, page.pair.a) if _explainable(run)), None)
    if target is None:
        return
    widgets.heading("Why this answer")
    metric = metric if record["pred_norm"] is not None else "acc"
    explained = _find(page.runs, target, record, metric)
    recorded = _recorded(target, item_id) if explained is None else None
    if recorded is not None:
        widgets.note(
            "How likely the right answer is, with the prompt looking ahead ever more strongly and "
            "parts of it left causal; ",
            el("b", "✓"),
            " where it is the likeliest. Computed before, for this item.",
        )
        strengths = [f"{strength:g}" for strength in STRENGTHS]
        html.show(_table("Look-ahead", strengths, dial_strips(recorded), look=_share))
    if explained is not None:
        draw(explained[1], explained[0].id)
    elif is_read_only():
        widgets.note("Nobody has explained this item yet, and this is a read-only view.")
    else:
        offer(page, target, record, metric)


def _recorded(target: RunInfo, item_id: str) -> Mapping[str, Any] | None:
    """The item's answers at every setting of the Overview's dials, of the untrained model."""
    if target.checkpoint:
        return None
    try:
        known = [item for item in hero.items() if is_whole(item)]
    except UserError:  # the Overview says what is wrong with the file
        return None
    wanted = (target.model, item_id)
    return next((x for x in known if (x.get("model"), x.get("item")) == wanted), None)


def _explainable(run: RunInfo | None) -> bool:
    return (
        run is not None
        and run.kind == "eval"
        and not run.is_reference
        and run.can_pair
        and run.regime.startswith("bidirectional")
    )


def _find(
    runs: Sequence[RunInfo], target: RunInfo, record: Mapping[str, Any], metric: str
) -> tuple[RunInfo, dict[str, Any]] | None:
    """The newest explanation of this very item under the target's model, weights and regime."""
    wanted = (target.model, target.checkpoint, target.regime)
    for info in runs:
        if info.kind != "why" or not info.is_done:
            continue
        if (info.model, info.checkpoint, info.regime) != wanted:
            continue
        settings = _settings(info)
        same = (name_of(str(settings.get("task"))), settings.get("doc_id"), settings.get("metric"))
        if same != (record["task"], record["doc_id"], metric):
            continue
        result = _read(info)
        if result is None or result.get("doc_hash") != record["doc_hash"]:
            continue
        # The same prompt, too: not with few-shot examples, say, or given once more.
        if result.get("n_prefix") in (record["n_prefix_tokens"] or [result.get("n_prefix")]):
            return info, result
    return None


@st.cache_data(max_entries=512, show_spinner=False, hash_funcs=BY_CHANGE)
def _settings(info: RunInfo) -> dict[str, Any]:
    return Run(info.path).settings


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=BY_CHANGE)
def _read(info: RunInfo) -> dict[str, Any] | None:
    try:
        return read_object(Path(info.path), RESULT, WHY)
    except (FileNotFoundError, Damaged):
        return None


def draw(result: Mapping[str, Any], run_id: str) -> None:
    """One stored result: sentences, the three strips, their numbers."""
    happened, *lines = result["sentences"]
    # A line that quotes tokens stays as it is.
    lines = [line if "“" in line else fmt.minus(line) for line in lines]
    html.show(div("b b-lead", happened, *(el("div", line) for line in lines)))
    unit = "nats a character" if result["metric"] == "acc_norm" else "nats"
    widgets.note(
        "The item is scored again with parts of the attention causal. ",
        el("b", "✓"),
        " the causal answer is back. Green: it gains on the best other choice; red: it falls further "
        "behind. This is one item: on others, other parts may matter.",
    )
    html.show(html.join(el("h2", "Layers", cls="b-h3"), layer_strip(result)))
    html.show(html.join(el("h2", "Prompt tokens", cls="b-h3"), token_strip(result)))
    html.show(html.join(el("h2", "Strength of the look-ahead", cls="b-h3"), lambda_strip(result)))
    leads = [fmt.signed(result[name]["lead"]) for name in ("causal", "opened")]
    widgets.note(
        f"The causal answer's lead over the best other choice, in {unit}: {leads[0]} under causal, "
        f"{leads[1]} under {result['regime']}."
    )
    widgets.numbers(numbers(result), f"{run_id}.csv", key="why")


def _look(strip: Strip) -> dict[str, str]:
    """Green: the lead of the causal answer recovers; red: it falls further behind."""
    rgb = "0 158 115" if strip.strength >= 0 else "213 94 0"
    style = f"background:rgb({rgb} / {abs(strip.strength) * 0.75:.2f})"
    return {"style": style, "title": fmt.minus(strip.title)}


def _share(strip: Strip) -> dict[str, str]:
    """The bluer, the likelier."""
    return {
        "style": f"background:rgb(0 114 178 / {strip.strength * 0.75:.2f})",
        "title": strip.title,
    }


def _table(
    first: str,
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Strip]]],
    look: Callable[[Strip], dict[str, str]] = _look,
) -> Html:
    head = [el("th", first, scope="col"), *(el("th", text, scope="col") for text in heads)]
    lines = [
        el("tr", el("th", label, scope="row"), *(el("td", s.mark, **look(s)) for s in strips))
        for label, strips in rows
    ]
    body = el("table", el("thead", el("tr", *head)), el("tbody", *lines), cls="b b-strip")
    return scrolling(body)


def layer_strip(result: Mapping[str, Any]) -> Html:
    """A row for each kind of restoration, a cell a layer."""
    n = result["n_layers"]
    step = 1 if n <= 32 else 5  # more numbers than that stand on each other
    heads = [str(i) if i % step == 0 else "" for i in range(n)]
    return _table("Causal again", heads, layer_strips(result))


def token_strip(result: Mapping[str, Any]) -> Html:
    """The prompt, each token coloured by what making it alone causal again does."""
    cells = []
    for point in result["tokens"]:
        first, last = point["first"], point["last"]
        text = html.esc("".join(result["pieces"][first : last + 1])[:4000])
        label = f"token {first}" if first == last else f"tokens {first}-{last}"
        strip = restored(result, point, f"{label} causal again")
        shown = html.join(text, el("small", f" {strip.mark}")) if strip.mark else text
        if point["looks_ahead"]:
            cells.append(span("t", shown, **_look(strip)))
        else:
            cells.append(span("t b-soft", shown, title=f"{label}: does not look ahead anyway"))
    return div("b b-heat", *cells, dir="auto")


def _told_apart(tried: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points on both sides of the threshold, and of the others those well apart."""
    ends = (tried["low"], tried["high"])
    kept = [point for point in tried["points"] if point["lambda"] in ends]
    for point in tried["points"]:
        if all(
            max(point["lambda"], k["lambda"]) >= 1.9 * min(point["lambda"], k["lambda"])
            for k in kept
        ):
            kept.append(point)
    return sorted(kept, key=lambda point: point["lambda"])


def lambda_strip(result: Mapping[str, Any]) -> Html:
    """A cell for each lambda tried, the weakest look-ahead first."""
    tried = {f"{point['lambda']:.3g}": point for point in _told_apart(result["lambda"])}
    strips = [restored(result, point, f"lambda {text}") for text, point in tried.items()]
    return _table("lambda is", list(tried), [("look-ahead weakened", strips)])


def numbers(result: Mapping[str, Any]) -> pd.DataFrame:
    """Every point of the strips, as a table."""
    rows = []

    def add(kind: str, where: str, point: Mapping[str, Any]) -> None:
        share = recovered(result, point)
        rows.append((kind, where, point["choice"], point["lead"], round(100 * share, 1)))

    for key, label in RESTORED.items():
        for layer, point in enumerate(result["layers"][key]):
            add(f"layers: {label}", str(layer), point)
    for point in result["tokens"]:
        first, last = point["first"], point["last"]
        add("prompt token", str(first) if first == last else f"{first}-{last}", point)
    for point in result["lambda"]["points"]:
        add("lambda", f"{point['lambda']:g}", point)
    return pd.DataFrame(
        rows, columns=["put back", "where", "choice", "lead of the causal answer", "recovered %"]
    )


# Explaining an item on demand: the button, the one question, and the progress of the job.


def words(target: RunInfo, record: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """What follows ``python -m bidir_core``."""
    line = ["why", "--as-run", target.id, "--task", str(record["task"])]
    line += ["--doc-id", str(record["doc_id"])]
    return tuple(line + (["--metric", metric] if metric != "acc" else []))


def offer(page: Any, target: RunInfo, record: Mapping[str, Any], metric: str) -> None:
    """The job's progress if it is under way; otherwise what it would do, and the button."""
    line = words(target, record, metric)
    known = jobs.list_jobs()
    job = next((job for job in known if job.words == line), None)
    if job is not None and job.is_active:
        jobs_view.watch(job)
        return
    if not ask.say_what_failed("why") and job is not None and job.state in ("failed", "lost"):
        reason = fmt.clip(job.error or jobs_view.LOST, 300)
        widgets.banner("error", "It could not be explained", reason)
    missing = _weights_missing(target)
    if missing:
        widgets.note(missing)
        return
    widgets.note(
        "Which layers, which prompt tokens and how much look-ahead change the answer? The item is "
        "scored again with parts of the attention put back to causal, one at a time."
    )
    if st.button("Explain this item …", key="why-start", icon=":material/troubleshoot:"):
        n_tokens = expected_tokens(record["n_prefix_tokens"], record["n_continuation_tokens"])
        device, start = jobs.queue_device(line), start_seconds(known)
        measured = review.measured(page.runs)
        config, work = EvalConfig(model=target.model, tasks=()), Work(1, n_tokens, n_tokens)
        cost = estimate.estimate(config, device, measured, start=start, work=work)
        title = f"Why {record['task']}/{record['doc_id']} · {target.regime}"
        built_in = ["eval-data"] if str(record["task"]) in tasks.TASKS else []
        notes = (
            f"Time: {estimate.time_text(cost)}, on {cost.device}. It goes on when this page is "
            "closed, and is among the jobs on the Launch page.",
            "How this is known: " + "; ".join(cost.basis) + ".",
        )
        needs = [*assets.of_model(target.model), *built_in]
        ask.confirm("why", line, title, known, needs=needs, notes=notes, cost=cost)


def _weights_missing(target: RunInfo) -> str:
    """Why this machine cannot run the target's model; empty if it can, or may fetch it."""
    if not target.checkpoint:
        return ""
    folder = Path(target.checkpoint).expanduser()
    if not folder.is_absolute():
        folder = shell.ROOT / folder
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return ""
    if any((folder / "final").glob("*.safetensors")):
        return ""
    return (
        "This answer can be explained where its fine-tuned weights are; they are not here: "
        f"{fmt.clip(target.checkpoint, 160)}."
    )
