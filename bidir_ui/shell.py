"""The shell every page starts with: set-up, navigation, the chosen pair, read-only gate, help.

A page file begins with ``page = shell.start("flips")`` and does its layout inside
``with shell.guard():``. A new page is one line in :data:`PAGES` and one file; a page whose file
does not exist yet is not shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from bidir_core.errors import UserError
from bidir_core.run_layout import is_read_only
from bidir_ui import data, fmt, help_dialog, html, pair, url, widgets

ROOT = Path(__file__).resolve().parent.parent
ICON = Path(__file__).with_name("icon.png")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageSpec:
    """One page of the app. ``writes``: it starts or changes something, so read-only hides it.
    ``opens_with``: what its link in the sidebar adds to the URL."""

    key: str
    path: str
    title: str
    icon: str
    writes: bool = False
    opens_with: dict[str, str] = field(default_factory=dict)


PAGES = (
    PageSpec("overview", "app.py", "Overview", "dashboard"),
    PageSpec("runs", "pages/runs.py", "Runs", "list"),
    PageSpec("compare", "pages/compare.py", "Compare", "balance"),
    PageSpec("flips", "pages/flips.py", "Flips", "swap_vert", opens_with={"flip": "broken~fixed"}),
    PageSpec("item", "pages/item.py", "Item", "article"),
    PageSpec("masks", "pages/masks.py", "Masks", "grid_on"),
    PageSpec("lab", "pages/lab.py", "Lab", "science"),
    PageSpec("playground", "pages/playground.py", "Playground", "compare_arrows", writes=True),
    PageSpec("launch", "pages/launch.py", "Launch", "play_circle", writes=True),
    PageSpec("report", "pages/report.py", "Report", "description"),
)
BY_KEY = {spec.key: spec for spec in PAGES}


def in_session() -> bool:
    """Whether a browser's session runs this script (and not the server importing ``app.py``)."""
    return get_script_run_ctx(suppress_warning=True) is not None


@dataclass(frozen=True)
class Page:
    """What the shell hands to a page: its spec, the runs there are, and the chosen pair."""

    spec: PageSpec
    runs: tuple[data.RunInfo, ...]
    pair: pair.Pair


def start(key: str) -> Page:
    """Set the page up; to be called first in every page file. Stops where the gate says so."""
    spec = BY_KEY[key]
    # A file, not a :material/..: name: Streamlit's page would fetch that from a font server.
    st.set_page_config(page_title=f"{spec.title} · bidir", page_icon=str(ICON), layout="wide")
    html.styles()
    if spec.writes and is_read_only():
        _navigation(key)
        st.title(spec.title, anchor=False)
        widgets.banner(
            "info", f"{spec.title} is closed here",
            "This is a read-only view: runs can be read and shared, not started or changed.",
        )  # fmt: skip
        st.stop()
    with st.spinner("Reading run folders", show_time=False):
        runs = data.list_infos()
    chosen = pair.choose(runs)
    with st.sidebar:
        _navigation(key)
        pair.selectors(runs, chosen)
        help_dialog.button()
        if is_read_only():
            widgets.note("Read-only view")
    return Page(spec, runs, chosen)


def _navigation(current: str) -> None:
    with st.sidebar:
        html.show(
            html.div(
                "b b-brand",
                "bidir",
                html.el("small", "What bidirectional prefill does to a language model"),
            )
        )
        for spec in PAGES:
            hidden = spec.writes and is_read_only()
            # An item is reached from a list; the bare page would have nothing to show.
            if hidden or not (ROOT / spec.path).exists() or (spec.key == "item" != current):
                continue
            st.page_link(
                spec.path,
                label=spec.title,
                icon=f":material/{spec.icon}:",
                query_params=url.params(**spec.opens_with),
            )


def path(key: str) -> str:
    """A page's file, for ``st.switch_page``."""
    return BY_KEY[key].path


@contextmanager
def guard() -> Iterator[None]:
    """Show what fails inside as the page's error state; never a traceback."""
    try:
        yield
    except UserError as error:
        widgets.banner("error", "This cannot be shown", str(error))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        log.exception("a page failed")
        widgets.banner(
            "error", "Something in these files could not be read",
            f"{type(error).__name__}: {fmt.clip(str(error), 300)}",
            "The server's log has the details. Other pages and runs still work.",
        )  # fmt: skip


def chosen_pair(page: Page) -> tuple[data.RunInfo, data.RunInfo, str]:
    """Baseline, candidate and measure. Without two runs it draws why not, and stops the page."""
    a, b = page.pair.a, page.pair.b
    if page.spec.key == "item" and not page.pair.complete:  # its title needs the pair
        st.title(page.spec.title, anchor=False)
    if not pair.explain_if_missing(page.runs, page.pair) or a is None or b is None:
        st.stop()
    return a, b, page.pair.metric
