"""What is behind the "?": keys, the words used, and a check of this installation."""

from __future__ import annotations

import platform
from importlib import metadata, util

import streamlit as st

from bidir_core.run_layout import is_read_only, runs_roots
from bidir_ui import html, widgets

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
    ("acc, acc_norm", "Share of items whose right choice has the largest log-likelihood; for "
     "acc_norm, the largest per character."),
    ("chance", "Expected share right when guessing: the mean of 1 / number of choices."),
    ("95 % interval", "Differences within this range are compatible with the data. If it includes "
     "0, the difference is not separable from 0 with this many items."),
    ("paired", "Both runs answered the same items, so the interval comes from the items that "
     "changed, not from two separate error bars."),
    ("flip", "An item whose correctness differs: broken (right to wrong) or fixed (wrong to right). "
     "changed_wrong moved from one wrong choice to another."),
    ("undecided, needs about n", "The interval includes 0 and does not fit within ±1 point. "
     + widgets.UNDECIDED.partition(": ")[2].capitalize() + " Not a promise: with more items the "
     "difference may move."),
    ("interaction", "How much more 3B gains over its control 3C under the new mask than under "
     "causal. Above 0, part of the gain is repair of the mask, not ordinary tuning."),
    ("churn", "Broken plus fixed: how many answers moved, which the net difference hides."),
    ("margin", "Log-likelihood of the right choice minus the best other, in nats. Above 0 is right."),
    ("retention", "Accuracy divided by stage 1's. Guessing alone keeps much of it, so the "
     "above-chance retention subtracts chance from both."),
    ("McNemar, Holm", "An exact test on broken against fixed; Holm corrects it for looking at "
     "several tasks."),
    ("stages", "1: base model, causal. 2: base model, bidirectional prefill. 3B: fine-tuned with a "
     "bidirectional prompt. 3C: the control, the same fine-tune with a causal prompt. 4: the 3B "
     "model, evaluated bidirectionally."),
)  # fmt: skip


def button() -> None:
    """The "?" button; h opens it from the keyboard."""
    if st.button("Help", key="help", icon=":material/help:", shortcut="h", type="tertiary"):
        _open()


@st.dialog("Help", width="medium")
def _open() -> None:
    words, keys, check = st.tabs(["Words", "Keys", "This installation"])
    with words:
        _pairs(GLOSSARY)
    with keys:
        _pairs(KEYS)
        widgets.note("Keys do nothing while you type in a field.")
    with check:
        _pairs(environment())


def environment() -> list[tuple[str, str]]:
    """Versions and folders, without importing anything heavy."""
    rows = [("python", platform.python_version())]
    for name in ("streamlit", "plotly", "pandas", "torch", "transformers"):
        found = util.find_spec(name) is not None
        rows.append((name, metadata.version(name) if found else "not installed"))
    rows += [(f"run folders {i + 1}", str(root)) for i, root in enumerate(runs_roots())]
    rows.append(("mode", "read-only" if is_read_only() else "read and write"))
    return rows


def _pairs(rows: object) -> None:
    cells = [part for name, text in rows for part in (html.el("dt", name), html.el("dd", text))]  # type: ignore[attr-defined]
    html.show(html.el("dl", *cells, cls="b b-kv"))
