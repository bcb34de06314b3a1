"""Explaining an item on demand: the button, the one question, and the progress of the job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from bidir_core import assets, estimate, jobs, tasks
from bidir_core.errors import UserError
from bidir_core.estimate import Estimate
from bidir_core.job_progress import progress
from bidir_core.jobs import Job
from bidir_core.why_config import expected_tokens
from bidir_ui import fmt, jobs_view, launch_review, shell, widgets
from bidir_ui.data import RunInfo

POLL_SECONDS = 2


def words(target: RunInfo, record: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """What follows ``python -m bidir_core``."""
    line = ["why", "--as-run", target.id, "--task", str(record["task"])]
    line += ["--doc-id", str(record["doc_id"])]
    return tuple(line + (["--metric", metric] if metric != "acc" else []))


def offer(page: Any, target: RunInfo, record: Mapping[str, Any], metric: str) -> None:
    """The job's progress if it is under way; otherwise what it would do, and the button."""
    line = words(target, record, metric)
    known = jobs.list_jobs()
    mine = next((job for job in known if job.words == line), None)
    if mine is not None and mine.is_active:
        _watch(mine)
        return
    if failed := st.session_state.pop("why-error", ""):
        widgets.banner("error", "Not started", failed)
    elif mine is not None and mine.state in ("failed", "lost"):
        widgets.banner("error", "It could not be explained", fmt.clip(mine.error or jobs_view.LOST, 300))  # fmt: skip
    missing = _weights_missing(target)
    if missing:
        widgets.note(missing)
        return
    widgets.note(
        "Which layers, which prompt tokens and how much look-ahead change the answer? The item is "
        "scored again with parts of the attention put back to causal, one at a time."
    )
    if st.button("Explain this item …", key="why-start", icon=":material/troubleshoot:"):
        cost = estimate.of_tokens(
            target.model,
            jobs.queue_device(line),
            expected_tokens(record["n_prefix_tokens"], record["n_continuation_tokens"]),
            launch_review.measured(page.runs),
            start=estimate.start_seconds(known),
        )
        ahead = sum(job.is_active and job.device == jobs.queue_device(line) for job in known)
        title = f"Why {record['task']}/{record['doc_id']} · {target.regime}"
        _confirm(line, jobs.idempotency_key(line, known), title, cost, ahead, target.model)


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


@st.dialog("Explain this item?")
def _confirm(
    line: tuple[str, ...], key: str, title: str, cost: Estimate, ahead: int, model: str
) -> None:
    widgets.command(jobs.command_text(line))
    widgets.note(
        f"Takes {launch_review.time_text(cost)}, on {cost.device}. It goes on when this page is "
        "closed, and is among the jobs on the Launch page."
    )
    widgets.note("How this is known: " + "; ".join(cost.basis) + ".")
    if ahead:
        widgets.note(f"It waits for {ahead} other job{'s' if ahead > 1 else ''} on this device.")
    needed = assets.of_model(model)
    needed += ["eval-data"] if line[line.index("--task") + 1] in tasks.TASKS else []
    missing = assets.missing(needed)
    for one in missing:
        widgets.banner("info", "Fetched first", one.offer)
    total = sum(one.n_bytes for one in missing)
    if st.button(
        f"Fetch {launch_review.size(total)} and start" if missing else "Start",
        type="primary", key="why-confirm", on_click=_start, args=(line, key, title, cost),
    ):  # fmt: skip
        st.rerun()


def _start(line: tuple[str, ...], key: str, title: str, cost: Estimate) -> None:
    """Submit once, however often it is asked."""
    try:
        jobs.submit(line, key, title=title, estimate=cost.to_json())
    except UserError as error:
        st.session_state["why-error"] = str(error)


def _watch(job: Job) -> None:
    """Progress, read again every two seconds; the page is drawn anew when the job has ended."""

    @st.fragment(run_every=POLL_SECONDS)
    def body() -> None:
        try:
            now = jobs.find_job(job.id)
        except UserError:  # removed from the history meanwhile
            st.rerun()
        if not now.is_active:
            st.rerun()
        if now.state == "queued":
            widgets.note("Queued: it starts when the jobs before it are done.")
        else:
            jobs_view.bar(now, progress(now))
        st.button("Cancel", key=f"why-cancel-{job.id}", on_click=_cancel, args=(job.id,))

    body()


def _cancel(job_id: str) -> None:
    try:
        jobs.cancel(job_id)
    except UserError as error:
        st.session_state["why-error"] = str(error)
