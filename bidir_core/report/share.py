"""A small website of what the runs show, to open from disk: an abstract, the scorecard, the flips,
and a page for each of the top items with why it flips and where its model attends.

Pages are rendered here from one template; no server, nothing to fetch. Texts of models and data sets
are escaped, and each page's own policy forbids to load or send anything (:mod:`.html_page`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bidir_core.analyse.pairing import pair
from bidir_core.analyse.study import items_key
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged
from bidir_core.common.version import __version__
from bidir_core.data.items import name_of
from bidir_core.explain.configs import RESULT
from bidir_core.report.charts import verdict_row
from bidir_core.report.html_page import (
    POLICY,
    FlipRow,
    FlipTable,
    flip_table,
    inlined,
    template,
)
from bidir_core.report.made_folder import MadeFolder
from bidir_core.report.rows import Row as ChartRow
from bidir_core.report.rows import interval_rows
from bidir_core.report.scorecard import Cell, Row, answer, scorecard
from bidir_core.runs.dials import COMMITTED, STRENGTHS, read_dials
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import runs_roots
from bidir_core.runs.read import read_object
from bidir_core.runs.run import Run
from bidir_core.runs.shapes import WHY

SITE = MadeFolder("--out", "bidir_core share")
COMMAND = "python -m bidir_core share --out DIR"
MOST_BYTES = 10_000_000
TOP = 4  # flips of each kind in each task of a model; fewer where the site would grow too large
KINDS = ("broken", "fixed")
QUESTIONS = {
    "hurt": "Does it hurt?",
    "why": "Why?",
    "repair": "Can it be repaired?",
    "helps": "Does it help anywhere?",
}
RESTORED = {
    "single": "this layer alone",
    "from_first": "the first to this one",
    "from_last": "this one to the last",
}
# Settings that two runs of the same items, regime and number format must share to be alike.
READING = ("checkpoint", "context", "bos", "patch")
MEASURES = {"future": "on later tokens", "first": "on the first token"}
Tell = Callable[[float, str], object]  # the share that is done, and what comes next


class Strip(NamedTuple):
    """One value of a strip: how strong (-1 to 1), its tooltip, a mark, and a text of its own."""

    strength: float
    title: str
    mark: str = ""
    text: str = ""


# Of an item's prompt, by measure and regime: a share of the attention for each layer.
Attention = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class ItemPage:
    """One item of one model: both runs' scores, and what explains the flip where that is known."""

    path: str
    row: FlipRow
    model: str
    why: Mapping[str, Any] | None = None
    attention: Attention | None = None
    dials: Mapping[str, Any] | None = None

    @property
    def is_explained(self) -> bool:
        return any(part is not None for part in (self.why, self.attention, self.dials))

    @property
    def likely(self) -> list[tuple[float, float]]:
        """For each choice, how likely it is among the choices, in both runs."""
        sides = [[choice.ll_a for choice in self.row.choices], [c.ll_b for c in self.row.choices]]
        first, second = map(_softmax, sides)
        return list(zip(first, second, strict=True))


@dataclass(frozen=True)
class ModelFlips:
    """A model's flips: the counts over all of its items, and the items that have a page."""

    title: str
    table: FlipTable
    pages: tuple[ItemPage, ...]


@dataclass(frozen=True)
class Site:
    """Everything that the pages show."""

    rows: Sequence[Row]
    flips: Sequence[ModelFlips]
    newest: date | None
    problems: Sequence[str] = field(default=())

    @property
    def pages(self) -> list[ItemPage]:
        """All of them, those that say why first."""
        pages = [page for model in self.flips for page in model.pages]
        return sorted(pages, key=lambda page: not page.is_explained)


def collect(
    roots: Sequence[Path | str] | None = None,
    *,
    top: int = TOP,
    tell: Tell = lambda share, next_step: None,
) -> Site:
    """What all runs under ``roots`` show. UserError if no model has a finished evaluation.

    ``top``: flips of each kind, in each task of each model, that get a page; items that were
    explained (``why``) or looked into (``attend``) get one besides.
    """
    tell(0.0, "the scorecard")
    runs = list_runs(roots, points=True)
    rows = scorecard(runs)
    if not rows:
        raise UserError(
            "there is nothing to share: no model has a finished evaluation; make the first two "
            "with `python -m bidir_core eval`, the second with --prefill-bidirectional"
        )
    by_id = {run.id: run for run in runs}
    known = _Known(runs, runs_roots() if roots is None else [Path(root) for root in roots])
    flips: list[ModelFlips] = []
    problems: list[str] = []
    for done, row in enumerate(rows, 1):
        tell(0.3 + 0.5 * done / len(rows), f"flips of {row.title}")
        try:
            model_flips = _flips(row, by_id, known, top, sum(len(model.pages) for model in flips))
        except UserError as error:
            problems.append(f"{row.title}: {error}")
            continue
        if model_flips is not None:
            flips.append(model_flips)
    created = [run.created.date() for run in runs if run.created is not None]
    return Site(rows, flips, max(created, default=None), problems)


def write_site(folder: Path | str, roots: Sequence[Path | str] | None = None) -> Path:
    """Write the site into a new or empty folder, or over an older one of its own, in one rename.

    UserError, and nothing written, if there is nothing to show or the folder holds other files.
    """
    SITE.check(folder)
    files = rendered(roots)
    return SITE.make(folder, COMMAND, lambda path: _write(files, path))


def zip_site(name: str, tell: Tell) -> bytes:
    """The same folder as one ZIP file, in which it is called ``name``; nothing stays on disk."""
    files = rendered(None, tell)
    return SITE.zipped(name, COMMAND, lambda path: _write(files, path))


def rendered(
    roots: Sequence[Path | str] | None = None, tell: Tell = lambda share, next_step: None
) -> dict[str, str]:
    """Every file of the site by its path, with as many items as fit."""
    top = TOP
    while True:
        files = render(collect(roots, top=top, tell=tell))
        size = sum(len(text.encode()) for text in files.values())
        if size <= MOST_BYTES:
            return files
        if not top:
            raise UserError(
                f"the site would take {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}: too "
                "many items are explained; name fewer runs with --runs-dir"
            )
        top //= 2


def render(site: Site) -> dict[str, str]:
    """The start page and the items' pages."""
    common = {
        "policy": POLICY,
        "css": inlined("report.css", "rows.css", "site.css"),
        "site": site,
        "version": __version__,
        "command": COMMAND,
        "questions": QUESTIONS,
    }
    page = template("site.html.j2")
    first = site.rows[0]
    steps, items = against_causal(first), f"{first.extent}, n = {formatting.count(first.n)}"
    axis = f"Accuracy against reading left to right, in points, with 95 % intervals ({items})"
    chart = interval_rows(steps, reference=0.0, axis=axis) if steps else ""
    files = {
        "index.html": page.render(
            **common,
            item=None,
            answer=answer(first),
            first=first,
            chart=chart,
            signs=SIGNS,
            number=number,
            script=inlined("site.js"),
        )
    }
    pages = site.pages
    for index, item in enumerate(pages):
        files[item.path] = page.render(
            **common,
            item=item,
            before=pages[index - 1] if index else None,
            after=pages[index + 1] if index + 1 < len(pages) else None,
            measures=MEASURES,
            attention_strips=attention_strips,
            dial_strips=dial_strips,
            layer_strips=layer_strips,
            token_strip=token_strip,
            strengths=[f"{strength:g}" for strength in STRENGTHS],
        )
    return files


def against_causal(row: Row) -> list[ChartRow]:
    """A model's steps against causal, one row each; where one is on other items, it says how many."""
    steps = []
    for label, judged in row.steps:
        if judged.estimate is not None:
            n = judged.estimate.n
            items = "" if n == row.n else f" (n = {formatting.count(n)})"
            steps.append(verdict_row(label + items, judged.estimate.value, judged))
    return steps


def number(cell: Cell) -> str:
    """A cell's number with its interval and n."""
    if math.isnan(cell.value):
        return ""
    estimate = cell.judgement.estimate
    text = verdict_row("", cell.value, cell.judgement).text
    return text if estimate is None else f"{text}, n = {formatting.count(estimate.n)}"


SIGNS = {"supports": "✓", "refutes": "✕", "undecided": "○"}


def _write(files: Mapping[str, str], folder: Path) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


# --- items ---------------------------------------------------------------------------------------


class _Known:
    """What is known of single items, by model, regime and item."""

    def __init__(self, runs: Iterable[Run], roots: Iterable[Path]) -> None:
        self.dials: dict[tuple[str, str], Mapping[str, Any]] = {}
        for root in roots:
            for dials in _read_dials(root / COMMITTED.name):
                self.dials.setdefault((str(dials["model"]), str(dials["item"])), dials)
        self.why: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self.attention: dict[tuple[str, str], Attention] = {}
        for run in runs:  # newest first
            kind = run.config.get("kind")
            if run.state != "done" or run.settings.get("checkpoint"):
                continue
            if kind == "why" and (why := _read_why(run)) is not None:
                item = f"{name_of(str(run.settings.get('task')))}/{run.settings.get('doc_id')}"
                self.why.setdefault((run.model, run.regime, item), why)
            elif kind == "attend" and (seen := _read_attention(run)) is not None:
                self.attention.setdefault((run.model, str((run.metrics or {})["item"])), seen)

    def why_of(self, model: str, regime: str, flip: FlipRow) -> Mapping[str, Any] | None:
        """The newest explanation of this very item, not of other data of this name."""
        why = self.why.get((model, regime, flip.item_id))
        return why if why is not None and why.get("doc_hash") == flip.doc_hash else None

    def items(self, model: str, regime: str) -> set[str]:
        alone = [*self.attention, *self.dials]
        return {item for m, r, item in self.why if (m, r) == (model, regime)} | {
            item for m, item in alone if m == model
        }


def _read_why(run: Run) -> Mapping[str, Any] | None:
    """An explanation of the plain accuracy's choice, as the command wrote it."""
    try:
        why = read_object(run.path, RESULT, WHY)
    except (FileNotFoundError, Damaged):
        return None
    return why if why["metric"] == "acc" else None


def _read_dials(path: Path) -> list[Mapping[str, Any]]:
    """The whole items of a file of ``why --export``; none of a file that is not one."""
    try:
        return [item for item in read_dials(path) if is_whole(item)]
    except (UserError, KeyError, TypeError):
        return []


def is_whole(item: Mapping[str, Any]) -> bool:
    """Whether an item of ``why --export`` has every score."""
    try:
        shape = np.shape(item["scores"])
        has_shape = len(shape) == 4 and shape[0] == 2 and shape[2] == len(STRENGTHS)
        return has_shape and shape[1] > 0 and 0 <= int(item["gold"]) < shape[3]
    except (KeyError, TypeError, ValueError):
        return False


def _read_attention(run: Run) -> Attention | None:
    """A single item's attention; None for averages, prompts of one's own and damaged files."""
    metrics = run.metrics or {}
    if metrics.get("mode") != "sequence" or not metrics.get("item"):
        return None
    try:
        shares = {
            measure: {
                str(seen["regime"]): [float(x) for x in seen["layers"]["prefix"][measure]]
                for seen in metrics["observed"]
            }
            for measure in MEASURES
        }
        numbers = [x for by in shares.values() for layers in by.values() for x in layers]
        are_shares = numbers and all(0 <= x <= 1.001 for x in numbers)
        return shares if are_shares and all(map(len, shares["first"].values())) else None
    except (KeyError, TypeError, ValueError):
        return None


def _flips(
    row: Row, by_id: Mapping[str, Run], known: _Known, top: int, start: int
) -> ModelFlips | None:
    """The model's top flips from causal to looking ahead; None where no items were kept."""
    runs = [by_id.get(name) for name in row.hurt.runs] if row.hurt is not None else []
    if len(runs) != 2 or any(run is None or not run.has_items for run in runs):
        return None
    a, b = (_with_scores(run, by_id.values()) for run in runs if run is not None)
    also = known.items(row.model, b.regime)
    table = flip_table(
        a.regime, b.regime, pair(a, b, "acc"), top, kinds=KINDS, by_task=True, also=also
    )
    pages = tuple(
        ItemPage(
            path=f"items/{start + number:03d}-{_safe(flip.item_id)}.html",
            row=flip,
            model=row.title,
            why=known.why_of(row.model, b.regime, flip),
            attention=known.attention.get((row.model, flip.item_id)),
            dials=known.dials.get((row.model, flip.item_id)),
        )
        for number, flip in enumerate(table.rows, 1)
    )
    return ModelFlips(row.title, table, pages)


def _with_scores(run: Run, runs: Iterable[Run]) -> Run:
    """The run, or one of the same items under the same regime that kept the choices' scores."""
    same = (
        candidate
        for candidate in runs
        if candidate.regime == run.regime
        and candidate.has_items
        and items_key(candidate, dtype=True) == items_key(run, dtype=True)
        and all(candidate.settings.get(name) == run.settings.get(name) for name in READING)
    )
    for candidate in (run, *same):
        scores = candidate.items_table(("ll",)).column("ll")
        if scores.null_count < len(scores):
            return candidate
    return run


def _safe(text: str) -> str:
    """The text as a part of a file name or an address."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:60].strip("-")


def _softmax(values: Sequence[float]) -> list[float]:
    largest = max(values)
    shares = [math.exp(value - largest) for value in values]
    return [share / math.fsum(shares) for share in shares]


def dial_strips(dials: Mapping[str, Any]) -> list[tuple[str, list[Strip]]]:
    """How likely the right answer is at each strength, with parts of the prompt left causal."""
    scores, gold = dials["scores"], int(dials["gold"])

    def at(reading: Sequence[float], where: str) -> Strip:
        likely = _softmax([score / 100 for score in reading])
        mark = "✓" if likely[gold] == max(likely) else ""
        return Strip(likely[gold], f"{where}: right answer {100 * likely[gold]:.0f} %", mark)

    cuts = sorted({1, 2, 3, 4, 6, len(scores[0]) // 2} & set(range(1, len(scores[0]))))
    rows = [("nothing left causal", scores[0][0]), ("first token causal", scores[1][0])]
    rows += [
        ("first layer causal" if n == 1 else f"first {n} layers causal", scores[0][n]) for n in cuts
    ]
    return [
        (label, [at(x, f"{label}, strength {s:g}") for s, x in zip(STRENGTHS, row)])
        for label, row in rows
    ]


def attention_strips(shares: Attention) -> list[tuple[str, list[Strip]]]:
    return [
        (
            f"{MEASURES[measure]}, {regime}",
            [Strip(x, f"Layer {i}: {100 * x:.0f} %") for i, x in enumerate(layers)],
        )
        for measure, by_regime in shares.items()
        for regime, layers in by_regime.items()
    ]


def token_strip(why: Mapping[str, Any]) -> list[Strip]:
    """What putting each prompt token back to causal does, with the token's text."""
    strip = []
    for point in why["tokens"]:
        text = "".join(why["pieces"][point["first"] : point["last"] + 1])
        strip.append(restored(why, point, "causal again", text))
    return strip


def layer_strips(why: Mapping[str, Any]) -> list[tuple[str, list[Strip]]]:
    """For each kind of restoration, what it brings back in each layer."""
    return [
        (
            label,
            [restored(why, p, f"Layer {i}, {label}") for i, p in enumerate(why["layers"][kind])],
        )
        for kind, label in RESTORED.items()
    ]


def recovered(why: Mapping[str, Any], point: Mapping[str, Any]) -> float:
    """How much of the lost lead a restoration brings back: 0 as the regime, 1 as causal."""
    full, none = why["causal"]["lead"], why["opened"]["lead"]
    return (point["lead"] - none) / (full - none) if full != none else 0.0


def restored(why: Mapping[str, Any], point: Mapping[str, Any], part: str, text: str = "") -> Strip:
    """What putting one part of the attention back to causal does; ✓: the causal answer is back."""
    share = recovered(why, point)
    back = bool(why["flips"]) and point["choice"] == why["causal"]["choice"]
    title = f"{part}: choice {point['choice']}, {100 * share:.0f} % of the lead recovered"
    return Strip(max(-1.0, min(1.0, share)), title, "✓" if back else "", text)
