"""Starting a job from any page: the one question before anything is spent, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.data import assets
from bidir_core.jobs.estimate import Estimate
from bidir_ui.kit import fmt, html, widgets

Words = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A command line (what follows ``python -m bidir_core``) that is ready to start.

    ``key``: submitting twice with the same one starts one job. ``ahead``: jobs before it on its
    device. ``needs``: assets. ``notes``: sentences about its cost. ``place``: the page's own name,
    for its messages.
    """

    place: str
    words: Words
    title: str
    key: str
    ahead: int
    needs: Sequence[str] = ()
    notes: Sequence[str] = ()
    cost: Estimate | None = None


def question(
    place: str,
    words: Words,
    title: str,
    known: list[jobs.Job],
    *,
    needs: Sequence[str] = (),
    notes: Sequence[str] = (),
    cost: Estimate | None = None,
) -> Question:
    """``known``: the jobs there are."""
    device = jobs.queue_device(words)
    ahead = sum(job.is_active and job.device == device for job in known)
    key = jobs.idempotency_key(words, known)
    return Question(place, words, title, key, ahead, needs, notes, cost)


@st.dialog("Start this job?")
def confirm(asked: Question) -> None:
    """What, how long, and what is fetched first."""
    html.show(html.div("b", html.el("b", asked.title)))
    widgets.command(jobs.command_text(asked.words))
    for note in asked.notes:
        widgets.note(note)
    if asked.ahead:
        more = "s" if asked.ahead > 1 else ""
        widgets.note(f"It waits for {asked.ahead} other job{more} on this device.")
    missing = assets.missing(asked.needs)
    for asset in missing:
        widgets.banner("info", "Fetched first", asset.offer)
    fetched = f"Fetch {fmt.size(sum(asset.n_bytes for asset in missing))} and start"
    if st.button(
        fetched if missing else "Start",
        type="primary",
        key=f"{asked.place}-confirm",
        on_click=start,
        args=(asked,),
    ):
        st.rerun()


def start(asked: Question) -> None:
    """Submit once, however often it is asked."""
    cost = asked.cost.to_json() if asked.cost else None
    try:
        job = jobs.submit(asked.words, asked.key, title=asked.title, estimate=cost)
    except UserError as error:
        st.session_state[f"{asked.place}-error"] = str(error)
        return
    st.session_state[f"{asked.place}-started"] = job.id


def say_what_failed(place: str, title: str = "Not started") -> bool:
    """Whether the last click on this page failed; then the reason is drawn, once."""
    reason = st.session_state.pop(f"{place}-error", "")
    if reason:
        widgets.banner("error", title, reason)
    return bool(reason)


def cancel(place: str, job_id: str) -> None:
    try:
        jobs.cancel(job_id)
    except UserError as error:
        st.session_state[f"{place}-error"] = str(error)
