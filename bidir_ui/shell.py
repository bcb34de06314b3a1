"""The shell every page starts with: set-up, navigation, the chosen pair, read-only gate, help.

A page file begins with ``page = shell.start("flips")`` and does its layout inside
``with shell.guard():``. A new page is one line in :data:`PAGES` and one file; a page whose file
does not exist yet is not shown.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata, util
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from bidir_core.common.errors import UserError
from bidir_core.runs.layout import STAGES, is_read_only, runs_roots
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data, pair, scorecards
from bidir_ui.reading.pair import Pair

ROOT = Path(__file__).resolve().parent.parent

ICON = Path(__file__).parent / "kit" / "icon.png"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageSpec:
    """One page of the app. ``writes``: it starts or changes something, so read-only hides it.
    ``tells``: what it shows, for a first-time reader; drawn below its title. ``opens_with``: what its link in the sidebar
    adds to the URL. ``from_a_list``: opened from a list; the sidebar names it only while it is open."""

    key: str
    path: str
    title: str
    icon: str
    tells: str = ""
    writes: bool = False
    opens_with: dict[str, str] = field(default_factory=dict)
    from_a_list: bool = False


RUNS = (
    "Every evaluation, fine-tune and sweep of a model, with its scores. Two of them are chosen, a "
    "baseline and a candidate: Compare, Flips and Item show these."
)
COMPARE = "How far the candidate's accuracy is from the baseline's on the same items, and where."
FLIPS = "How each item's answer changed from the baseline to the candidate, largest change first."
LAB = (
    "One model, looking ahead in many ways: which part does the damage, how sure that is, and what "
    "could have refuted it."
)
PLAYGROUND = (
    "One prompt, read under two regimes and then continued. One prompt proves nothing: Compare and "
    "Lab count many."
)
LAUNCH = "Start an evaluation, a fine-tune or a sweep here, or copy its command line. Jobs are listed below."

PAGES = (
    PageSpec("overview", "app.py", "Overview", "dashboard"),
    PageSpec("runs", "pages/runs.py", "Runs", "list", RUNS),
    PageSpec("run", "pages/run.py", "Run", "receipt_long", from_a_list=True),
    PageSpec("compare", "pages/compare.py", "Compare", "balance", COMPARE),
    PageSpec(
        "flips", "pages/flips.py", "Flips", "swap_vert", FLIPS, opens_with={"flip": "broken~fixed"}
    ),
    PageSpec("item", "pages/item.py", "Item", "article"),
    PageSpec("masks", "pages/masks.py", "Masks", "grid_on"),
    PageSpec("lab", "pages/lab.py", "Lab", "science", LAB),
    PageSpec("playground", "pages/playground.py", "Playground", "compare_arrows", PLAYGROUND, True),
    PageSpec("launch", "pages/launch.py", "Launch", "play_circle", LAUNCH, True),
    PageSpec("report", "pages/report.py", "Report", "description"),
)

BY_KEY = {spec.key: spec for spec in PAGES}

# Pages about a baseline and a candidate. Unless the URL names them, they are those of the Overview's
# answer: one question, one answer.
ABOUT_A_PAIR = ("runs", "compare", "flips", "item", "report")
WITH_A_MEASURE = ("run", "lab")


def in_session() -> bool:
    """Whether a browser's session runs this script (and not the server importing ``app.py``)."""
    return get_script_run_ctx(suppress_warning=True) is not None


@dataclass(frozen=True)
class Page:
    """What the shell hands to a page: its spec and, read when first asked for, the runs there are and
    the chosen pair.

    ``passed_over``: the pair of the Overview's answer, where Item needs more than it kept."""

    spec: PageSpec

    @cached_property
    def runs(self) -> tuple[data.RunInfo, ...]:
        with widgets.waiting("Reading run folders", 560):
            return data.list_infos()

    @property
    def pair(self) -> Pair:
        return self._chosen[0]

    @property
    def passed_over(self) -> tuple[data.RunInfo, data.RunInfo] | None:
        return self._chosen[1]

    @cached_property
    def _chosen(self) -> tuple[Pair, tuple[data.RunInfo, data.RunInfo] | None]:
        leading = passed_over = None
        if self.spec.key in ABOUT_A_PAIR and not (url.get("a") or url.get("b")):
            leading = scorecards.leading_pair(self.runs)
        if self.spec.key == "item" and leading and any(run.compact for run in leading):
            leading, passed_over = None, leading
        chosen = pair.choose(self.runs, leading)
        if any(run is None or run.compact for run in (chosen.a, chosen.b)):
            passed_over = None
        return chosen, passed_over


def start(key: str) -> Page:
    """Set the page up; every page file calls this first. Stops where a page is closed (read-only)."""
    spec = BY_KEY[key]
    # A file, not a :material/..: name: Streamlit's page would fetch that from a font server.
    st.set_page_config(page_title=f"{spec.title} · bidir", page_icon=str(ICON), layout="wide")
    html.styles()
    _navigation(key)
    if spec.writes and is_read_only():
        st.title(spec.title, anchor=False)
        widgets.banner(
            "info",
            f"{spec.title} is closed here",
            "This is a read-only view: runs can be read and shared, not started or changed.",
        )
        st.stop()
    if spec.tells:
        st.title(spec.title, anchor=False)
        widgets.note(spec.tells)
    page = Page(spec)
    chosen = page.pair if key in ABOUT_A_PAIR else None
    with st.sidebar:
        if chosen is not None:
            pair.selectors(page.runs, chosen)
        elif key in WITH_A_MEASURE:
            pair.measure()
        button()
        if is_read_only():
            widgets.note("Read-only view")
    return page


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
            elsewhere = spec.from_a_list and spec.key != current
            if hidden or not (ROOT / spec.path).exists() or elsewhere:
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
            "error",
            "Something in these files could not be read",
            f"{type(error).__name__}: {fmt.clip(str(error), 300)}",
            "The server's log has the details. Other pages and runs still work.",
        )


def chosen_pair(page: Page) -> tuple[data.RunInfo, data.RunInfo, str]:
    """Baseline, candidate and measure. Without two runs it draws why not, and stops the page."""
    a, b = page.pair.a, page.pair.b
    if page.spec.key == "item" and not page.pair.complete:  # its title needs the pair
        st.title(page.spec.title, anchor=False)
    if not pair.explain_if_missing(page.runs, page.pair) or a is None or b is None:
        if page.pair.unknown:
            gone = dict.fromkeys(("a", "b"), "")
            st.button("Show the usual pair", key="usual-pair", on_click=lambda: url.put(**gone))
        st.stop()
    return a, b, page.pair.metric


# What is behind the "?": keys, the words used, and a check of this installation.

KEYS = (
    ("j / k", "next / previous item in the current filter (Item)"),
    ("n / p", "next / previous flip in the current filter (Item)"),
    ("h", "this help"),
)

GLOSSARY = (
    ("prefix", "The context tokens of a question, all of them. Also called prefill."),
    ("continuation", "The tokens of a choice that are scored. They are causal in every regime."),
    (
        "regime",
        "Who may attend to whom. causal: each token sees what precedes it. bidirectional: prefix "
        "tokens see the whole prefix. Dials such as sink=1 keep part of it causal.",
    ),
    (
        "the dials",
        "Of the prefix, sink=K leaves the first K tokens causal, tail=K the last K, skip=J token J; "
        "rows=A-B lets only these tokens look ahead; self=J lets token J see itself alone; hide=J hides "
        "token J from all others. layers=A-B looks ahead in these layers only; lambda=X weighs what "
        "lies ahead X times as much.",
    ),
    (
        "baseline, candidate",
        "The two runs that are compared: a difference is candidate minus baseline.",
    ),
    (
        "study, arm, seed",
        "All runs of a model; one way to train or evaluate it; one repetition of that.",
    ),
    (
        "mask probe",
        "Before each run, tokens are changed: only tokens that may see them may react.",
    ),
    (
        "acc, acc_norm",
        "Share of items whose right choice has the largest log-likelihood; for "
        "acc_norm, the largest per character.",
    ),
    ("chance", "Expected share right when guessing: the mean of 1 / number of choices."),
    ("macro mean", "The mean over tasks, each counted once, however many items it has."),
    (
        "95 % interval",
        "The differences that fit the data. If 0 is among them, these items cannot tell the "
        "difference from 0.",
    ),
    (
        "paired",
        "Both runs answered the same items, so the interval comes from the items that "
        "changed, not from two separate error bars.",
    ),
    (
        "flip",
        "An item whose correctness differs: broken (right to wrong) or fixed (wrong to right). "
        "Other wrong: from one wrong choice to another.",
    ),
    (
        "undecided, needs about n",
        "The interval includes 0 and does not fit within ±1 point. "
        + widgets.UNDECIDED.partition(": ")[2].capitalize()
        + " Not a promise: with more items the "
        "difference may move.",
    ),
    (
        "settled",
        "Said of a running evaluation: its difference is decided however often one looks, by an "
        "interval about 1.5 times as wide as the usual one.",
    ),
    (
        "interaction",
        "How much more 3B gains over its control 3C under the new mask than under "
        "causal. Above 0, part of the gain is repair of the mask, not ordinary tuning.",
    ),
    (
        "repair fine-tune, control fine-tune",
        "3B, trained with the prompt looking ahead, and 3C, trained alike but with the causal mask.",
    ),
    (
        "first token, lost first token",
        "Two explanations that controls can refute: that the damage comes from the first token "
        "looking ahead, and that it comes from losing that token. (Hidden, it leaves the role of attention "
        "sink to another.)",
    ),
    (
        "sweep, point, dial",
        "A sweep runs one model under many regimes, its points; what they vary is a dial, such as how "
        "many first tokens stay causal (sink) or how strongly the rest looks ahead (lambda).",
    ),
    (
        "damage, removed",
        "What bidirectional prefill costs against causal, untrained; and the share of it that a "
        "point gives back.",
    ),
    (
        "explore, confirm half",
        "The best of several is chosen on one half of the items and judged on the other.",
    ),
    ("nats", "The unit of log-likelihoods: one nat is a factor of 2.7 in probability."),
    ("churn", "Broken plus fixed: how many answers moved, which the net difference hides."),
    (
        "margin",
        "Log-likelihood of the right choice minus the best other, in nats. Above 0 is right.",
    ),
    (
        "retention",
        "Accuracy divided by stage 1's. Guessing alone keeps much of it, so the "
        "above-chance retention subtracts chance from both. What the prompt adds is the "
        "accuracy beyond that of the same choices without their prompts.",
    ),
    (
        "McNemar, Holm",
        "An exact test on broken against fixed; Holm corrects it for looking at several tasks.",
    ),
    ("stages", ". ".join(f"{stage.name}: {stage.what}" for stage in STAGES.values()) + "."),
)


def button() -> None:
    """The "?" button; h opens it from the keyboard."""
    if st.button("Help", key="help", icon=":material/help:", shortcut="h", type="tertiary"):
        _open()


@st.dialog("Help", width="medium")
def _open() -> None:
    words, keys, check = st.tabs(["Words", "Keys", "This installation"])
    with words:
        widgets.facts(GLOSSARY)
    with keys:
        widgets.facts(KEYS)
        widgets.note("Keys do nothing while you type in a field.")
    with check:
        widgets.facts(environment())


def environment() -> list[tuple[str, str]]:
    """Versions and folders, without importing anything heavy."""
    rows = [("python", platform.python_version())]
    for name in ("streamlit", "plotly", "pandas", "torch", "transformers"):
        installed = util.find_spec(name) is not None
        rows.append((name, metadata.version(name) if installed else "not installed"))
    rows += [(f"run folders {i + 1}", str(root)) for i, root in enumerate(runs_roots())]
    rows.append(("mode", "read-only" if is_read_only() else "read and write"))
    return rows
