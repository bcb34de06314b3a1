"""Try it: the item scored again at once, its prompt edited, or tokens and layers left causal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from bidir_core.common.errors import UserError
from bidir_core.data import item_texts
from bidir_core.data.items import choice_lengths
from bidir_core.jobs import playground
from bidir_core.jobs.playground import Answer, ModelWorker
from bidir_core.runs.layout import is_read_only
from bidir_ui import playground_view
from bidir_ui.item.item_view import Reading, choice_table
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import analysis, data
from bidir_ui.reading.data import RunInfo

MOST_TOKENS = 256  # to click; a longer prompt can be edited, and its layers left causal
POLL_SECONDS = 0.3
READINGS = {
    "causal": ("causal", "grey"),
    "regime": ("", "blue"),
    "changed": ("partly causal", "green"),
}
# A button's label is Markdown: characters that could start markup become look-alikes.
_INERT = str.maketrans(
    "*_`[]<>:~#$|\\@",
    "\u2217\u2017\u02cb\u2045\u2046\u2039\u203a\u2236\u223c\u266f\uff04\u00a6\u2216\u24d0",
)


def inert_label(text: str, length: int = 18) -> str:
    """A token as a button's label: its spaces seen, nothing in it read as Markdown."""
    shown = playground_view.shown(item_texts.visible(text))[:length].translate(_INERT)
    return shown.replace("www", "w\u200aww")  # else it becomes a link


def section(run: RunInfo, record: Mapping[str, Any], metric: str) -> None:
    """Offered where this machine may load the run's model and the item's texts are here."""
    settings = data.run_of(run).settings
    if is_read_only() or record["contexts"] is None or not run.can_pair or run.is_imported:
        return
    title = "Try it: leave tokens or layers causal, or edit the prompt"
    fold = st.expander(title, key="try", on_change="rerun")
    if not fold.open:
        return
    with fold:
        if settings.get("chat_template"):
            widgets.note("Not for a run that read its prompts in a chat template.")
            return
        worker = playground.shared()
        if not _ready(worker, run):
            return
        texts = _texts(record)
        regime = run.regime if run.regime.startswith("bidirectional") else "bidirectional"
        pieces = _pieces(record, texts)
        tokens = _clicked("Tokens left causal", "ct", [inert_label(piece) for piece in pieces])
        n_layers = int(worker.facts["n_layers"])
        layers = _clicked("Layers left causal", "cl", [str(layer) for layer in range(n_layers)])
        request = {
            "contexts": texts,
            "continuations": list(record["continuations"]),
            "regime": regime,
            "causal_layers": layers,
            "causal_tokens": tokens,
            "bos": str(settings.get("bos") or "auto"),
        }
        _answer(worker, request, record, metric)


def _ready(worker: ModelWorker, run: RunInfo) -> bool:
    here = (worker.model, worker.checkpoint) == (run.model, run.checkpoint)
    if here and worker.state == "ready":
        return True
    widgets.say_what_failed("pg-error")
    if worker.state == "loading" or (here and worker.state in ("failed", "died")):
        playground_view.state_of(worker, here)
    if worker.state != "loading":
        widgets.note(
            "The model is loaded once, in its own process; then an answer takes about a second."
        )
        playground_view.load_button(f"Load {fmt.clip(run.model, 60)} …", run.model, run.checkpoint)
    return False


def _texts(record: Mapping[str, Any]) -> list[str]:
    """The contexts, edited. Only where all choices share one: elsewhere they are the choices."""
    contexts = [str(text) for text in record["contexts"]]
    if len(contexts) > 1:
        return contexts
    key = f"try-{record['task']}/{record['doc_id']}"
    edited = st.text_area("Prompt", contexts[0], key=key, max_chars=8000, height=120)
    return [edited or contexts[0]]


def _pieces(record: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    """The tokens to click: the record's own, or of an edited prompt those of its last answer."""
    last = st.session_state.get("try-pieces")
    if last and last[0] == texts[0]:
        return last[1][:MOST_TOKENS]
    if texts[0] == record["contexts"][0] and record["prefix_token_offsets"] is not None:
        offsets = record["prefix_token_offsets"][0]
        return analysis.cut_into_tokens(texts[0], offsets)[:MOST_TOKENS]
    return []


def _clicked(label: str, name: str, labels: Sequence[str]) -> list[int]:
    """Numbers that are chosen among ``labels``, in the URL."""
    if not labels:
        return []
    chosen = url.bound(
        st.pills,
        label,
        name=name,
        selection_mode="multi",
        options=list(range(len(labels))),
        format_func=lambda number: labels[number],
        read=lambda text: [
            int(part) for part in text.split("~") if part.isdecimal() and int(part) < len(labels)
        ],
        write=lambda numbers: [str(number) for number in sorted(numbers)],
        wrap=True,
    )
    return [int(number) for number in chosen]


def _answer(
    worker: ModelWorker, request: dict[str, Any], record: Mapping[str, Any], metric: str
) -> None:
    """Ask when something changed; draw the answer when it is there."""
    asked = json.dumps([worker.model, worker.checkpoint, worker.started, request], sort_keys=True)
    key = hashlib.sha1(asked.encode()).hexdigest()
    known, name = st.session_state.get("try-asked", ("", ""))
    if known != key or worker.answer(name) is None:
        try:
            name = worker.rescore(**request)
        except UserError as error:
            widgets.banner("error", "No answer", str(error))
            return
        st.session_state["try-asked"] = (key, name)

    first = worker.answer(name)
    was_open = first is not None and first.is_open

    @st.fragment(run_every=POLL_SECONDS if was_open else None)
    def body() -> None:
        now = worker.answer(name)
        if now is None or now.is_open:
            widgets.note("Scoring …")
            return
        if was_open:
            st.session_state["try-pieces"] = (
                request["contexts"][0],
                now.result.get("pieces") or [],
            )
            st.rerun()  # and stop asking
        draw(now, request, record, metric)

    body()


def draw(given: Answer, request: Mapping[str, Any], record: Mapping[str, Any], metric: str) -> None:
    """Each choice under the three readings, and what leaving something causal did."""
    if given.state != "done" or not given.result:
        widgets.banner("error", "No answer", fmt.clip(given.error or given.state, 400))
        return
    ll = given.result["ll"]
    lengths = choice_lengths(record["continuations"]) if metric == "acc_norm" else None
    lengths = lengths or [1] * len(ll["causal"])
    scores = {
        reading: [value / length for value, length in zip(values, lengths, strict=True)]
        for reading, values in ll.items()
    }
    picks = {reading: values.index(max(values)) for reading, values in scores.items()}
    is_partial = bool(request["causal_layers"] or request["causal_tokens"])
    html.show(html.div("b b-lead", sentence(picks, int(record["gold"]), is_partial)))
    readings = []
    for reading, (label, colour) in READINGS.items():
        if is_partial or reading != "changed":
            name = label or request["regime"]
            readings.append(
                Reading(name, colour, ll[reading], picks[reading], f"{name} chooses it")
            )
    html.show(choice_table(record, readings))


def sentence(picks: Mapping[str, int], gold: int, is_partial: bool) -> str:
    """What the three readings choose, and whether what was left causal turned it back."""
    right = {True: "right", False: "wrong"}
    causal, regime, changed = picks["causal"], picks["regime"], picks["changed"]
    text = f"Causal chooses {causal} ({right[causal == gold]}), the regime {regime} "
    text += f"({right[regime == gold]})."
    if not is_partial:
        return text + " Click tokens or layers to leave them causal."
    if causal == regime:
        outcome = "the same" if changed == regime else "another answer"
        return f"{text} With these left causal it chooses {changed}: {outcome}."
    back = changed == causal
    return f"{text} With these left causal the answer {'is back' if back else 'is not back'}: {changed}."
