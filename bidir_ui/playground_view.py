"""The Playground: a model loaded on demand, its next tokens and texts under two regimes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import psutil
import streamlit as st

from bidir_core.common.errors import UserError
from bidir_core.data import assets, item_texts
from bidir_core.jobs import cost_model, playground
from bidir_core.jobs.playground import Answer, ModelWorker
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.kit.html import Html, div, el, span
from bidir_ui.launch import fields
from bidir_ui.masks import masks_view
from bidir_ui.reading.data import RunInfo

POLL_SECONDS = 0.8
PROMPT = masks_view.PREFIX
SHOWN = {
    "none": ("empty", "No model loaded"),
    "idle": ("info", "The model was let go"),
    "died": ("error", "The model's process is gone"),
    "failed": ("error", "The model could not be loaded"),
}


def model_bar(runs: tuple[RunInfo, ...]) -> ModelWorker:
    """Which model, its state, and the buttons that load it and let it go."""
    worker = playground.shared()
    left, right, act = st.columns([4, 4, 2], vertical_alignment="bottom")
    with left:
        model = fields.from_runs("model", "Model", "model", "embedded, hub id or folder", runs)
    with right:
        checkpoint = fields.from_runs(
            "checkpoint",
            "Fine-tuned checkpoint (optional)",
            "checkpoint",
            "left out: the base",
            runs,
        )
    here = (worker.model, worker.checkpoint) == (model, checkpoint)
    loaded = here and worker.state in ("loading", "ready")
    with act:
        if loaded:
            st.button("Let it go", key="pg-stop", on_click=worker.stop, width="stretch")
        elif model:
            load_button("Load …", model, checkpoint, type="primary", width="stretch")
    widgets.say_what_failed("pg-error")
    state_of(worker, here)
    return worker


def load_button(label: str, model: str, checkpoint: str, **options: Any) -> None:
    """Asks once, then loads the model in the worker's process."""
    if st.button(label, key="pg-load", **options):
        _confirm(model, checkpoint)


@st.dialog("Load this model?")
def _confirm(model: str, checkpoint: str) -> None:
    """What it takes, before it is taken."""
    shape = cost_model.shape_of(model)
    tuned = f" with {fmt.clip(checkpoint, 160)}" if checkpoint else ""
    html.show(div("b", el("b", fmt.clip(model, 100)), tuned))
    free = psutil.virtual_memory().available
    need = shape.parameters * 4 + cost_model.PROGRAM_BYTES if shape else None
    size = f"about {fmt.size(need)}" if need else "an unknown amount"
    widgets.note(
        f"A process of its own holds it in memory, {size} on a CPU ({fmt.size(free)} "
        "are free). It ends after five minutes without a request, and with this app."
    )
    worker = playground.shared()
    if worker.state in ("loading", "ready"):
        widgets.note("It takes the place of ", el("b", fmt.clip(worker.model, 100)), ".")
    missing = assets.missing(assets.of_model(model))
    for asset in missing:
        widgets.banner("info", "Fetched first", asset.offer)
    label = "Fetch and load" if missing else "Load"
    if st.button(label, type="primary", key="pg-confirm", on_click=_load, args=(model, checkpoint)):
        st.rerun()


def _load(model: str, checkpoint: str) -> None:
    try:
        playground.shared().start(model, checkpoint)
    except UserError as error:
        st.session_state["pg-error"] = str(error)


def state_of(worker: ModelWorker, here: bool) -> None:
    """What the worker is at, in words."""
    state = worker.state
    if state == "loading":
        _watch_loading(worker)
    elif state == "ready":
        facts = worker.facts
        name = fmt.clip(worker.model, 80) + (" with its checkpoint" if worker.checkpoint else "")
        widgets.note(
            el("b", name),
            f" is loaded: {facts['n_layers']} layers, {facts['dtype']} on "
            f"{facts['device']}." + ("" if here else " It is not the one chosen above."),
        )
        if facts.get("trained_regime"):
            widgets.note("Trained under ", widgets.code_text(facts["trained_regime"]), ".")
    else:
        kind, title = SHOWN[state]
        why = {
            "none": "Choose one and load it. It is unloaded after five minutes unused.",
            "idle": "Nobody asked it anything for five minutes. Load it again to go on.",
        }.get(state, fmt.clip(worker.error, 400))
        widgets.banner(kind, title, why)
        tail = worker.log_tail() if state in ("died", "failed") else ""
        if tail.strip():
            with st.expander("What it printed", key="pg-log"):
                st.code(item_texts.visible(tail), language=None, wrap_lines=True)


def _watch_loading(worker: ModelWorker) -> None:
    @st.fragment(run_every=POLL_SECONDS)
    def body() -> None:
        if worker.state != "loading":
            st.rerun()
        seconds = fmt.duration(time.time() - worker.started)
        widgets.banner("info", "Loading", f"{fmt.clip(worker.model, 100)}, for {seconds} so far.")

    body()


def settings() -> dict[str, Any] | None:
    """The form: prompt, regimes and how tokens are drawn. None where something is no regime."""
    prompt = url.bound(
        st.text_area,
        "Prompt",
        name="prompt",
        max_chars=8000,
        height=110,
        read=lambda text: text or PROMPT,
        write=lambda v: "" if v == PROMPT else v,
    )
    left, right = st.columns(2)
    with left:
        first = masks_view.regime_box("Regime", "regime", "causal")
    with right:
        second = masks_view.regime_box("Compared with", "against", "bidirectional")
    cells = st.columns(5, vertical_alignment="bottom")
    hint = "0 takes the most likely token each time"
    with cells[0]:
        n_new = url.number("New tokens", name="n", default=32, least=1, most=512, step=1)
    with cells[1]:
        temperature = url.number(
            "Temperature", name="t", default=0.0, least=0.0, most=5.0, step=0.1, help=hint
        )
    with cells[2]:
        top_p = url.number("Top p", name="p", default=1.0, least=0.01, most=1.0, step=0.05)
    with cells[3]:
        seed = url.number("Seed", name="seed", default=0, least=0, most=2**31, step=1)
    with cells[4]:
        template = url.bound(
            st.toggle,
            "Chat template",
            name="chat",
            read=lambda text: text == "on",
            write=lambda value: "on" if value else "",
        )
    if first is None or second is None:
        return None
    sampling = {
        "max_new_tokens": n_new,
        "temperature": temperature,
        "top_p": top_p if temperature else 1.0,
        "seed": seed,
    }
    return {
        "prompt": prompt,
        "regimes": list(dict.fromkeys((str(first), str(second)))),
        "sampling": sampling,
        "chat_template": bool(template),
    }


def ask(worker: ModelWorker, request: dict[str, Any]) -> None:
    """Send the request; what is wrong with it is shown on the page."""
    try:
        st.session_state["pg-answer"] = worker.ask(**request)
    except UserError as error:
        st.session_state["pg-error"] = str(error)


def answer(worker: ModelWorker) -> None:
    """The newest answer of this session, drawn as it grows."""
    name = st.session_state.get("pg-answer", "")
    first = worker.answer(name)
    if first is None:
        return

    @st.fragment(run_every=POLL_SECONDS if first.is_open else None)
    def body() -> None:
        now = worker.answer(name)
        if now is None:
            return
        if was_open and not now.is_open:
            st.rerun()  # and stop asking
        if now.is_open:
            st.button("Stop", key="pg-cancel", on_click=worker.cancel, args=(name,))
        draw(now)

    was_open = first.is_open
    body()


def draw(given: Answer) -> None:
    """Both sides: the next token's distribution, then the text."""
    if given.state == "error":
        widgets.banner("error", "No answer", fmt.clip(given.error, 400))
        return
    if given.state == "waiting":
        widgets.note("Reading the prompt …")
        return
    widgets.note(
        f"Behind a prompt of {fmt.count(given.n_prompt)} tokens"
        + (", stopped" if given.state == "cancelled" else "")
        + ". Shares are the model's own, "
        "before temperature and top p."
    )
    for column, regime, side in zip(
        st.columns(len(given.regimes), gap="large"), given.regimes, given.sides, strict=True
    ):
        with column:
            html.show(el("h2", regime, cls="b-h3"))
            if not side["steps"]:
                waits = "Reading the prompt …" if side.get("probe") else "Probing the mask …"
                widgets.note(waits if given.is_open else "Nothing.")
                continue
            widgets.note(probed(side["probe"]))
            html.show(next_tokens(side["steps"][0]))
            html.show(continuation(side))


def probed(probe: Mapping[str, Any]) -> Html:
    """That the model was found to attend as the regime says; the checks in the tool tip."""
    checks = probe["checks"]
    return span("", f"Mask probe: {len(checks)} checks passed", title=", ".join(checks))


def next_tokens(step: Mapping[str, Any]) -> Html:
    """The ten most likely next tokens with their shares."""
    rows = []
    for text, logprob in step["top"]:
        share = math.exp(logprob)
        bar = span("b-bar b-blue", style=f"width:{max(1.0, 100 * share):.1f}%")
        rows.append(
            (
                widgets.code_text(shown(text)),
                div("b-cellbar", div("track", bar), span("b-num", fmt.percent(share))),
            )
        )
    return widgets.table(("Next token", "Share"), rows, name="next_tokens", left=(0,))


def shown(text: str) -> str:
    """A token so that its spaces and line breaks are seen."""
    return fmt.clip(text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"), 40)


def continuation(side: Mapping[str, Any]) -> Html:
    """The text so far, a token a piece; its share and the alternatives in the tool tip."""
    cells = []
    for step in side["steps"]:
        share = math.exp(step["logprob"])
        others = ", ".join(f"{shown(t)} {fmt.percent(math.exp(p))}" for t, p in step["top"][:5])
        cells.append(span("b-tok", step["text"][:4000], title=f"{fmt.percent(share)} · {others}"))
    ending = {True: "the text ends here", False: "cut at the number of tokens asked for"}
    edge = [span("b-edge", ending[side["ended"]])] if side["ended"] is not None else []
    return div("b b-prompt", *cells, *edge, dir="auto")
