"""What docs/claims.json and docs/recipes.json say, as blocks of docs/ and as tables.

Each sentence follows from its numbers and can come out either way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from bidir_core.analyse.verdict import interval_text, size
from bidir_core.common import formatting
from bidir_core.runs.layout import COMMITTED_RUNS, NONPREFILL, STAGE1, STAGE2, STAGE4
from bidir_core.runs.run import Run
from scripts.pages import DOCS, Blocks, delta, table
from scripts.repair import judged
from scripts.study_runs import Names, estimate

STUDY = "qwen-1.5b"  # the second model's, in docs/claims-qwen-1.5b.json
MOST_STEPS, MOST_MEGABYTES = 100, 10  # the aims, fixed beforehand
ANSWERS = {"yes": "reached", "no": "not reached", "undecided": "undecided"}
Json = Mapping[str, Any]


def read(name: str) -> Any:
    return json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))


# Claims


def summary() -> str:
    """The page in five lines."""
    lines = summary_lines(read("claims")["claims"], read("recipes"))
    return "".join(f"- {line}\n" for line in lines)


def summary_lines(claims: Mapping[str, Json], recipes: Json) -> list[str]:
    """The lines of :func:`summary`, from claims that all have numbers."""

    def answer(key: str, lower: str, equivalent: str, higher: str) -> str:
        entry, word = claims[key]["confirm"], judged(claims[key])["word"]
        words = {"equivalent": equivalent, "different": lower if entry["value"] < 0 else higher}
        return f"{words.get(word, word)}, {interval(entry)}"

    lines = [
        f"**Is it repaired, beyond ordinary tuning?** {answer('interaction', 'no', 'no', 'yes')} "
        "points of interaction.",
        f"**Is it back at stage 1?** 3B: {answer('3b_stage1', 'below it', 'yes', 'above it')} points. "
        "Distillation, which teaches nothing new: "
        f"{answer('distil_stage1', 'below it', 'yes', 'above it')}.",
        "**Does bidirectional prefill still cost, at equal training?** 3B minus its causal "
        f"control: {answer('3b_control', 'yes', 'no', 'no, it gains')} points.",
    ]
    lora = [judged(claims[key])["reached"] for key in claims if key.startswith("lora_")]
    lines.append(
        f"**Does an adapter suffice?** Shown in {lora.count('yes')} of {len(lora)} comparisons, "
        f"shown not to in {lora.count('no')}."
    )
    chosen = chosen_recipe(recipes)
    part = on_confirm(chosen)
    claim = {"aim": "within or better", "margin": 1.0, "confirm": part["bidirectional"]}
    held = {"yes": "holds", "no": "does not hold", "undecided": "is undecided"}
    lines.append(
        f"**How little training?** {chosen['steps']} steps come within a point of stage 1 on "
        "the half and the seed that the recipe was chosen on; on the other half, with other "
        f"seeds where there are any, that {held[judged(claim)['reached']]}: "
        f"{interval(claim['confirm'])} points; {seeds_text(part['seeds'], claim['confirm'])}."
    )
    return lines


def claims() -> str:
    """What is claimed of all weights and of LoRA."""
    return differences([key for key in read("claims")["claims"] if not key.startswith("lora_")])


def every_claim() -> str:
    """The same with LoRA against all weights."""
    return differences(list(read("claims")["claims"]))


def differences(keys: Sequence[str]) -> str:
    """Differences on the confirm half and, labelled, on all items; the adapters' size."""
    data = read("claims")
    claimed = [data["claims"][key] for key in keys]
    complete = [claim for claim in claimed if claim.get("confirm") and claim.get("all")]
    rows = [
        [
            claim["what"],
            interval(claim["confirm"]),
            verdict(claim),
            aim(claim),
            interval(claim["all"]),
            seeds_text(claim["seeds"], claim["confirm"]),
        ]
        for claim in complete
    ]
    header = (
        "difference, points (95 % CI) | confirm half | verdict | aim | "
        "all items, explore among them | single seeds, confirm half"
    )
    n_confirm, n_all = (
        " or ".join(sorted({formatting.count(claim[fold]["n"]) for claim in complete}))
        for fold in ("confirm", "all")
    )
    sizes = [weight for weight in data["adapters"].values() if weight]
    largest = max(sizes, default=0) / 1e6
    within = "is within" if largest <= MOST_MEGABYTES else "is above"
    return (
        f"{table(header, rows)}\nn = {n_confirm} items on the confirm half, {n_all} in all. The largest of "
        f"{len(sizes)} adapters has {largest:.1f} MB, which {within} the {MOST_MEGABYTES} MB aimed at.\n"
    )


def repeats() -> str:
    """What training and evaluating the same run again changes."""
    repeated = read("claims")["repeats"]
    return (
        f"{repeated['n']} evaluations were made twice, trained again each time but for the base model's: "
        f"their macro accuracies on all items lie up to {repeated['largest']:.1f} points apart, which is a "
        f"standard deviation of {repeated['standard_deviation_of_one']:.2f} points for one.\n"
    )


def accuracy() -> str:
    """Macro accuracy of every arm."""
    rows = [
        [
            f"`{arm}`",
            str(max(cell["n_runs"] for cell in by_regime.values() if cell)),
            *(
                f"{cell[fold]:.1f}" if cell else "not run"
                for fold in ("confirm", "all")
                for cell in (by_regime["causal"], by_regime["bidirectional"])
            ),
        ]
        for arm, by_regime in read("claims")["accuracy"].items()
        if any(by_regime.values())
    ]
    columns = [f"{r}, {fold}" for fold in ("confirm", "all") for r in ("causal", "bidirectional")]
    return table(" | ".join(["arm", "runs", *columns]), rows)


# Recipes


def recipe() -> str:
    """The cheapest recipe, how it was chosen, and what it holds on the confirm half."""
    data = read("recipes")
    chosen = chosen_recipe(data)
    alone = list(chosen["seconds_alone"].values())
    weights = "all weights" if chosen["method"] == "full" else "a LoRA adapter"
    below = "below" if chosen["steps"] < MOST_STEPS else "not below"
    text = (
        f"Rule, fixed beforehand: {data['rule']}.\n\n"
        f"Of {len(data['recipes'])} recipes, this one: `{chosen['name']}` ({chosen['objective']}, {weights}, "
        f"learning rate {chosen['lr']:g}): {chosen['steps']} steps, which is {below} {MOST_STEPS}; "
        f"{formatting.count(chosen['tokens'])} useful tokens; {min(alone):.1f} to {max(alone):.1f} s of "
        f"training, alone on one {chosen['device']}. "
        f"On explore: {interval(chosen['explore']['bidirectional'])} points. With the seeds not looked at, "
        f"on explore too: {interval(chosen['explore_fresh_seeds']['bidirectional'])}.\n\n"
    )
    part = on_confirm(chosen)
    for regime, goal in (("bidirectional", "within or better"), ("causal", "none")):
        title = f"confirm half, seeds not looked at in choosing, {regime}, minus stage 1"
        claim = {"what": title, "aim": goal, "margin": 1.0, "seeds": part["seeds"]}
        text += f"- {sentence({**claim, 'confirm': part[regime]})}\n"
    return text


def chosen_recipe(data: Json) -> Json:
    return next(entry for entry in data["recipes"] if entry["name"] == data["chosen"])


def recipes() -> str:
    """All that were tried."""
    rows = [
        [
            f"`{entry['name'].removeprefix('recipe-')}`",
            formatting.count(entry["tokens"]),
            str(entry["passes_a_token"]),
            interval(entry["explore"]["bidirectional"]) if entry["explore"] else "",
            *(interval(part[regime]) for regime in ("bidirectional", "causal")),
            str(len(part["seeds"])),
        ]
        for entry in read("recipes")["recipes"]
        for part in [on_confirm(entry)]
    ]
    header = (
        "recipe | useful tokens | passes | explore, bidirectional (seed 0) | "
        "confirm, bidirectional | confirm, causal | seeds on confirm"
    )
    return table(header, rows)


def on_confirm(entry: Json) -> Json:
    """A recipe on the confirm half: with seeds it was not chosen by, if there are any."""
    return entry["confirm_fresh_seeds"] or entry["confirm"]


# Words


def interval(entry: Json) -> str:
    return delta(estimate(entry))


def seeds_text(seeds: Sequence[int], entry: Json) -> str:
    """How many seeds, and how far single ones lie apart."""
    if len(seeds) < 2:
        return "1 seed" if seeds else ""
    low, high = (formatting.points(end(entry["by_seed"]) / 100, signed=True) for end in (min, max))
    return f"{len(seeds)} seeds, {low} to {high}"


def verdict(claim: Json) -> str:
    """The word for the difference on the confirm half, with its direction or its margin."""
    word = judged(claim)["word"]
    if word == "different":
        return f"{word}, {'higher' if claim['confirm']['value'] > 0 else 'lower'}"
    return f"{word} within {size(claim['margin'] / 100)}" if word == "equivalent" else word


def aim(claim: Json) -> str:
    """What was aimed at, and whether the confirm half shows it; empty where nothing was."""
    if claim["aim"] == "none":
        return ""
    within = f"within {size(claim['margin'] / 100)}"
    aimed = {
        "at least": "0 or above",
        "above": "above 0",
        "within": within,
        "within or better": f"{within}, or better",
    }
    return f"{aimed[claim['aim']]}: **{ANSWERS[judged(claim)['reached']]}**"


def sentence(claim: Json) -> str:
    """One claim as a sentence, from its numbers on the confirm half."""
    subject, entry = claim["what"][0].upper() + claim["what"][1:], claim["confirm"]
    seeds, effect, outcome = seeds_text(claim["seeds"], entry), estimate(entry), verdict(claim)
    if outcome == "undecided" and judged(claim)["reached"] in ("yes", "no"):  # of size, not of aim
        outcome = f"neither different nor equivalent within {size(claim['margin'] / 100)}"
    base = f"n = {formatting.count(effect.n)}{f'; {seeds}' if seeds else ''}"
    value = formatting.points(effect.value, signed=True)
    text = f"{subject}: {value} points ({interval_text(effect)}; {base}): {outcome}."
    return f"{text} Aim: {aim(claim)}." if claim["aim"] != "none" else text


# Two models, and the published study


def models() -> str:
    """What damages and repairs SmolLM2, the 1.5B and the published 3B, beside one another."""
    first, second = read("claims"), read(f"claims-{STUDY}")
    columns = (
        ("SmolLM2 135M, all weights", first, "full"),
        ("Qwen2.5-Coder 1.5B, LoRA", second, "lora"),
        ("Qwen2.5-Coder 1.5B, all weights", second, "full"),
    )
    rows = [
        [
            f"{arm}, causal / bidirectional, %",
            *(
                both(data, arm if arm == "base" else f"{arm}-{method}")
                for _, data, method in columns
            ),
            published_accuracy(arm),
        ]
        for arm in ("base", "3B", "3C", "distill")
    ]
    printed = {
        "damage": published_difference(STAGE2),
        "3b_stage1": published_difference(STAGE4),
        "3b_price": published_difference(NONPREFILL),
    }
    for key in ("damage", "interaction", "3b_stage1", "3b_price", "distil_stage1"):
        cells = [claim_cell(data, key, method) for _, data, method in columns]
        name = first["claims"].get(key, second["claims"][key])["what"]
        rows.append([name, *cells, printed.get(key, "no control")])
    costs = [training_cost(*study) for study in (("", "full"), (STUDY, "lora"), (STUDY, "full"))]
    rows.append(["3B: steps, useful tokens, seconds on a shared H200", *costs, "not recorded"])
    header = " | ".join(["", *(title for title, *_ in columns), "published 3B, all weights"])
    return table(header, rows)


def both(data: Json, arm: str) -> str:
    cells = data["accuracy"][arm].values()
    return " / ".join(f"{cell['all']:.1f}" for cell in cells) if all(cells) else "not run"


def claim_cell(data: Json, key: str, method: str) -> str:
    claim = data["claims"].get(key if method == "full" or key == "damage" else f"{key}_lora")
    if key == "3b_price" and claim is None:  # a study whose items were not all kept
        ours, base = (data["accuracy"][arm]["causal"] for arm in (f"3B-{method}", "base"))
        return f"{ours['confirm'] - base['confirm']:+.1f}; {ours['n_runs']} runs, no interval kept"
    if claim is None or not claim.get("confirm"):
        return "not run"
    n = len(claim["seeds"])
    seeds = f"; {n} seed{'s' if n > 1 else ''}" if n else ""
    return f"{interval(claim['confirm'])}{seeds}"


def training_cost(study: str, method: str) -> str:
    """What the seed-0 fine-tune of 3B took."""
    names = Names.of(study)
    metrics = names.runs[names.trained(f"3B-{method}", 0)][0].metrics or {}
    seconds = metrics["cost"]["seconds"]
    return f"{metrics['steps']}, {metrics['tokens'] / 1e6:.1f} M, {seconds:.0f}"


@cache
def published(stage: str) -> float:
    """The published study's macro accuracy, in percent: numbers only, no items."""
    (run,) = (COMMITTED_RUNS / stage).glob("*_published")
    return 100 * (Run(run).metrics or {})["macro"]["acc"]


def published_difference(stage: str) -> str:
    return f"{published(stage) - published(STAGE1):+.1f}"


def published_accuracy(arm: str) -> str:
    stages = {"base": (STAGE1, STAGE2), "3B": (NONPREFILL, STAGE4)}.get(arm)
    return " / ".join(f"{published(stage):.1f}" for stage in stages) if stages else "not run"


def by_task() -> str:
    """Every difference of the 1.5B's study, task by task, on all items."""
    rows = [
        [
            claim["what"],
            task,
            *(f"{effect[end]:.2f}" for end in ("value", "low", "high")),
            str(effect["n"]),
            str(max(1, len(claim["seeds"]))),
        ]
        for claim in read(f"claims-{STUDY}")["claims"].values()
        for task, effect in claim.get("by_task", {}).items()
    ]
    return table("difference | task | points | 95 % from | to | n | seeds", rows)


BLOCKS: Blocks = {block.__name__: block for block in (summary, claims, repeats, recipe, models)}
TABLES: Blocks = {
    f"repair_{name}": block
    for name, block in (
        ("accuracy", accuracy),
        ("claims", every_claim),
        ("recipes", recipes),
        (f"by_task_{STUDY}", by_task),
    )
}
