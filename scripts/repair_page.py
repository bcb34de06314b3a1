"""What docs/claims.json and docs/recipes.json say, as blocks of docs/ and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bidir_core.common import formatting
from scripts import blocks
from scripts.blocks import DOCS
from scripts.repair_pairs import estimate
from scripts.repair_words import aim, interval, judged, reached, seeds_text, sentence, verdict

NOT_RUN = "Not run yet.\n"
MOST_STEPS, MOST_MEGABYTES = 100, 10


# --- the blocks ----------------------------------------------------------------------------------


def read(name: str) -> dict[str, Any] | None:
    """A JSON file of docs/, or None while it has not been made."""
    path = DOCS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def summary() -> str:
    """The page in five lines; each can come out either way."""
    claims = {key: one for key, one in _by_key().items() if one.get("confirm")}
    needed = ("interaction", "3b_stage1", "distil_stage1", "3b_control")
    if any(key not in claims for key in needed):
        return NOT_RUN
    return "".join(f"- {line}\n" for line in summary_lines(claims, read("recipes.json")))


def summary_lines(
    claims: Mapping[str, Mapping[str, Any]], recipes: Mapping[str, Any] | None
) -> list[str]:
    """The lines of :func:`summary`, from claims that all have numbers."""

    def said(key: str, lower: str, equivalent: str, higher: str) -> str:
        one = claims[key]
        kind = judged(one)["word"]
        if kind == "different":
            kind = lower if one["confirm"]["value"] < 0 else higher
        kind = equivalent if kind == "equivalent" else kind
        return f"{kind}, {interval(one['confirm'])}"

    lines = [
        f"**Is it repaired, beyond ordinary tuning?** {said('interaction', 'no', 'no', 'yes')} "
        "points of interaction.",
        f"**Is it back at stage 1?** 3B: {said('3b_stage1', 'below it', 'yes', 'above it')} points. "
        "Distillation, which teaches nothing new: "
        f"{said('distil_stage1', 'below it', 'yes', 'above it')}.",
        "**Does bidirectional prefill still cost, at equal training?** 3B minus its causal "
        f"control: {said('3b_control', 'yes', 'no', 'no, it gains')} points.",
    ]
    lora = [judged(one)["reached"] for key, one in claims.items() if key.startswith("lora_")]
    if lora:
        lines.append(
            f"**Does an adapter suffice?** Shown in {lora.count('yes')} of {len(lora)} comparisons, "
            f"shown not to in {lora.count('no')}."
        )
    tried = {one["name"]: one for one in recipes["recipes"]} if recipes else {}
    chosen = tried.get(recipes["chosen"]) if recipes else None
    if chosen and (part := _on_confirm(chosen)):
        entry = part["bidirectional"]
        held = {"yes": "holds", "no": "does not hold", "undecided": "is undecided"}[
            reached("within or better", 1.0, estimate(entry))
        ]
        lines.append(
            f"**How little training?** {chosen['steps']} steps come within a point of stage 1 on "
            "the half and the seed that the recipe was chosen on; on the other half, with other "
            f"seeds where there are any, that {held}: {interval(entry)} points; "
            f"{seeds_text(part['seeds'], entry)}."
        )
    return lines


def _by_key() -> dict[str, Mapping[str, Any]]:
    return dict((read("claims.json") or {"claims": {}})["claims"])


def claims() -> str:
    """Every difference on the confirm half and, labelled, on all items; the adapters' size."""
    rows = []
    sizes_of: dict[str, set[str]] = {"confirm": set(), "all": set()}
    for one in _by_key().values():
        if one.get("confirm") and one.get("all"):
            for fold, found in sizes_of.items():
                found.add(formatting.count(one[fold]["n"]))
            rows.append(
                [
                    one["what"], interval(one["confirm"]), verdict(one), aim(one),
                    interval(one["all"]), seeds_text(one["seeds"], one["confirm"]),
                ]
            )  # fmt: skip
    if not rows:
        return NOT_RUN
    header = [
        "difference, points (95 % CI)", "confirm half", "verdict", "aim",
        "all items, explore among them", "single seeds, confirm half",
    ]  # fmt: skip
    half, every = (" or ".join(sorted(found)) for found in sizes_of.values())
    text = f"{blocks.table(header, rows)}\nn = {half} items on the confirm half, {every} in all.\n"
    sizes = [size for size in (read("claims.json") or {})["adapters"].values() if size]
    if sizes:
        largest = max(sizes) / 1e6
        verb = "is within" if largest <= MOST_MEGABYTES else "is above"
        text = (
            f"{text.rstrip()} The largest of {len(sizes)} adapters has {largest:.1f} MB, which "
            f"{verb} the {MOST_MEGABYTES} MB aimed at.\n"
        )
    return text


def accuracy() -> str:
    """Macro accuracy of every arm."""
    found = (read("claims.json") or {"accuracy": {}})["accuracy"]
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
        for arm, by_regime in found.items()
        if any(by_regime.values())
    ]
    header = [
        "arm", "runs", "causal, confirm", "bidirectional, confirm", "causal, all",
        "bidirectional, all",
    ]  # fmt: skip
    return blocks.table(header, rows) if rows else NOT_RUN


def repeats() -> str:
    """What training and evaluating the same run again changes."""
    found = (read("claims.json") or {}).get("repeats")
    if not found:
        return NOT_RUN
    return (
        f"{found['n']} evaluations were made twice, trained again each time but for the base model's: "
        f"their macro accuracies on all items lie up to {found['largest']:.1f} points apart, which is a "
        f"standard deviation of {found['standard_deviation_of_one']:.2f} points for one.\n"
    )


def recipe() -> str:
    """The cheapest recipe, how it was chosen, and what it holds on the confirm half."""
    found = read("recipes.json")
    return recipe_text(found) if found else NOT_RUN


def recipe_text(found: Mapping[str, Any]) -> str:
    by_name = {one["name"]: one for one in found["recipes"]}
    rule = f"Rule, fixed beforehand: {found['rule']}.\n\n"
    if found["chosen"] is None:
        scored = [one for one in by_name.values() if one["explore"]]
        best = max(scored, key=lambda one: one["explore"]["bidirectional"]["value"], default=None)
        nearest = (
            f" The nearest is `{best['name']}` at {interval(best['explore']['bidirectional'])}."
            if best
            else ""
        )
        return f"{rule}None of {len(by_name)} recipes comes that close.{nearest}\n"
    return f"{rule}Of {len(by_name)} recipes, this one: {_one_recipe(by_name[found['chosen']])}"


def _one_recipe(one: Mapping[str, Any]) -> str:
    alone = list(one["seconds_alone"].values())
    seconds = (
        f"{min(alone):.1f} to {max(alone):.1f} s of training, alone on one {one['device']}"
        if alone
        else "seconds not measured alone"
    )
    weights = "all weights" if one["method"] == "full" else "a LoRA adapter"
    below = "below" if one["steps"] < MOST_STEPS else "not below"
    lines = [
        f"`{one['name']}` ({one['objective']}, {weights}, learning rate {one['lr']:g}): "
        f"{one['steps']} steps, which is {below} {MOST_STEPS}; {formatting.count(one['tokens'])} useful "
        f"tokens; {seconds}. On explore: {interval(one['explore']['bidirectional'])} points.\n"
    ]
    if again := one.get("explore_fresh_seeds"):
        lines[0] = lines[0].rstrip() + (
            f" With the seeds not looked at, on explore too: {interval(again['bidirectional'])}.\n"
        )
    fresh = one["confirm_fresh_seeds"]
    title = f"confirm half, {'seeds' if fresh else 'with the seed'} "
    title += "not looked at in choosing" if fresh else "looked at in choosing"
    if part := _on_confirm(one):
        for regime, aim in (("bidirectional", "within or better"), ("causal", "none")):
            claim = {
                "what": f"{title}, {regime}, minus stage 1",
                "aim": aim,
                "margin": 1.0,
                "seeds": part["seeds"],
                "confirm": part[regime],
            }
            lines.append(f"- {sentence(claim)}\n")
    return "\n".join([lines[0], "".join(lines[1:])])


def _on_confirm(one: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A recipe on the confirm half: with seeds it was not chosen by, if there are any."""
    return one["confirm_fresh_seeds"] or one["confirm"]


def recipes() -> str:
    """All that were tried."""
    found = read("recipes.json")
    if not found or not found["recipes"]:
        return NOT_RUN
    rows = [
        [
            f"`{one['name'].removeprefix('recipe-')}`",
            formatting.count(one["tokens"]),
            str(one["passes_a_token"]),
            interval(one["explore"]["bidirectional"]) if one["explore"] else "",
            *(interval(part[regime]) if part else "" for regime in ("bidirectional", "causal")),
            str(len(part["seeds"])) if part else "",
        ]
        for one in found["recipes"]
        for part in [_on_confirm(one)]
    ]
    header = [
        "recipe", "useful tokens", "passes", "explore, bidirectional (seed 0)",
        "confirm, bidirectional", "confirm, causal", "seeds on confirm",
    ]  # fmt: skip
    return blocks.table(header, rows)


BLOCKS: blocks.Blocks = {one.__name__: one for one in (summary, claims, repeats, recipe)}
TABLES: blocks.Blocks = {f"repair_{one.__name__}": one for one in (accuracy, recipes)}
