"""What docs/claims.json and docs/recipes.json say, as blocks of docs/ and as tables.

Each sentence follows from its numbers and can come out either way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from bidir_core.analyse.phrases import interval_text, size
from bidir_core.common import formatting
from bidir_core.runs.layout import COMMITTED_RUNS, NONPREFILL, STAGE1, STAGE2, STAGE4
from bidir_core.runs.run import Run
from scripts.pages import DOCS, Blocks, delta, table
from scripts.repair import judged
from scripts.study_runs import estimate

STUDY = "qwen-1.5b"  # the second model's, in docs/claims-qwen-1.5b.json
MOST_STEPS, MOST_MEGABYTES = 100, 10  # aimed at beforehand
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
    lora = [judged(one)["reached"] for key, one in claims.items() if key.startswith("lora_")]
    lines.append(
        f"**Does an adapter suffice?** Shown in {lora.count('yes')} of {len(lora)} comparisons, "
        f"shown not to in {lora.count('no')}."
    )
    chosen = chosen_recipe(recipes)
    if chosen is not None:
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
    found = read("claims")
    claimed = [found["claims"][key] for key in keys]
    made = [one for one in claimed if one.get("confirm") and one.get("all")]
    rows = [
        [
            one["what"],
            interval(one["confirm"]),
            verdict(one),
            aim(one),
            interval(one["all"]),
            seeds_text(one["seeds"], one["confirm"]),
        ]
        for one in made
    ]
    header = (
        "difference, points (95 % CI) | confirm half | verdict | aim | "
        "all items, explore among them | single seeds, confirm half"
    )
    half, every = (
        " or ".join(sorted({formatting.count(one[fold]["n"]) for one in made}))
        for fold in ("confirm", "all")
    )
    sizes = [weight for weight in found["adapters"].values() if weight]
    largest = max(sizes, default=0) / 1e6
    within = "is within" if largest <= MOST_MEGABYTES else "is above"
    return (
        f"{table(header, rows)}\nn = {half} items on the confirm half, {every} in all. The largest of "
        f"{len(sizes)} adapters has {largest:.1f} MB, which {within} the {MOST_MEGABYTES} MB aimed at.\n"
    )


def repeats() -> str:
    """What training and evaluating the same run again changes."""
    found = read("claims")["repeats"]
    return (
        f"{found['n']} evaluations were made twice, trained again each time but for the base model's: "
        f"their macro accuracies on all items lie up to {found['largest']:.1f} points apart, which is a "
        f"standard deviation of {found['standard_deviation_of_one']:.2f} points for one.\n"
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
    return recipe_text(read("recipes"))


def chosen_recipe(found: Json) -> Json | None:
    return next((one for one in found["recipes"] if one["name"] == found["chosen"]), None)


def recipe_text(found: Json) -> str:
    rule, tried = f"Rule, fixed beforehand: {found['rule']}.\n\n", found["recipes"]
    one = chosen_recipe(found)
    if one is None:
        scored = [each for each in tried if each["explore"]]
        best = max(scored, key=lambda each: each["explore"]["bidirectional"]["value"])
        return (
            f"{rule}None of {len(tried)} recipes comes that close. The nearest is `{best['name']}` at "
            f"{interval(best['explore']['bidirectional'])}.\n"
        )
    alone, seconds = list(one["seconds_alone"].values()), "seconds not measured alone"
    if alone:
        span = f"{min(alone):.1f} to {max(alone):.1f} s"
        seconds = f"{span} of training, alone on one {one['device']}"
    weights = "all weights" if one["method"] == "full" else "a LoRA adapter"
    below = "below" if one["steps"] < MOST_STEPS else "not below"
    said = (
        f"{rule}Of {len(tried)} recipes, this one: `{one['name']}` ({one['objective']}, {weights}, "
        f"learning rate {one['lr']:g}): {one['steps']} steps, which is {below} {MOST_STEPS}; "
        f"{formatting.count(one['tokens'])} useful tokens; {seconds}. "
        f"On explore: {interval(one['explore']['bidirectional'])} points."
    )
    if again := one.get("explore_fresh_seeds"):
        again = interval(again["bidirectional"])
        said += f" With the seeds not looked at, on explore too: {again}."
    part, lines = on_confirm(one), ""
    looked = "seeds not looked at" if one["confirm_fresh_seeds"] else "with the seed looked at"
    for regime, aimed in (("bidirectional", "within or better"), ("causal", "none")):
        what = f"confirm half, {looked} in choosing, {regime}, minus stage 1"
        claim = {"what": what, "aim": aimed, "margin": 1.0, "seeds": part["seeds"]}
        lines += f"- {sentence({**claim, 'confirm': part[regime]})}\n"
    return f"{said}\n\n{lines}"


def recipes() -> str:
    """All that were tried."""
    rows = [
        [
            f"`{one['name'].removeprefix('recipe-')}`",
            formatting.count(one["tokens"]),
            str(one["passes_a_token"]),
            interval(one["explore"]["bidirectional"]) if one["explore"] else "",
            *(interval(part[regime]) for regime in ("bidirectional", "causal")),
            str(len(part["seeds"])),
        ]
        for one in read("recipes")["recipes"]
        for part in [on_confirm(one)]
    ]
    header = (
        "recipe | useful tokens | passes | explore, bidirectional (seed 0) | "
        "confirm, bidirectional | confirm, causal | seeds on confirm"
    )
    return table(header, rows)


def on_confirm(one: Json) -> Json:
    """A recipe on the confirm half: with seeds it was not chosen by, if there are any."""
    return one["confirm_fresh_seeds"] or one["confirm"]


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
    """One claim, said from its numbers on the confirm half."""
    what, entry = claim["what"][0].upper() + claim["what"][1:], claim["confirm"]
    seeds, one, found = seeds_text(claim["seeds"], entry), estimate(entry), verdict(claim)
    if found == "undecided" and judged(claim)["reached"] in ("yes", "no"):  # of size, not of aim
        found = f"neither different nor equivalent within {size(claim['margin'] / 100)}"
    base = f"n = {formatting.count(one.n)}{f'; {seeds}' if seeds else ''}"
    value = formatting.points(one.value, signed=True)
    text = f"{what}: {value} points ({interval_text(one)}; {base}): {found}."
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
                both(found, arm if arm == "base" else f"{arm}-{method}")
                for _, found, method in columns
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
        cells = [claim_cell(found, key, method) for _, found, method in columns]
        what = first["claims"].get(key, second["claims"][key])["what"]
        rows.append([what, *cells, printed.get(key, "no control")])
    header = " | ".join(["", *(title for title, *_ in columns), "published 3B, all weights"])
    return table(header, rows)


def both(found: Json, arm: str) -> str:
    cells = found["accuracy"][arm].values()
    return " / ".join(f"{cell['all']:.1f}" for cell in cells) if all(cells) else "not run"


def claim_cell(found: Json, key: str, method: str) -> str:
    claim = found["claims"].get(key if method == "full" or key == "damage" else f"{key}_lora")
    if claim is None or not claim.get("confirm"):
        return "not run"
    n = len(claim["seeds"])
    seeds = f"; {n} seed{'s' if n > 1 else ''}" if n else ""
    return f"{interval(claim['confirm'])}{seeds}"


@cache
def published(stage: str) -> float:
    """The published study's macro accuracy, in percent: numbers only, no items."""
    (run,) = (COMMITTED_RUNS / stage).glob("*_published")
    return 100 * (Run(run).metrics or {})["macro"]["acc"]


def published_difference(stage: str) -> str:
    return f"{published(stage) - published(STAGE1):+.1f}"


def published_accuracy(arm: str) -> str:
    stages = {"base": (STAGE1, STAGE2), "3B": (NONPREFILL, STAGE4)}.get(arm)
    return " / ".join(f"{published(one):.1f}" for one in stages) if stages else "not run"


def by_task() -> str:
    """Every difference of the 1.5B's study, task by task, on all items."""
    rows = [
        [
            claim["what"],
            task,
            *(f"{one[end]:.2f}" for end in ("value", "low", "high")),
            str(one["n"]),
            str(max(1, len(claim["seeds"]))),
        ]
        for claim in read(f"claims-{STUDY}")["claims"].values()
        for task, one in claim.get("by_task", {}).items()
    ]
    return table("difference | task | points | 95 % from | to | n | seeds", rows)


BLOCKS: Blocks = {one.__name__: one for one in (summary, claims, repeats, recipe, models)}
TABLES: Blocks = {
    f"repair_{name}": made
    for name, made in (
        ("accuracy", accuracy),
        ("claims", every_claim),
        ("recipes", recipes),
        (f"by_task_{STUDY}", by_task),
    )
}
