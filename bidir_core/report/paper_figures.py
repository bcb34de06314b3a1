"""The paper's figures, drawn with matplotlib: paired differences, and the level of every stage.

Each function takes the report's numbers and returns a figure, or None where the study has nothing
to draw. The files come out the same byte for byte.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from bidir_core.analyse.contrasts import Contrast, cell_title, level
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import CAUSAL, ordered_cells
from bidir_core.analyse.verdict import Judgement
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.report.sections import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {"acc": "accuracy", "acc_norm": "length-normalised accuracy"}

GREY, BLUE, RED, GREEN, FAINT = "#5f5f5f", "#0072B2", "#D55E00", "#009E73", "#d0d0d0"

LOOKS = {  # colour and symbol of an arm's objective
    "base": (GREY, "o"),
    "3B": (BLUE, "D"),
    "3C": (RED, "s"),
    "distill": (GREEN, "^"),
    "unknown": (GREY, "v"),
}

PANELS_A_ROW = 3
WIDTH = 6.3  # inches: the text width of an A4 page
DPI = 200  # of the PNG


# --- paired differences ----------------------------------------------------------------------


def forest(numbers: Findings) -> Figure | None:
    """Per-task differences with their intervals, one panel a contrast; the macro as a diamond.

    A coloured triangle points the way of a difference that is called one (by task, after Holm's
    adjustment); grey marks are undecided or within the margin.
    """
    panels = _panels(numbers)
    if not panels:
        return None
    tasks = [row.task for row in panels[0].tasks]
    across = min(PANELS_A_ROW, len(panels))
    down = math.ceil(len(panels) / across)
    figure = _new_figure(down * (0.95 + 0.24 * (len(tasks) + 1)))
    grid = figure.subplots(down, across, sharex=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        _forest_panel(axes, panels[number], tasks)
        if number % across:
            axes.tick_params(labelleft=False)
        is_lowest = number + across >= len(panels)
        axes.tick_params(bottom=is_lowest, labelbottom=is_lowest)
        axes.set_xlabel("difference, points" if is_lowest else "")
    return figure


def _panels(numbers: Findings) -> list[Contrast]:
    """The damage under each regime, then each repaired arm against stage 2 and stage 1."""
    study = numbers.study
    contrasts = [numbers.damage(regime) for regime in study.bidirectional_regimes(study.base)]
    for arm in study.trained("3B", "distill"):
        regime = study.own_regime(arm)
        contrasts.append(numbers.between((study.base, regime), (arm, regime)))
        contrasts.append(numbers.between(numbers.stage1, (arm, regime)))
    return [c for c in contrasts if c is not None and c.basis == "paired"]


def _forest_panel(axes: Axes, contrast: Contrast, tasks: Sequence[str]) -> None:
    _rows_axis(axes, [*tasks, "macro mean"])
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.axhline(len(tasks) - 0.5, color=GREY, linewidth=0.4)
    by_task = {row.task: row for row in contrast.tasks}
    for y, task in enumerate(tasks):
        row = by_task.get(task)
        if row is not None:
            _mark(axes, y, row.judgement)
    if contrast.interval is None:
        return
    _mark(axes, len(tasks), contrast.judgement, macro=True)
    value, low, high = (
        formatting.points(number, signed=True).replace("-", "\N{MINUS SIGN}")
        for number in (contrast.value, contrast.interval.low, contrast.interval.high)
    )
    names = f"{shorten(contrast.b, 34)}\nminus {shorten(contrast.a, 30)}"
    axes.set_title(f"{names}\nmacro {value} ({low} to {high})", loc="left")


def _mark(axes: Axes, y: int, judgement: Judgement, macro: bool = False) -> None:
    interval = judgement.estimate
    if interval is None:
        return
    looks = {"better": (GREEN, ">"), "worse": (RED, "<")}
    colour, marker = looks.get(judgement.verdict, (GREY, "o"))
    low, value, high = 100 * interval.low, 100 * interval.value, 100 * interval.high
    width = 1.6 if macro else 1.1
    axes.plot([low, high], [y, y], color=colour, linewidth=width, marker="|", markersize=5)
    marker, markersize = ("D", 4.0) if macro else (marker, 3.4)
    axes.plot([value], [y], marker=marker, color=colour, markersize=markersize)


# --- levels ----------------------------------------------------------------------------------


def ladder(numbers: Findings) -> Figure | None:
    """Macro accuracy of every stage with its interval, chance and the score without context.

    Filled symbols: bidirectional prefill; open ones: causal attention.
    """
    study, metric = numbers.study, numbers.metric
    cells = [cell for cell in ordered_cells(study) if not cell[0].leaky]
    levels = [(cell, level(study.runs(*cell), metric)) for cell in cells]
    shown = [(cell, accuracy) for cell, accuracy in levels if accuracy is not None]
    if not shown:
        return None
    figure = _new_figure(0.75 + 0.23 * len(shown))
    axes = figure.subplots()
    _rows_axis(axes, [cell_title(study, cell) for cell, _ in shown])
    for y, ((arm, regime), accuracy) in enumerate(shown):
        colour, marker = LOOKS[arm.code]
        fill = "white" if regime == CAUSAL else colour
        if accuracy.interval is not None:
            ends = [accuracy.interval.low, accuracy.interval.high]
            axes.plot(ends, [y, y], color=colour, linewidth=1.2)
        look: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 5.5}
        axes.plot([accuracy.value], [y], markerfacecolor=fill, **look)
    floor = study.floor.metrics if study.floor is not None else None
    references = (
        ("chance", study.some_run.metrics, "chance", "dotted"),
        ("no context", floor, metric, "dashed"),
    )
    for name, metrics, field, dashes in references:
        value = ((metrics or {}).get("macro") or {}).get(field)
        if isinstance(value, int | float):
            axes.axvline(value, color=GREY, linewidth=0.8, linestyle=dashes)
            shift: dict[str, Any] = {
                "xytext": (3, 3),
                "textcoords": "offset points",
                "fontsize": 7,
                "color": GREY,
            }
            axes.annotate(name, (value, 0), xycoords=("data", "axes fraction"), **shift)
    axes.set_xlabel(f"macro {METRICS[metric]}")
    return figure


FIGURES: dict[str, Callable[[Findings], Figure | None]] = {
    "forest": forest,
    "ladder": ladder,
}

# How figures look: one style, one palette.

_STYLE: Any = {
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
    "text.parse_math": False,  # names from outside are text, whatever they hold
    "pdf.fonttype": 42,  # fonts embedded as TrueType
    "svg.fonttype": "path",  # letters as outlines: the same everywhere
    "svg.hashsalt": "bidir_core",
    "path.simplify": False,
}

_one_at_a_time = Lock()  # the style is matplotlib's own, for the whole process


@contextmanager
def style() -> Iterator[None]:
    """Draw within this, one thread at a time."""
    import matplotlib

    with _one_at_a_time, matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def save(figure: Figure, stem: Path) -> None:
    """``<stem>.svg`` and ``<stem>.pdf``, without dates or version stamps."""
    stamps: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    for suffix, metadata in stamps.items():
        figure.savefig(stem.with_suffix(suffix), metadata=metadata)


def main_figure(report: Report) -> bytes:
    """The paired differences or, where nothing differs from anything, the stages, as a PNG.

    No browser is needed, and it is dark on white whatever the page's theme. UserError if there is
    nothing to draw.
    """
    with style():
        figure = forest(report.numbers) or ladder(report.numbers)
        if figure is None:
            raise UserError("these runs have no accuracies to draw")
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _new_figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def shorten(text: str, most: int = 48) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _rows_axis(axes: Axes, labels: list[str]) -> None:
    """Rows from top to bottom with their names."""
    axes.set_yticks(range(len(labels)), [shorten(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
