"""Panel 3 of the Overview: whether one token carries the damage, with its placebo, or what to run."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.analyse import compare as core
from bidir_core.analyse import selection
from bidir_core.analyse.contrasts import Contrast
from bidir_ui.kit import html, url, widgets
from bidir_ui.overview import pair_view
from bidir_ui.reading import pair, seeds, story
from bidir_ui.reading.data import RunInfo
from bidir_ui.reading.seeds import Group

SINK = "bidirectional:sink=1"
PLAIN = "bidirectional"
PLACEBO = "bidirectional:skip=8"  # what is offered to run; any single later token will do


@dataclass(frozen=True)
class Source:
    """The runs that tell where the damage comes from, all on the same items and number format."""

    base: RunInfo
    plain: RunInfo | None
    sink: RunInfo | None
    placebo: RunInfo | None

    @property
    def left(self) -> Contrast | None:
        """With the first token causal, against stage 1."""
        return _difference(self.base, self.sink)

    @property
    def gained(self) -> Contrast | None:
        """What keeping the first token causal gains over plain bidirectional prefill."""
        return _difference(self.plain, self.sink)

    @property
    def headline(self) -> Contrast | None:
        """What card and panel both quote: the gain, or without a plain run what is left."""
        return self.gained or self.left

    @property
    def against(self) -> str:
        """What :attr:`headline` is measured against."""
        return "plain bidirectional prefill" if self.gained else "stage 1"

    @property
    def gained_by_placebo(self) -> Contrast | None:
        """The same for another single token."""
        return _difference(self.plain, self.placebo)

    @property
    def beyond_placebo(self) -> Contrast | None:
        return _difference(self.placebo, self.sink)


def find(told: story.Story) -> Source | None:
    """On whole validation sets if they were run with sink=1, because the effect left is small."""
    if told.a is None:
        return None
    sets = [(told.a, tuple(run for run in (told.b, *told.regimes) if run))]
    if told.whole and any(run.regime == SINK for run in told.whole[1]):
        sets.insert(0, told.whole)
    base, runs = sets[0]
    by_regime = {run.regime: run for run in reversed(runs)}
    placebo = selection.best_placebo(runs, lambda run: run.macro.get("acc"))
    return Source(base, by_regime.get(PLAIN), by_regime.get(SINK), placebo)


def _difference(a: RunInfo | None, b: RunInfo | None) -> Contrast | None:
    return seeds.difference(Group((a,)), Group((b,))) if a and b else None


def title(source: Source) -> str:
    """A claim only where keeping the token causal gains more than chance allows."""
    gained, beyond = source.gained, source.beyond_placebo
    if gained is None or gained.verdict != "better" or (beyond and beyond.verdict != "better"):
        return "Where does it come from?"
    # What helps need not be where it comes from: another token that sees only itself helps too.
    return "The first token causal helps, a placebo less" if beyond else "One token causal helps"


def draw(told: story.Story, result: core.Comparison | None) -> None:
    """What keeping one token causal gains, its placebo, then every dial that was run."""
    source = find(told)
    if result is None or source is None or told.a is None or told.b is None:
        return pair.no_pair()
    said = _known(source)
    sets = []
    if told.regimes:
        sets.append(("regimes", told.a, [told.b, *told.regimes]))
    if told.whole:
        sets.append(("whole", told.whole[0], list(told.whole[1])))
    sets.sort(key=lambda each: each[1] != source.base)  # first the items quoted above
    for number, (key, base, runs) in enumerate(sets):
        way = "The same" if number else "Each row lets the prompt look ahead in a different way"
        html.show(html.div("b", html.el("b", way), f", on {story.items_words(base)}"))
        said += pair_view.show(base, runs, {run.id: run.regime for run in runs}, key)
    widgets.explain_undecided(*said)
    _unknown(source)
    widgets.page_link("lab", "Lab: dose response, layers and controls", url.params(), "science")
    return None


def _known(source: Source) -> list[str]:
    """What keeping the first token causal did, in sentences; those are drawn and returned."""
    headline, placebo = source.headline, source.gained_by_placebo
    if headline is None:
        return []

    def said(contrast: Contrast) -> str:
        return pair_view.delta_text(contrast.judgement, source.base.extent)

    lines = [
        "If looking ahead as such did the damage, keeping one token causal would change little. "
        f"Keeping the first one causal (sink=1) changes macro accuracy by {said(headline)} "
        f"against {source.against}; {headline.words}."
    ]
    left = source.left
    if source.gained is not None and left is not None:
        lines.append(f" Against stage 1 that leaves {said(left)}; {left.words}.")
    if placebo is not None and source.placebo is not None:
        dial = source.placebo.regime.partition(":")[2]
        lines.append(
            f" The placebo, another single token ({dial}): {said(placebo)}; {placebo.words}."
        )
    widgets.lead(*lines)
    widgets.note(f"Measured on {story.items_words(source.base)}, {source.base.model}.")
    return lines


def _unknown(source: Source) -> None:
    """What these runs cannot say, and the commands that would."""
    limit = f" --limit {source.base.limit}" if source.base.limit else ""
    tail = f"{limit} --model {source.base.model}"
    if source.sink is None:
        widgets.not_run(
            "Whether one token carries it. The first token is the usual attention sink; keep it "
            "causal, and as the placebo another one:",
            f"{pair.EVAL} --regime {SINK}{tail}",
            f"{pair.EVAL} --regime {PLACEBO}{tail}",
        )
    elif source.placebo is None:
        widgets.not_run(
            "The placebo: whether it is this token, or any single one would do:",
            f"{pair.EVAL} --regime {PLACEBO}{tail}",
        )
    widgets.note(
        "A measurement on the model and items named above, not a law: other models may differ."
    )
