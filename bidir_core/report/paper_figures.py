"""The paper's figures: paired differences, the stage ladder, the 2x2 and the recovery curve.

Each function takes the quantities and returns a :class:`Drawn`, or None where the study has
nothing to draw. The numbers written into a figure are entries of the ledger.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast, level
from bidir_core.analyse.study import CAUSAL, Arm, ordered_cells
from bidir_core.common.errors import UserError
from bidir_core.report.paper_numbers import Entry, Quantities, verdict_words
from bidir_core.report.paper_tables import shown_number
from bidir_core.runs.curve import read_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bidir_core.report.sections import Report

# How figures look: one style, one palette, and files that come out the same byte for byte.

GREY, BLUE, RED, GREEN = "#5f5f5f", "#0072B2", "#D55E00", "#009E73"

LOOKS = {  # colour and symbol of an arm's objective
    "base": (GREY, "o"), "3B": (BLUE, "D"), "3C": (RED, "s"), "distill": (GREEN, "^"),
    "unknown": (GREY, "v"),
}  # fmt: skip

MINUS = "\N{MINUS SIGN}"

PANELS_A_ROW = 3


@dataclass(frozen=True)
class Drawn:
    """A figure, its caption in LaTeX, and the entries that are written into it."""

    key: str
    title: str
    figure: Figure
    caption: str
    entries: tuple[Entry, ...] = ()


def all_figures(quantities: Quantities) -> list[Drawn]:
    made = (forest(quantities), ladder(quantities), two_by_two(quantities), curve(quantities))
    return [drawn for drawn in made if drawn is not None]


# --- paired differences ----------------------------------------------------------------------


def forest(q: Quantities) -> Drawn | None:
    """Per-task differences with their intervals, one panel a contrast."""
    panels = _panels(q)
    if not panels:
        return None
    tasks = [row.task for row in panels[0].tasks]
    across = min(PANELS_A_ROW, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(WIDTH, down * (0.95 + 0.24 * (len(tasks) + 1)))
    grid = figure.subplots(down, across, sharex=True, squeeze=False)
    used: list[Entry] = []
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        used += _forest_panel(axes, q, panels[number], tasks)
        if number % across:
            axes.tick_params(labelleft=False)
        lowest = number + across >= len(panels)  # nothing stands below it
        axes.tick_params(bottom=lowest, labelbottom=lowest)
        axes.set_xlabel("difference, points" if lowest else "")
    level_ = q.constant("confidence", 0.95, "95 %")
    caption = (
        f"Paired differences in accuracy by task with {level_} intervals, in points; the macro "
        "mean as a diamond. Coloured triangles point the way of a difference that is called one "
        "(by task, after Holm's adjustment); grey circles and the grey diamond are undecided or "
        "within the margin. Numbers: Table~\\ref{tab:per-task}."
    )
    return Drawn("forest", "Paired differences by task", figure, caption, tuple(used))


def _panels(q: Quantities) -> list[Contrast]:
    """The damage under each regime, then each repaired arm against stage 2 and stage 1."""
    study, numbers = q.study, q.numbers
    stage1 = (study.base, CAUSAL)
    found = [numbers.damage(regime) for regime in study.bidirectional_regimes(study.base)]
    for arm in study.trained("3B", "distill"):
        own = study.own_regime(arm)
        found += [
            numbers.between((study.base, own), (arm, own)),
            numbers.between(stage1, (arm, own)),
        ]
    return [one for one in found if one is not None and one.basis == "paired"]


def _forest_panel(axes: Axes, q: Quantities, one: Contrast, tasks: Sequence[str]) -> list[Entry]:
    rows_axis(axes, [*tasks, "macro mean"])
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.axhline(len(tasks) - 0.5, color=GREY, linewidth=0.4)
    by_task = {row.task: row for row in one.tasks}
    for y, task in enumerate(tasks):
        row = by_task.get(task)
        if row is not None and row.interval is not None:
            _mark(axes, y, row.interval, verdict_words(row.interval, q.margin, row.p_holm))
    value, ends = q.difference(one), q.interval(one)
    if one.interval is None or value is None or ends is None:
        return []
    _mark(axes, len(tasks), one.interval, verdict_words(one.interval, q.margin), macro=True)
    used = [*q.ends(one), value, *ends]
    low, high = ends
    names = f"{shorten(one.b, 34)}\nminus {shorten(one.a, 30)}"
    numbers = f"macro {_minus(value)} ({_minus(low)} to {_minus(high)})"
    axes.set_title(f"{names}\n{numbers}", loc="left")
    return used


def _mark(axes: Axes, y: int, interval: stats.Estimate, verdict: str, macro: bool = False) -> None:
    colour, marker = {"higher": (GREEN, ">"), "lower": (RED, "<")}.get(verdict, (GREY, "o"))
    axes.plot(
        [100 * interval.low, 100 * interval.high], [y, y], color=colour,
        linewidth=1.6 if macro else 1.1, marker="|", markersize=5,
    )  # fmt: skip
    axes.plot(
        [100 * interval.value], [y], marker="D" if macro else marker, color=colour,
        markersize=4 if macro else 3.4,
    )  # fmt: skip


# --- levels ----------------------------------------------------------------------------------


def ladder(q: Quantities) -> Drawn | None:
    """Macro accuracy of every stage, with its interval and chance."""
    cells = [cell for cell in ordered_cells(q.study) if not cell[0].leaky]
    found = [(cell, level(q.study.runs(*cell), q.metric)) for cell in cells]
    shown = [(cell, one) for cell, one in found if one is not None]
    if not shown:
        return None
    figure = new_figure(WIDTH, 0.75 + 0.23 * len(shown))
    axes = figure.subplots()
    rows_axis(axes, [q.cell(cell).text for cell, _ in shown])
    for y, ((arm, regime), one) in enumerate(shown):
        colour, marker = LOOKS[arm.code]
        fill = "white" if regime == CAUSAL else colour
        if one.interval is not None:
            axes.plot([one.interval.low, one.interval.high], [y, y], color=colour, linewidth=1.2)
        axes.plot(
            [one.value], [y], marker=marker, color=colour, markersize=5.5, markerfacecolor=fill
        )
    caption = (
        f"Macro accuracy by stage with its {q.constant('confidence', 0.95, '95 %')} interval. "
        "Filled symbols: bidirectional prefill; open ones: causal attention."
    )
    lines = _reference_lines(q)
    for value, dashes, name in lines:
        axes.axvline(value, color=GREY, linewidth=0.8, linestyle=dashes)
        axes.annotate(
            name, (value, 0), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", fontsize=7, color=GREY,
        )  # fmt: skip
    if lines:
        names = {"chance": "chance", "no context": "the base model's score without context"}
        caption += " Vertical lines: " + " and ".join(names[name] for *_, name in lines) + "."
    axes.set_xlabel(f"macro {_metric(q)}")
    return Drawn("ladder", "Macro accuracy by stage", figure, caption)


def _reference_lines(q: Quantities) -> list[tuple[float, Any, str]]:
    chance = ((q.study.some_run.metrics or {}).get("macro") or {}).get("chance")
    found: list[tuple[float, Any, str]] = []
    if isinstance(chance, int | float):
        found.append((chance, "dotted", "chance"))
    if q.study.floor is not None:
        floor = ((q.study.floor.metrics or {}).get("macro") or {}).get(q.metric)
        if isinstance(floor, int | float):
            found.append((floor, "dashed", "no context"))
    return found


def two_by_two(q: Quantities) -> Drawn | None:
    """Each arm under causal attention and under its regime: parallel lines mean no interaction."""
    study = q.study
    arms = [
        arm
        for arm in study.arms
        if not arm.leaky and study.runs(arm, CAUSAL) and study.runs(arm, study.own_regime(arm))
    ]
    if len(arms) < 2:
        return None
    figure = new_figure(WIDTH, 2.9)
    axes = figure.subplots()
    step = 0.05
    for i, arm in enumerate(arms):
        colour, marker = LOOKS[arm.code]
        dashes = "solid" if not arm.variant else "dashed"
        x = [place + step * (i - (len(arms) - 1) / 2) for place in (0, 1)]
        both = [level(study.runs(arm, r), q.metric) for r in (CAUSAL, study.own_regime(arm))]
        values = [one.value for one in both if one is not None]
        axes.plot(
            x, values, color=colour, marker=marker, markersize=5, linewidth=1.2, linestyle=dashes,
            markerfacecolor="white" if arm.variant else colour, label=shorten(q.arm(arm).text),
        )  # fmt: skip
        for place, one in zip(x, both, strict=True):
            if one is not None and one.interval is not None:
                ends = [one.interval.low, one.interval.high]
                axes.plot([place, place], ends, color=colour, linewidth=0.9)
    axes.set_xticks([0, 1], ["causal attention", "bidirectional prefill"])
    axes.set_xlim(-0.35, 1.35)
    axes.set_ylabel(f"macro {_metric(q)}")
    figure.legend(loc="outside right upper", frameon=False)
    caption = (
        "Every arm under causal attention and under its bidirectional regime: macro accuracy "
        f"with its {q.constant('confidence', 0.95, '95 %')} interval, symbols moved apart to be "
        "told from one another. Where fine-tuning is ordinary tuning, an arm's line runs parallel "
        "to its control's; the interaction in Table~\\ref{tab:interaction} measures by how much it "
        "does not."
    )
    if any(arm.variant for arm in arms):
        caption += " Dashed lines and open symbols: variants of an arm."
    return Drawn("two_by_two", "Arms under both kinds of attention", figure, caption)


# --- the recovery curve ------------------------------------------------------------------------


def curve(q: Quantities) -> Drawn | None:
    """Quick evaluations along the training, a panel for each kind of attention."""
    lines = {
        arm: points
        for arm, by_seed in q.study.finetunes.items()
        if not arm.leaky and (points := _curve_points([run.path for run in by_seed.values()]))
    }
    if not lines:
        return None
    regimes = list(dict.fromkeys(regime for points in lines.values() for regime in points))
    regimes.sort(key=lambda regime: regime == CAUSAL)
    figure = new_figure(WIDTH, 2.6)
    panels = figure.subplots(1, len(regimes), sharey=True, squeeze=False)[0]
    for axes, regime in zip(panels, regimes, strict=True):
        for arm, points in lines.items():
            _curve_line(axes, arm, points.get(regime, {}), q.arm(arm).text)
        axes.set_title(shorten(regime), loc="left")
        axes.set_xlabel("steps")
        axes.grid(axis="y", color="#d0d0d0", linewidth=0.5)
    panels[0].set_ylabel("macro accuracy, quick evaluation")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    n = _curve_items(q, list(lines))
    caption = (
        "Quick evaluations during training, a panel for each regime they were made under"
        + (f", on {n} items of the explore fold" if n else ", on a few items of the explore fold")
        + ": for the shape of the recovery, not for claims. Neighbouring points on so few items "
        "differ by chance."
    )
    return Drawn("curve", "Recovery during training", figure, caption)


def _curve_points(folders: Sequence[Any]) -> dict[str, dict[int, list[float]]]:
    """regime -> step -> macro accuracy, one value a seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for folder in folders:
        for line in read_curve(folder):
            evals = line.get("evals")
            for regime, row in evals.items() if isinstance(evals, dict) else ():
                if isinstance(row, dict) and isinstance(row.get("acc"), int | float):
                    steps = found.setdefault(regime, {})
                    steps.setdefault(int(line.get("step", 0)), []).append(float(row["acc"]))
    return found


def _curve_line(axes: Axes, arm: Arm, steps: Mapping[int, list[float]], name: str) -> None:
    if not steps:
        return
    colour, marker = LOOKS.get(arm.code, (GREY, "v"))
    x = sorted(steps)
    axes.plot(
        x, [sum(steps[s]) / len(steps[s]) for s in x], color=colour, marker=marker, markersize=3.5,
        linewidth=1, linestyle="dashed" if arm.variant else "solid",
        markerfacecolor="white" if arm.variant else colour, label=shorten(name),
    )  # fmt: skip
    if any(len(values) > 1 for values in steps.values()):
        low, high = [min(steps[s]) for s in x], [max(steps[s]) for s in x]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _curve_items(q: Quantities, arms: Sequence[Arm]) -> Entry | None:
    """How many items the quick evaluations hold, if all of them hold as many."""
    runs = [run for arm in arms for run in q.study.finetunes[arm].values()]
    counts = {
        row.get("n")
        for run in runs
        for line in read_curve(run.path)
        for row in (line.get("evals") or {}).values()
        if isinstance(row, dict)
    }
    if len(counts) != 1 or None in counts:
        return None
    n = counts.pop()
    return q.ledger.add(
        "curve/n", n, shown_number(n), [run.id for run in runs],
        statistic="curve", file="curve.jsonl", field="n",
    )  # fmt: skip


def _minus(entry: Entry) -> str:
    return entry.text.replace("-", MINUS)


def _metric(q: Quantities) -> str:
    return "accuracy" if q.metric == "acc" else "length-normalised accuracy"


FAINT = "#d0d0d0"

WIDTH = 6.3  # inches: the text width of main.tex

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 8,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # names from outside are text, whatever they hold
    "text.usetex": False,
    "pdf.fonttype": 42,  # fonts embedded as TrueType
    "svg.fonttype": "path",  # letters as outlines: the same everywhere
    "svg.hashsalt": "bidir_core",
    "path.simplify": False,
}

_one_at_a_time = Lock()  # the style is matplotlib's own, for the whole process


@contextmanager
def style() -> Iterator[None]:
    """Draw within this, one thread at a time; raises UserError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "the figures of --paper need matplotlib; install it with: pip install matplotlib"
        ) from error
    with _one_at_a_time, matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
        for name, value in _STYLE.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, stem: Path, title: str) -> None:
    """``<stem>.svg`` and ``<stem>.pdf``, without dates or version stamps."""
    figure.savefig(
        stem.with_suffix(".svg"), format="svg",
        metadata={"Date": None, "Creator": None, "Title": title},
    )  # fmt: skip
    figure.savefig(
        stem.with_suffix(".pdf"), format="pdf",
        metadata={"CreationDate": None, "Creator": None, "Producer": None, "Title": title},
    )  # fmt: skip


def shorten(text: str, most: int = 48) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= most else one_line[: most - 1] + "…"


def rows_axis(axes: Axes, labels: list[str]) -> None:
    """Rows from top to bottom with their names."""
    axes.set_yticks(range(len(labels)), [shorten(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


# The report's main figure as a PNG, drawn here: no browser is needed, and it is dark on white.

DPI = 200


def main_figure(report: Report) -> bytes:
    """Paired differences by task or, where nothing differs from anything, the stages' accuracies.

    Raises UserError without matplotlib, or if there is nothing to draw.
    """
    from bidir_core.report.paper_numbers import Quantities

    quantities = Quantities(report.numbers)
    with style():
        drawn = forest(quantities) or ladder(quantities)
        if drawn is None:
            raise UserError("these runs have no accuracies to draw")
        out = io.BytesIO()
        drawn.figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
