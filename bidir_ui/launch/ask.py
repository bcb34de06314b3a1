"""Starting a job from any page: a question before anything is spent, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.data import assets
from bidir_core.jobs.estimate import Estimate, duration
from bidir_ui.kit import fmt, html, widgets

LONG_SECONDS = 3600.0  # above it a start is asked for once more

Words = tuple[str, ...]  # what follows ``python -m bidir_core``


@st.dialog("Start this job?")
def confirm(
    place: str,
    words: Words,
    title: str,
    known: list[jobs.Job],
    *,
    needs: Sequence[str] = (),
    notes: Sequence[str] = (),
    cost: Estimate | None = None,
) -> None:
    """What, how long, and what is fetched first.

    ``place``: the page's own name, for its messages. ``known``: the jobs there are. ``needs``:
    assets. ``notes``: sentences about the cost.
    """
    html.show(html.div("b", html.el("b", title)))
    widgets.command(jobs.command_text(words))
    for note in notes:
        widgets.note(note)
    device = jobs.queue_device(words)
    ahead = sum(job.is_active and job.device == device for job in known)
    if ahead:
        more = "s" if ahead > 1 else ""
        widgets.note(f"It waits for {ahead} other job{more} on this device.")
    missing = assets.missing(needs)
    for asset in missing:
        widgets.banner("info", "Fetched first", asset.offer)
    sure = True
    if cost is not None and (cost.seconds or 0) > LONG_SECONDS:
        hours = duration(cost.seconds or 0)
        widgets.banner(
            "info",
            f"This takes hours: about {hours} on {device}",
            "Fewer items or steps answer sooner, with wider intervals. A job can be cancelled, and "
            "goes on later from where it was.",
        )
        sure = st.checkbox(f"Start it for about {hours} all the same", key=f"{place}-sure")
    fetched = f"Fetch {fmt.size(sum(asset.n_bytes for asset in missing))} and start"
    if st.button(
        fetched if missing else "Start",
        type="primary",
        key=f"{place}-confirm",
        disabled=not sure,
        on_click=start,
        args=(place, words, jobs.idempotency_key(words, known), title, cost),
    ):
        st.rerun()


def start(place: str, words: Words, key: str, title: str, cost: Estimate | None) -> None:
    """Submit once, however often it is asked: ``key`` says which click it is."""
    estimate = asdict(cost) if cost else None
    try:
        job = jobs.submit(words, key, title=title, estimate=estimate)
    except UserError as error:
        st.session_state[f"{place}-error"] = str(error)
        return
    st.session_state[f"{place}-started"] = job.id


def say_what_failed(place: str) -> bool:
    """Whether the last click on this page failed; then the reason is drawn, once."""
    return widgets.say_what_failed(f"{place}-error", "Not started")
