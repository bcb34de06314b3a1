"""Panel 4 of the Overview: the base, the repair and its control, under both masks."""

from __future__ import annotations

from bidir_core.analyse import compare as core
from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.study import CAUSAL
from bidir_core.analyse.verdict import Judgement
from bidir_core.runs.layout import STAGE4
from bidir_ui.kit import fmt, html, widgets
from bidir_ui.overview import cards, pair_view
from bidir_ui.reading import data, pair, seeds, story
from bidir_ui.reading.data import RunInfo
from bidir_ui.reading.seeds import Group
from bidir_ui.reading.story import Training


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


def _study(study: Training, chosen: RunInfo) -> None:
    widgets.lead(
        "Fine-tuning raises accuracy on its own. What shows repair is the interaction: how much "
        "more the run trained with the new mask (3B) gains over its control (3C: same data, steps "
        "and seed, causal mask) under the new mask than under causal."
    )
    other = not study.some.same_items(chosen)
    tail = f"; the chosen pair below: {story.items_words(chosen)}" if other else ""
    seed = f", {study.seeds_words}" if study.seeds_words else ""
    adapters = ", LoRA adapters" if study.some.method == "lora" else ""
    widgets.note(f"Measured on {study.where}{adapters}{seed}{tail}.")
    repair, said = study.repair, list[str]()
    interaction = repair.interaction if repair else None
    gap = study.difference(("base", CAUSAL), ("3B", study.regime))
    if repair is not None and interaction is not None and interaction.estimate is not None:
        e = interaction.estimate
        lines = [
            f"Interaction: {fmt.points(e.value)} points {fmt.interval(e.low, e.high)}, "
            f"n = {fmt.count(e.n)}, {study.some.extent}, {seeds.each(repair.interaction_by_seed)}: "
            f"{_meaning(interaction)}."
        ]
        if row := study.difference(("3C", CAUSAL), ("3B", study.regime)):
            lines.append(
                f" At equal training, 3B under bidirectional prefill against 3C left causal: "
                f"{pair_view.delta_text(row.judgement)}; {row.words}."
            )
        widgets.lead(*lines)
        _all_seeds(study, interaction.n_seeds)
        said += lines
    elif gap is not None:
        widgets.lead(
            f"Stage 4 against stage 1: {pair_view.delta_text(gap.judgement, study.some.extent)}; {gap.words}. "
            "Without its control this may be ordinary tuning."
        )
    if any(study.four.values()):
        _two_by_two(study)
    if study.missing:
        widgets.note(
            f"The complete study also needs {', '.join(study.missing)}, on the same items in the "
            "same number format, with their items kept."
        )
    if study.base is not None:
        runs = [study.untrained] if study.untrained else []
        runs += [run for group in study.every for run in group.runs if run.has_items]
        names = {run.id: f"{run.arm_label}, evaluated {run.regime}" for run in runs}
        if study.untrained:
            names[study.untrained.id] = "not trained, evaluated bidirectional"
        said += pair_view.show(study.base, runs, names, "tuned")
    widgets.explain_undecided(*said)
    if any(not run.has_items for group in study.every for run in group.runs):
        _every(study)


def _all_seeds(study: Training, paired: int) -> None:
    """What the seeds without items say: values, no interval."""
    by_seed = study.by_accuracy
    if len(by_seed) <= paired:
        return
    each = ", ".join(fmt.points(value) for value in by_seed.values())
    widgets.note(
        f"The interval is of the seeds that hold items here. From accuracies alone, training seeds "
        f"{', '.join(map(str, by_seed))}: {each} points."
    )


def _every(study: Training) -> None:
    """A row for each fine-tune, its seeds together; those without items are nowhere else."""
    html.show(html.div("b", html.el("b", "All fine-tunes"), f", on {study.where}"))
    arms: dict[object, dict[str, Group]] = {}
    for group in study.every:
        arms.setdefault(group.some.arm, {})[group.some.regime] = group
    firsts = [next(iter(by.values())) for by in arms.values()]
    label = {group.some.id: group.label for group in firsts}
    extra = data.apart((group.some for group in firsts), lambda run: label[run.id])
    rows = [
        (
            label[group.some.id] + extra[group.some.id],
            *(_level(by.get(regime)) for regime in (study.regime, CAUSAL)),
            _kept(by),
        )
        for group, by in zip(firsts, arms.values())
    ]
    rows.sort(key=lambda row: str(row[0]).casefold())
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


def _meaning(interaction: Judgement) -> str:
    return {
        "better": "part of the gain is repair of the mask, not ordinary tuning",
        "worse": "the control gains more under the new mask than 3B does",
    }.get(interaction.verdict, "repair cannot be told from ordinary tuning")


def _two_by_two(study: Training) -> None:
    """Accuracy of base, 3B and 3C under both masks, and the differences in the margins."""
    own = study.regime
    cells: dict[str, list[Group | None]] = {
        "base": [Group((run,)) if run else None for run in (study.untrained, study.base)]
    }
    labels = {"base": "Base, not trained"}
    for arm, words in (("3B", "trained with the new mask"), ("3C", "control, trained causal")):
        cells[arm] = [study.four[arm, regime] for regime in (own, CAUSAL)]
        group = cells[arm][0] or cells[arm][1]
        labels[arm] = f"{group.label if group else arm}, {words}"
    table: list[tuple[object, ...]] = [
        (
            labels[arm],
            *map(_level, groups),
            _difference(study.difference((arm, CAUSAL), (arm, own))),
        )
        for arm, groups in cells.items()
    ]
    interaction = study.repair.interaction if study.repair else None
    gaps = (_difference(study.difference(("3C", r), ("3B", r))) for r in (own, CAUSAL))
    both = html.join("interaction ", _difference(interaction)) if interaction else fmt.NONE
    table.append(("3B − 3C, points", *gaps, both))
    head = (
        "Macro accuracy",
        "Bidirectional",
        "Causal",
        html.join("Bidirectional − causal ", widgets.small("points, 95 % interval")),
    )
    html.show(widgets.table(head, table, total=True))


def _level(group: Group | None) -> object:
    """Mean accuracy, and how far the seeds spread."""
    if group is None:
        return "not run"
    spread = group.spread()
    mean = fmt.percent(group.mean())
    return html.join(mean, " ", widgets.small(spread)) if spread else mean


def _difference(difference: Contrast | Judgement | None) -> html.Html | str:
    judged = difference.judgement if isinstance(difference, Contrast) else difference
    if judged is None or judged.estimate is None:
        return fmt.NONE
    e = judged.estimate
    return html.join(fmt.points(e.value), " ", widgets.small(fmt.interval(e.low, e.high)))


def _published(told: story.Story) -> None:
    stage4 = told.published.get(STAGE4)
    drop = cards.published_drop(told)
    if stage4 is not None and drop is not None:
        widgets.note(
            f"Published, another model: stage 1 {fmt.percent(drop[0])}, stage 2 "
            f"{fmt.percent(drop[1])}, stage 4 {fmt.percent(stage4.macro.get('acc'))}, with no "
            "control reported. Numbers only."
        )
