"""Panel 4 of the Overview: the base, the repair and its control, under both masks."""

from __future__ import annotations

from bidir_core.analyse import compare as core
from bidir_core.analyse import stats
from bidir_ui.kit import fmt, html, widgets
from bidir_ui.overview import cards, pair_view
from bidir_ui.reading import data, pair, seeds, story
from bidir_ui.reading.data import RunInfo
from bidir_ui.reading.seeds import Group
from bidir_ui.reading.story import BIDIRECTIONAL, CAUSAL, Repair


def draw(told: story.Story, result: core.Comparison | None) -> None:
    """The 2x2 with its interaction, then every fine-tune against stage 1."""
    if told.a is None:
        return pair.no_pair()
    study = told.repair
    if study is None:
        widgets.not_run(
            "The pipeline runs every stage on the same items: fine-tunes with the new mask (3B) "
            "and with the causal mask (3C, the control), then evaluates both.",
            pair.pipeline_command(told.a.model),
        )
    else:
        _study(study, told.a)
    _published(told)
    return None


def _study(study: Repair, chosen: RunInfo) -> None:
    widgets.lead(
        "Fine-tuning raises accuracy on its own. What shows repair is the interaction: how much "
        "more the run trained with the new mask (3B) gains over its control (3C: same data, steps "
        "and seed, causal mask) under the new mask than under causal."
    )
    other = not study.some.same_items(chosen)
    tail = f"; the chosen pair below: {story.items_words(chosen)}" if other else ""
    seed = f", {study.seeds_words}" if study.cells else ""
    adapters = ", LoRA adapters" if study.some.method == "lora" else ""
    widgets.note(f"Measured on {study.where}{adapters}{seed}{tail}.")
    found, rows, said = study.interaction, study.contrasts, list[str]()
    if found is not None:
        e = found.estimate
        lines = [
            f"Interaction: {fmt.points(e.value)} points {fmt.interval(e.low, e.high)}, "
            f"n = {fmt.count(e.n)}, {study.some.extent}, {seeds.each(found.per_seed)}: "
            f"{_meaning(e)}."
        ]
        if "equal" in rows:
            row = rows["equal"]
            lines.append(
                f" At equal training, 3B under bidirectional prefill against 3C left causal: "
                f"{cards.delta_text(row)}; {row.words}."
            )
        widgets.lead(*lines)
        _all_seeds(study, len(found.per_seed))
        said += lines
    elif "stage4" in rows:
        row = rows["stage4"]
        widgets.lead(
            f"Stage 4 against stage 1: {cards.delta_text(row, study.some.extent)}; {row.words}. "
            "Without its control this may be ordinary tuning."
        )
    if study.cells:
        _two_by_two(study)
    if study.missing:
        widgets.note(
            f"The complete study also needs {', '.join(study.missing)}, on the same items in the "
            "same number format, with their items kept."
        )
    if study.base is not None:
        runs = ([study.untrained] if study.untrained else []) + study.runs
        names = {run.id: f"{run.arm_label}, evaluated {run.regime}" for run in runs}
        if study.untrained:
            names[study.untrained.id] = "not trained, evaluated bidirectional"
        said += pair_view.show(study.base, runs, names, "tuned")
    widgets.explain_undecided(*said)
    if any(not run.has_items for run in study.others):
        _every(study)


def _all_seeds(study: Repair, paired: int) -> None:
    """What the seeds without items say: values, no interval."""
    found = study.by_accuracy
    if len(found) <= paired:
        return
    each = ", ".join(fmt.points(value) for value in found.values())
    widgets.note(
        f"The interval is of the seeds that hold items here. From accuracies alone, training seeds "
        f"{', '.join(map(str, found))}: {each} points."
    )


def _every(study: Repair) -> None:
    """A row for each fine-tune, its seeds together; those without items are nowhere else."""
    html.show(html.div("b", html.el("b", "All fine-tunes"), f", on {study.where}"))
    arms: dict[object, dict[str, Group]] = {}
    for group in study.every:
        arms.setdefault(group.some.arm, {})[group.some.regime] = group
    firsts = [next(iter(by.values())) for by in arms.values()]
    label = {group.some.id: group.label for group in firsts}
    extra = data.apart((group.some for group in firsts), lambda run: label[run.id])
    named = {
        label[group.some.id] + extra[group.some.id]: by for group, by in zip(firsts, arms.values())
    }
    rows = [
        (
            name,
            _level(named[name].get(BIDIRECTIONAL)),
            _level(named[name].get(CAUSAL)),
            _kept(named[name]),
        )
        for name in sorted(named, key=str.casefold)
    ]
    head = ("Fine-tune", "Bidirectional", "Causal", "Seeds with items")
    html.show(widgets.table(head, rows))
    widgets.note("Mean macro accuracy, and lowest to highest seed; without items no interval.")


def _kept(by: dict[str, Group]) -> str:
    """Which training seeds hold items, and under which regime if not under all."""
    seeds_of = {
        regime: ", ".join(map(str, group.with_items.by_seed)) if group.with_items else ""
        for regime, group in sorted(by.items())
    }
    if len(set(seeds_of.values())) == 1:
        return next(iter(seeds_of.values())) or "none"
    return "; ".join(f"{which} ({regime})" for regime, which in seeds_of.items() if which)


def _meaning(e: stats.Estimate) -> str:
    if e.low > 0:
        return "part of the gain is repair of the mask, not ordinary tuning"
    if e.high < 0:
        return "the control gains more under the new mask than 3B does"
    return "repair cannot be told from ordinary tuning"


def _two_by_two(study: Repair) -> None:
    """Accuracy of base, 3B and 3C under both masks, and the differences in the margins."""
    base = [Group((run,)) if run else None for run in (study.untrained, study.base)]
    arms: dict[str, tuple[Group | None, Group | None]] = {"Base, not trained": (base[0], base[1])}
    for name, words in (("3B", "trained with the new mask"), ("3C", "control, trained causal")):
        bidirectional, causal = (study.cells.get((name, r)) for r in (BIDIRECTIONAL, CAUSAL))
        group = bidirectional or causal
        arms[f"{group.label if group else name}, {words}"] = (bidirectional, causal)
    table: list[tuple[object, ...]] = []
    for label, (bidirectional, causal) in arms.items():
        row = seeds.difference(causal, bidirectional)
        table.append(
            (
                label, _level(bidirectional), _level(causal),
                _difference(row.delta, row.low, row.high) if row else fmt.NONE,
            )
        )  # fmt: skip
    rows, found = study.contrasts, study.interaction
    e = found.estimate if found else None
    table.append(
        (
            "3B − 3C, points",
            *(
                _difference(rows[name].delta, rows[name].low, rows[name].high)
                if name in rows
                else fmt.NONE
                for name in (BIDIRECTIONAL, CAUSAL)
            ),
            html.join("interaction ", _difference(e.value, e.low, e.high)) if e else fmt.NONE,
        )
    )
    head = (
        "Macro accuracy", "Bidirectional", "Causal",
        html.join("Bidirectional − causal ", widgets.small("points, 95 % interval")),
    )  # fmt: skip
    html.show(widgets.table(head, table, total=True))


def _level(group: Group | None) -> object:
    """Mean accuracy, and how far the seeds spread."""
    if group is None:
        return "not run"
    spread = group.spread()
    mean = fmt.percent(group.mean())
    return html.join(mean, " ", widgets.small(spread)) if spread else mean


def _difference(value: float, low: float, high: float) -> html.Html:
    return html.join(fmt.points(value), " ", widgets.small(fmt.interval(low, high)))


def _published(told: story.Story) -> None:
    stage4 = told.published.get(story.STAGE4)
    drop = cards.published_drop(told)
    if stage4 is not None and drop is not None:
        widgets.note(
            f"Published, another model: stage 1 {fmt.percent(drop[0])}, stage 2 "
            f"{fmt.percent(drop[1])}, stage 4 {fmt.percent(stage4.macro.get('acc'))}, with no "
            "control reported. Numbers only."
        )
