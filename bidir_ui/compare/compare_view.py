"""The Compare page's parts: 2x2 tables, slices, retention above no context, mismatches."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pandas as pd
import streamlit as st

from bidir_core.analyse import compare as core
from bidir_core.analyse.flips import bands, slices
from bidir_core.analyse.pairing import mismatch_report
from bidir_core.analyse.stats import Retention
from bidir_core.analyse.study import Arm, name_variants
from bidir_core.common.errors import UserError
from bidir_core.common.formatting import p_text
from bidir_core.data import item_texts
from bidir_core.report.charts import recovery, table_frame
from bidir_core.report.markdown import Table
from bidir_core.report.tables import curve_table
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import analysis, data
from bidir_ui.reading.data import RunInfo


def verdict(result: core.Comparison) -> None:
    """The answer in one sentence, with interval and n."""
    html.show(html.div("b b-verdict", fmt.tie(result.sentence)))
    for line in result.notes:
        widgets.note(fmt.tie(line[0].upper() + line[1:] + "."))


def fuller(runs: Iterable[RunInfo], a: RunInfo, b: RunInfo) -> None:
    """A link to the same comparison on more items, if it was run: the Overview tells of those."""
    runs = list(runs)

    def larger(original: RunInfo) -> list[RunInfo]:
        names = ("stage", "model", "checkpoint", "regime", "context", "variant")
        alike = [run for run in runs if all(getattr(run, n) == getattr(original, n) for n in names)]
        return [r for r in alike if r.can_pair and r.is_done and r.n_items > original.n_items]

    pairs = [(first, second) for first in larger(a) for second in larger(b)]
    pairs = [(first, second) for first, second in pairs if first.same_items(second)]
    if pairs:
        first, second = max(pairs, key=lambda pair: pair[0].n_items)
        query = url.params(a=first.id, b=second.id)
        link = widgets.link(f"{fmt.count(first.n_items)} items", "compare", query)
        widgets.note("The same comparison was run on ", link, " too.")


def forest(result: core.Comparison, a: RunInfo, b: RunInfo) -> None:
    """Each task's difference; its name leads to its flips."""
    rows = [
        widgets.interval(
            fmt.task(row.task),
            row.delta,
            row.judgement,
            total=row.task == core.MACRO,
            href=url.href("flips", flips_query(row.task, a, b)),
        )
        for row in result.rows
    ]
    axis = (
        "Candidate minus baseline in accuracy, points, with 95 % intervals; a name opens its flips"
    )
    widgets.intervals(rows, axis)


def flips_query(task: str, a: RunInfo, b: RunInfo) -> dict[str, str]:
    task = "" if task == core.MACRO else task
    return url.params(a=a.id, b=b.id, flip="broken~fixed", task=task)


def task_table(result: core.Comparison, a: RunInfo, b: RunInfo) -> None:
    """Per task: accuracies, difference, interval, what broke and what was fixed, the test. It sorts;
    a click on a row opens its flips."""
    frame = task_frame(result)
    shares = ["acc_baseline", "acc_candidate", "difference", "low", "high"]
    frame[shares] *= 100
    frame["task"] = frame["task"].map(lambda name: item_texts.visible(fmt.task(name)))
    frame["churn"] = 100 * (frame["broken"] + frame["fixed"]) / frame["n"]
    frame["p_holm"] = [p_text(row.p_holm) for row in result.rows]
    frame["verdict"] = frame["verdict"].map(short)
    text, number = st.column_config.TextColumn, st.column_config.NumberColumn
    columns = {
        "task": text("Task", width=110),
        "n": number("n", format="localized", width=60),
        "acc_baseline": number("Baseline, %", format="%.1f", width=88),
        "acc_candidate": number("Candidate, %", format="%.1f", width=96),
        "difference": number("Difference", width=82, help="In points"),
        "low": number("Low", width=58, help=INTERVAL),
        "high": number("High", width=58, help=INTERVAL),
        "broken": number("▼ Broken", format="localized", width=76),
        "fixed": number("▲ Fixed", format="localized", width=68),
        "churn": number("Churn, %", format="%.1f", width=74),
        "p_holm": text("p (Holm)", width=74, help=HOLM),
        "verdict": text("In words"),
    }
    key = f"tasks-{a.id}-{b.id}-{result.metric}"
    alt = "Each task and their mean: accuracies, difference with interval, flips, test, verdict."
    shown = frame[list(columns)]
    picked = widgets.selectable(
        shown, columns, key=key, mode="single-row", tall=600, alt=alt, signed=shares[2:]
    )
    if picked.opened is not None:
        task = result.rows[picked.opened].task
        st.switch_page("pages/flips.py", query_params=flips_query(task, a, b))
    with widgets.row():
        widgets.take_away(task_frame(result), file_name("compare", a.id, b.id), key="tasks")
    widgets.explain_undecided(*(row.words for row in result.rows))


INTERVAL = "An end of the difference's 95 % interval, in points"
HOLM = "McNemar's exact test of broken against fixed, corrected for looking at several tasks"


def short(text: str) -> str:
    """A verdict's words, short enough for a table's cell."""
    return "undecided after Holm" if text.startswith("undecided once") else text


def file_name(kind: str, a: str, b: str) -> str:
    """A CSV's name, with both run ids."""
    return f"{kind}_{a}_vs_{b}.csv".replace("/", "_")


def task_frame(result: core.Comparison) -> pd.DataFrame:
    """Every number of the comparison, a row a task and the macro; shares as fractions."""
    return pd.DataFrame(
        {
            "task": row.task,
            "n": row.n,
            "chance": row.chance,
            "acc_baseline": row.acc_a,
            "acc_candidate": row.acc_b,
            "difference": row.delta,
            "low": row.low,
            "high": row.high,
            "both_right": row.both_right,
            "broken": row.broken,
            "fixed": row.fixed,
            "both_wrong": row.both_wrong,
            "p_mcnemar": row.p_value,
            "p_holm": row.p_holm,
            "detectable": row.detectable,
            "verdict": row.words,
        }
        for row in result.rows
    )


def two_by_two(result: core.Comparison, a: RunInfo, b: RunInfo) -> None:
    """One small table per task; every count links to its items."""
    html.show(html.div("b-squares", *(_square(row, a, b) for row in result.tasks)))


def _square(row: core.Row, a: RunInfo, b: RunInfo) -> html.Html:
    def cell(value: int, flips: str) -> html.Html:
        query = url.params(a=a.id, b=b.id, task=row.task, flip=flips)
        return widgets.link(fmt.count(value), "flips", query)

    broken = html.join("▼ ", cell(row.broken, "broken"))
    fixed = html.join("▲ ", cell(row.fixed, "fixed"))
    both_wrong = cell(row.both_wrong, "changed_wrong~same_wrong")
    table = widgets.table(
        (fmt.clip(fmt.task(row.task), 24), "right", "wrong"),
        (("right", cell(row.both_right, "same_right"), broken), ("wrong", fixed, both_wrong)),
        name="",
    )
    test = f"McNemar p {p_text(row.p_value)}" if row.p_value is not None else "no flips"
    if row.detectable is not None:
        least = fmt.points(row.detectable).lstrip("+")
        test += f"; enough to detect {least} points"
    return html.el("div", table, html.div("b b-note", f"n = {fmt.count(row.n)}, {test}"))


def retention(
    result: core.Comparison, runs: tuple[RunInfo, ...], a: RunInfo, b: RunInfo, metric: str
) -> None:
    """What is kept above chance and, with a no-context run, above not reading the prompt."""

    def text(kept: Retention | None) -> str:
        if kept is None or kept.value is None:
            return fmt.tie(f"not stated: {kept.why_suppressed if kept else ''}")
        return fmt.tie(
            f"{fmt.percent(kept.value)} [{fmt.percent(kept.low)}, {fmt.percent(kept.high)}]"
        )

    floors = [
        run
        for run in runs
        if run.context == "none" and run.model == a.model and run.is_done and run.has_items
    ]
    # The floor may hold more items than the pair; its number format should be the pair's.
    floor = max(floors, key=lambda run: (run.same_items(a), run.dtype == a.dtype), default=None)
    above = f"not run yet: eval --context none --model {a.model}"
    if floor is not None:
        shared = analysis.intersecting()
        try:
            against = analysis.compare(a, b, metric, intersect=shared, floor=floor)
            above = text(against.above_no_context)
        except UserError as error:
            above = str(error)
    widgets.facts(
        [
            ("kept of the accuracy", fmt.percent(result.plain_ratio)),
            ("kept of the accuracy above chance", text(result.above_chance)),
            ("kept of what the prompt adds", above),
        ]
    )


def slice_charts(frame: pd.DataFrame, key: str) -> None:
    """Three charts: by prefix length, by length of the right choice, by its position."""
    kinds = {"By position of the right choice": frame["gold"].map(lambda gold: f"choice {gold}")}
    if frame["length"].any():  # unless neither run counted its tokens
        kinds = {
            "By prefix length, tokens": bands(frame["length"]),
            "By length of the right choice, tokens": bands(frame["gold_length"]),
        } | kinds
    rows = []
    for column, (title, labels) in zip(st.columns(3, gap="small"), kinds.items(), strict=False):
        parts = slices(frame["flip"], labels)
        dots = []
        for part in parts:
            estimate = part.estimate
            text = f"{fmt.points(estimate.value)} (n = {fmt.count(estimate.n)})"
            dots.append(widgets.interval(part.label, estimate.value, part.judgement, text))
            ends = [100 * end for end in (estimate.value, estimate.low, estimate.high)]
            rows.append((title, part.label, estimate.n, *ends, part.broken, part.fixed))
        with column:
            html.show(html.div("b", html.el("b", title)))
            if dots:
                widgets.intervals(dots, "points")
            else:
                widgets.note("Too few items in every slice.")
    widgets.numbers(pd.DataFrame(rows, columns=SLICES), f"slices_{key}.csv", key="slices")


SLICES = ["By", "Slice", "n", "Difference, points", "Low", "High", "Broken", "Fixed"]


def show_mismatches(a: RunInfo, b: RunInfo) -> None:
    """Every setting in which the runs differ so that their items must not be paired."""
    mismatches = mismatch_report(data.run_of(a), data.run_of(b))
    if mismatches and a.has_items and b.has_items:  # without items that alone is the reason
        rows = [
            (m.what, fmt.clip(m.value_a, 60), fmt.clip(m.value_b, 60), m.sentence)
            for m in mismatches
        ]
        head = ("What differs", "Baseline", "Candidate", "Why it matters")
        name = file_name("mismatches", a.id, b.id)
        html.show(widgets.table(head, rows, name=name, left=(1, 2, 3)))


# Recovery while training: what the quick evaluations of fine-tunes found, step by step.

REGIMES = {"bidirectional": "Under bidirectional prefill", "causal": "With the causal mask"}


def curves(runs: Iterable[RunInfo], model: str) -> Table:
    """The quick evaluations of a model's fine-tunes, as the report has them."""
    tuned = [run for run in runs if run.is_finetune and run.model == model and run.arm]
    names = name_variants(dict.fromkeys(run.arm for run in tuned if run.arm))
    finetunes: dict[Arm, dict[int, Run]] = {}
    for run in reversed(tuned):  # so that of a seed trained twice the newest stays
        finetunes.setdefault(names[run.arm], {})[run.train_seed] = data.run_of(run)  # type: ignore[index]
    return curve_table(dict(sorted(finetunes.items(), key=lambda each: each[0].title)))


def show(runs: Iterable[RunInfo], model: str) -> None:
    """The quick evaluations of a model's fine-tunes, with what makes them where there are none."""
    widgets.heading("Recovery while training")
    table = curves(runs, model)
    if table:
        recovery_panels(table)
        return
    widgets.not_run(
        "No fine-tune of this model recorded quick evaluations on its way. This one does:",
        f"python -m bidir_core finetune --model {model} --prompt-bidir-response-causal-train "
        "--eval-every 50",
    )


def recovery_panels(table: Table) -> None:
    """A panel for each regime on one scale, and the numbers as a table."""
    widgets.note(
        "Macro accuracy of quick evaluations on a few items: wide uncertainty, read the trend. "
        "Squares: a variant such as LoRA; bars: lowest to highest seed."
    )
    frame = table_frame(table)
    span = [100 * frame["Macro acc"].min() - 1, 100 * frame["Macro acc"].max() + 1]
    shown = list(frame["Regime"].unique())
    regimes = [regime for regime in dict.fromkeys([*REGIMES, *shown]) if regime in shown]
    for column, regime in zip(st.columns(len(regimes), gap="medium"), regimes, strict=True):
        with column:
            title = REGIMES.get(regime, f"Under {regime}")
            html.show(html.div("b", html.el("b", title)))
            figure = recovery(frame[frame["Regime"] == regime])
            figure.update_yaxes(range=span, title="accuracy, %")
            figure.update_layout(
                height=330, legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
            )
            alt = f"{title}: accuracy by training step; the table below has the numbers."
            widgets.chart(figure, alt, key=f"recovery-{regime}")
    # The report's own CSV, so that an interval has two columns here as well.
    widgets.numbers(pd.read_csv(io.StringIO(table.csv())), "recovery.csv", key="recovery")
