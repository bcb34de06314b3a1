"""How figures look: one style, one palette, and files that come out the same byte for byte.

Colours are safe for colour-blind readers and never carry a meaning alone: a symbol goes with each.
matplotlib draws without a window and is imported only here, when a figure is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from bidir_core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, BLUE, RED, GREEN = "#5f5f5f", "#0072B2", "#D55E00", "#009E73"
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
