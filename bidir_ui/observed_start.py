"""The observed part's empty state: which command observes this prompt, and a button to queue it."""

from __future__ import annotations

import streamlit as st

from bidir_core import jobs
from bidir_core.attend_config import AttendConfig, attend_words
from bidir_core.config import EMBEDDED_MODEL
from bidir_core.errors import UserError
from bidir_core.run_layout import is_read_only
from bidir_ui import fmt, masks_view, url, widgets


def offer(page: object, item_id: str) -> None:
    """The command for this item, or for the prompt typed here, with both regimes."""
    model = _model(page)
    try:
        words = attend_words(_config(model, item_id))
    except UserError as error:
        widgets.banner("error", "This cannot be observed", str(error))
        return
    widgets.command(jobs.command_text(words))
    known = jobs.list_jobs()
    waiting = next((job for job in known if job.words == words and job.is_active), None)
    if waiting is not None:
        widgets.banner(
            "info", f"Being observed: {waiting.state}",
            "Its progress is on the Launch page; reload this page when it is done.",
        )  # fmt: skip
    elif is_read_only():
        widgets.note(
            "This is a read-only view: run the line in a terminal where runs may be written."
        )
    elif st.button("Observe now …", key="observe-start", icon=":material/visibility:"):
        ahead = sum(job.is_active and job.device == jobs.queue_device(words) for job in known)
        _confirm(words, jobs.idempotency_key(words, known), ahead)
    if st.session_state.get("observe-error"):
        widgets.banner("error", "Not started", st.session_state.pop("observe-error"))


def _config(model: str, item_id: str) -> AttendConfig:
    pair = (url.get("against") or "causal", url.get("regime") or "bidirectional")
    if item_id:
        task, _, number = item_id.rpartition("/")
        if not task or not number.isdecimal():
            raise UserError(f"'{item_id[:80]}' is not an item id; ids look like piqa/12")
        return AttendConfig(model=model, task=task, doc_id=int(number), regimes=pair)
    return AttendConfig(
        model=model, prompt=url.get("prompt") or masks_view.PREFIX,
        continuation=url.get("cont") or masks_view.CONTINUATION, regimes=pair,
    )  # fmt: skip


def _model(page: object) -> str:
    """The model of the chosen pair: what is looked at on the other pages."""
    pair = getattr(page, "pair", None)
    for run in (getattr(pair, "a", None), getattr(pair, "b", None)):
        if run is not None and run.model and not run.is_reference:
            return str(run.model)
    return EMBEDDED_MODEL


@st.dialog("Observe attention?")
def _confirm(words: tuple[str, ...], key: str, ahead: int) -> None:
    widgets.command(jobs.command_text(words))
    widgets.note(
        "One forward pass under each regime: for a model of a few hundred million parameters "
        "under a minute on a CPU, most of it loading and checking the model. A prompt of 256 "
        "tokens leaves about 40 MB for 30 layers of 9 heads."
    )
    if ahead:
        widgets.note(f"It waits for {fmt.count(ahead)} other job{'s' if ahead > 1 else ''}.")
    if st.button(
        "Start", type="primary", key="observe-confirm", on_click=_start, args=(words, key)
    ):
        st.rerun()


def _start(words: tuple[str, ...], key: str) -> None:
    """Submit once, however often it is asked."""
    try:
        jobs.submit(words, key, title="Observed attention")
    except UserError as error:
        st.session_state["observe-error"] = str(error)
