"""The jobs below the Launch form: running, waiting and ended; read from files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.jobs import Job
from bidir_core.jobs.estimate import duration, peak_bytes
from bidir_core.jobs.progress import Progress, progress
from bidir_core.runs.run import Run
from bidir_ui import shell
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data, opens
from bidir_ui.reading.data import RunInfo

POLL_SECONDS = 2
SHOWN = 8
LOST = "Its process is gone without a word (killed, or the machine was restarted)."


def section(runs: tuple[RunInfo, ...]) -> None:
    """All jobs, and links to what ``runs`` hold of theirs. It reads the files again every two
    seconds, but only while something is going on; when a job ends, the whole page is drawn again so
    that its run appears everywhere."""
    drawn = _signature(jobs.list_jobs())
    going = any(state in ("queued", "running") for _, state, _ in drawn)

    @st.fragment(run_every=POLL_SECONDS if going else None)
    def body() -> None:
        known = jobs.list_jobs()
        if _signature(known) != drawn:
            st.rerun()
        with shell.guard():
            _draw(known, runs)

    body()


def _signature(known: list[Job]) -> tuple[tuple[str, str, int], ...]:
    return tuple((job.id, job.state, job.attempt) for job in known)


def _draw(known: list[Job], runs: tuple[RunInfo, ...]) -> None:
    widgets.say_what_failed("job-error")
    active = sorted(
        (j for j in known if j.is_active), key=lambda j: (j.state != "running", j.queued)
    )
    ended = [job for job in known if not job.is_active]
    widgets.heading("Jobs")
    if not known:
        widgets.banner(
            "empty",
            "No jobs yet",
            "What you start above appears here, and goes on when you close "
            "this page or stop the app. Runs started in a terminal are on the Runs page.",
        )
        return
    for device in jobs.stalled(known):
        widgets.banner(
            "info",
            f"The queue of {device} stands still",
            "Nothing works on it: the machine was restarted, or its worker was killed.",
        )
        _button("Go on with the queue", f"go-on-{device}", jobs.go_on, device)
    waiting: dict[str, int] = {}
    for job in active:
        waiting[job.device] = waiting.get(job.device, -1) + 1
        _active(job, waiting[job.device], runs)
    if not active:
        widgets.note("Nothing is running.")
    if ended:
        _history(ended, runs)


def _button(label: str, key: str, action: Callable[[str], object], name: str, **more: Any) -> None:
    """A button that does something to a job or a queue; what goes wrong is shown on the page."""

    def clicked() -> None:
        try:
            action(name)
        except UserError as error:
            st.session_state["job-error"] = str(error)

    st.button(label, key=key, on_click=clicked, **more)


def _active(job: Job, ahead: int, runs: tuple[RunInfo, ...]) -> None:
    with st.container(border=True, key=f"job-{job.id}", gap="small"):
        left, right = st.columns([5, 2], vertical_alignment="center")
        state = "◐ cancelling" if job.is_cancelling else fmt.STATE_MARKS[job.state]
        about = html.el("small", f"{_about(job)} on {job.device}", cls="b-soft")
        with left:
            title = html.el("b", job.title)
            html.show(html.div("b", title, " ", html.el("span", state, cls="b-state"), " ", about))
        with right, widgets.row(right=True):
            if job.words[0] == "lab":  # its points can be looked at as they finish
                _open(job, runs, "Open in Lab")
            cancel_button(job)
        if job.state != "queued":
            bar(job, progress(job))
        elif ahead:
            more = "s" if ahead > 1 else ""
            widgets.note(f"Waits for {ahead} other job{more} on {job.device}.")
        else:
            widgets.note("Is about to start.")
        with st.expander("Log and command", key=f"log-{job.id}", on_change="rerun") as fold:
            if fold.open:
                _details(job)


def watch(job: Job) -> None:
    """A job's progress on the page that waits for it, read again every two seconds; the page is
    drawn anew when the job has ended."""

    @st.fragment(run_every=POLL_SECONDS)
    def body() -> None:
        try:
            now = jobs.find_job(job.id)
        except UserError:  # removed from the history meanwhile
            st.rerun()
        if not now.is_active:
            st.rerun()
        widgets.say_what_failed("job-error")
        if now.state == "queued":
            widgets.note("Queued: it starts when the jobs before it are done.")
        else:
            bar(now, progress(now))
        cancel_button(now)

    body()


def cancel_button(job: Job) -> None:
    """Cancel; once that was asked, stop at once."""
    if job.is_cancelling:
        kept = "Without waiting for the checkpoint; what was recorded before is kept."
        now = partial(jobs.cancel, grace_seconds=0)
        _button("Stop now", f"stop-{job.id}", now, job.id, help=kept)
    else:
        _button("Cancel", f"cancel-{job.id}", jobs.cancel, job.id)


def bar(job: Job, now: Progress) -> None:
    """How far a running job is."""
    share = now.share
    text = now.stage or _silent(job)
    facts = [f"{fmt.duration(job.seconds)} so far"]
    if share is not None:
        text = f"{fmt.count(now.done)} of {fmt.count(now.total)} {now.unit}s"
        text = f"First {now.unit}s · {text}" if not now.done else text
        text = f"{now.stage} · {text}" if now.stage else text
        if now.rate:
            facts.insert(0, f"{fmt.number(now.rate, 1)} {now.unit}s a second")
        if now.eta_seconds is not None:
            facts.append(f"about {duration(now.eta_seconds)} left")
    if now.value is not None:
        facts.append(_metric(now))
    if job.is_cancelling:
        facts.append("writes down what it has, then stops")
    percent = 100 * (share or 0)
    track = html.div(
        "track",
        html.div("fill", style=f"width:{percent:.1f}%"),
        role="progressbar",
        aria_valuenow=f"{percent:.0f}",
        aria_valuemin=0,
        aria_valuemax=100,
        aria_label=f"Progress of {job.title}",
    )
    shown = fmt.percent(share, 0) if share is not None else ""
    head = html.div("head", html.span("", text), html.span("", shown))
    below = html.div("facts", *(html.el("span", fact) for fact in facts))
    html.show(html.div("b b-progress", head, track, below))


def _silent(job: Job) -> str:
    """What a job without progress is doing: its run has not begun, or has just ended."""
    if job.is_cancelling:
        return "Stopping"
    paths = job.run_paths
    if len(paths) >= job.n_runs and Run(paths[-1]).state == "done":
        return "Finishing"
    return job.phase or "Starting"


def _metric(now: Progress) -> str:
    if now.metric != "acc":
        return f"loss {fmt.number(now.value, 3)} nats a token"
    text = f"acc so far {fmt.percent(now.value)}"
    if now.interval is not None:
        ends = f"{fmt.number(100 * now.interval.low, 1)} to {fmt.percent(now.interval.high)}"
        text += f" (95 % Wilson interval {ends}, n = {fmt.count(now.interval.n)})"
    return fmt.tie(text)


def _details(job: Job) -> None:
    widgets.command(jobs.command_text(job.words_to_run))
    tail = jobs.log_tail(job)
    st.code(tail or "Nothing printed yet.", language=None, wrap_lines=True)
    widgets.note("The whole log: ", widgets.code_text(job.log))


def _history(ended: list[Job], runs: tuple[RunInfo, ...]) -> None:
    widgets.heading("History")
    everything = len(ended) <= SHOWN or st.session_state.get("jobs-all", False)
    for job in ended if everything else ended[:SHOWN]:
        _past(job, runs)
    if len(ended) > SHOWN:
        st.toggle(f"Show all {len(ended)}", key="jobs-all")


def _past(job: Job, runs: tuple[RunInfo, ...]) -> None:
    with st.container(key=f"past-{job.id}", gap=None):
        about, took, act = st.columns([4, 4, 3], vertical_alignment="center", gap="medium")
        with about:
            state = html.el("span", fmt.STATE_MARKS[job.state], cls=_tone(job))
            facts = f" · {_date(job.finished or job.created)} · {_about(job)} on {job.device}"
            title = html.div("", html.el("b", job.title))
            html.show(html.div("b", title, html.div("b-note", state, facts)))
        with took:
            html.show(_took(job))
        with act, widgets.row(right=True):
            if job.can_resume:
                _button("Resume", f"resume-{job.id}", jobs.resume, job.id)
            _open(job, runs)
            with st.popover("Log", key=f"more-{job.id}", on_change="rerun") as more:
                if more.open:
                    _details(job)
                    label, kept = "Remove from the history", "The run stays."
                    _button(label, f"forget-{job.id}", jobs.forget, job.id, help=kept)


def _about(job: Job) -> str:
    """Model and extent, from the command line."""
    given = dict(zip(job.words, job.words[1:], strict=False))
    model = given.get("--model", "")
    parts = [fmt.clip(model.rstrip("/").rpartition("/")[2] or model, 40)]
    parts += [f"{name} {given['--' + name]}" for name in ("limit", "steps") if "--" + name in given]
    return ", ".join(filter(None, parts))


def _tone(job: Job) -> str | None:
    return "b-down" if job.state in ("failed", "lost") else None


def _took(job: Job) -> html.Html:
    """Time and memory beside their estimates; or why it ended."""
    if job.state in ("failed", "lost"):
        return html.div("b b-note", fmt.clip(job.error or LOST, 300))
    took = fmt.duration(job.seconds)
    if job.state != "done":
        ran = job.started is not None
        return html.div("b b-note", f"Ran {took} until it stopped" if ran else "Never started")
    if job.attempt > 1:
        return html.div("b b-note", f"Done in {job.attempt} attempts; the last took {took}")
    estimated = job.estimate
    text = f" (estimated {duration(estimated['seconds'])})" if estimated.get("seconds") else ""
    lines = [html.div("", f"Took {took}{text}")]
    if peak := peak_bytes(job):
        memory = estimated.get("memory_bytes")
        text = f" (estimated {fmt.size(memory)})" if memory else ""
        lines.append(html.div("", f"Memory {fmt.size(peak)}{text}"))
    if job.words[0] == "probe":  # it writes no run: its last line is the answer
        lines.append(html.div("", fmt.clip(jobs.log_tail(job, lines=1), 200)))
    return html.div("b b-note", *lines)


def _open(job: Job, runs: tuple[RunInfo, ...], label: str = "Open results") -> None:
    """A link to where what a job made is read."""
    path = job.run_path
    if path is None:
        return
    run = Run(path)
    info = data.by_id(runs, run.id)
    if job.words[0] == "pipeline":
        page, query = "overview", url.params()
    elif job.words[0] == "lab" and not job.made(path):
        return
    elif info is not None:
        page, query = opens.results(info, runs)
    else:  # begun since the list of runs was read
        page, query = "run", url.params(id=run.id)
    st.page_link(shell.path(page), label=label, query_params=query)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
