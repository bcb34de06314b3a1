"""What the repair runs show: each claim as a difference over seeds, on items not chosen on.

    python -m scripts.repair_claims             # from the runs: docs/claims.json, and the pages
    python -m scripts.repair_claims --page      # the pages alone, from docs/claims.json
    python -m scripts.repair_claims --check     # exit 1 unless the pages say what that file says

Needs the runs of :mod:`scripts.repair_runs` with their items. Only one seed's items are committed,
so ``docs/claims.json`` is what keeps the numbers of all runs; it is not overwritten by fewer seeds,
nor by fewer runs of a seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.explain.sweep_summary import Outcomes
from bidir_core.runs.run import Run
from scripts import blocks, repair_page, repair_words
from scripts.repair_pairs import (
    BASE,
    FOLDS,
    STAGE1,
    by_fold,
    by_name,
    by_run,
    finished,
    repetitions,
)

OUT = Path(__file__).resolve().parent.parent / "docs" / "claims.json"
SEEDS = range(100)
# Claims are made on the first; the second is shown beside it and labelled.
CLAIM_FOLDS = ("confirm", "all")
Aim = Literal["at least", "within", "within or better", "above", "none"]
Part = tuple[int, str, str]  # sign, arm ("base", "3B-full", ..), regime evaluated under


@dataclass(frozen=True)
class Claim:
    """A difference, and what is aimed at. ``margin`` in points."""

    key: str
    what: str
    parts: tuple[Part, ...]
    aim: Aim = "none"
    margin: float = 1.0


def _minus(first: tuple[str, str], second: tuple[str, str]) -> tuple[Part, ...]:
    return (1, *first), (-1, *second)


B, C = "bidirectional", "causal"
VANILLA = ("base", C)
CLAIMS = (
    Claim(
        "damage",
        "the base model under bidirectional prefill, minus stage 1",
        _minus(("base", B), VANILLA),
    ),
    Claim(
        "3b_stage1",
        "3B under bidirectional prefill, minus stage 1",
        _minus(("3B-full", B), VANILLA),
        "at least",
    ),
    Claim(
        "3b_control",
        "3B under bidirectional prefill, minus its control 3C in causal mode",
        _minus(("3B-full", B), ("3C-full", C)),
        "within",
        1.5,
    ),
    Claim(
        "3b_control_lora",
        "the same of their LoRA adapters: 3B under bidirectional prefill, minus 3C in causal mode",
        _minus(("3B-lora", B), ("3C-lora", C)),
        "within",
        1.5,
    ),
    Claim(
        "3b_causal",
        "3B in causal mode, minus its control 3C in causal mode",
        _minus(("3B-full", C), ("3C-full", C)),
        "within",
        1.5,
    ),
    Claim(
        "interaction",
        "the interaction, (3B - 3C under bidirectional) - (3B - 3C causal)",
        (
            (1, "3B-full", B),
            (-1, "3C-full", B),
            (-1, "3B-full", C),
            (1, "3C-full", C),
        ),
        "above",
    ),
    Claim(
        "distil_stage1",
        "the distilled model under bidirectional prefill, minus stage 1",
        _minus(("distill-full", B), VANILLA),
        "within or better",
        1.5,
    ),
    Claim(
        "distil_causal",
        "the distilled model in causal mode, minus stage 1",
        _minus(("distill-full", C), VANILLA),
        "within",
        1.0,
    ),
    *(
        Claim(
            f"lora_{objective.lower()}_{regime}",
            f"{objective}, {'causal mode' if regime == C else 'bidirectional prefill'}: LoRA minus "
            "all weights",
            _minus((f"{objective}-lora", regime), (f"{objective}-full", regime)),
            "within or better",
            1.0,
        )
        for objective, regime in (("3B", B), ("3B", C), ("3C", C), ("distill", B), ("distill", C))
    ),
)


# --- from the runs -------------------------------------------------------------------------------


def compute(runs: Mapping[str, Run], usable: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Every claim's numbers, and which runs they are from; ``usable``: those with items."""
    arms = dict.fromkeys(arm for claim in CLAIMS for _, arm, _ in claim.parts)
    cells = [(arm, regime) for arm in arms for regime in BASE]
    seeds = {cell: [n for n in SEEDS if run_name(*cell, n) in usable] for cell in cells}
    names = sorted({run_name(*cell, seed) for cell in cells for seed in seeds[cell]})
    single = by_run(usable, names)
    found = by_name(single, usable, names)
    return {
        "schema": 1,
        "metric": "acc",
        "unit": "points of macro accuracy",
        "claims": {claim.key: _claim(found, claim, seeds) for claim in CLAIMS},
        "accuracy": {
            arm: {regime: _accuracy(found, usable, (arm, regime), seeds[arm, regime]) for regime in BASE}
            for arm in arms
        },
        "adapters": {
            name: (run.metrics or {}).get("weight_bytes")
            for name, run in sorted(runs.items())
            if run.config.get("kind") == "finetune" and run.settings.get("method") == "lora"
            and any(name == f"{arm}-seed{n}" for arm in arms for n in SEEDS)
        },
        "repeats": _repeats([usable[name] for name in names]),
        "runs": {
            name: {run.id: _in_folds(single, run.id) for run in usable[name]} for name in names
        },
    }  # fmt: skip


def run_name(arm: str, regime: str, seed: int) -> str:
    """The evaluation run of one cell; the base model has no seeds."""
    return BASE[regime] if arm == "base" else f"{arm}-seed{seed}-{regime}"


def _claim(
    found: Outcomes, claim: Claim, seeds: Mapping[tuple[str, str], Sequence[int]]
) -> dict[str, Any]:
    trained = [(arm, regime) for _, arm, regime in claim.parts if arm != "base"]
    common = [n for n in SEEDS if all(n in seeds[cell] for cell in trained)] if trained else [0]
    head = {"what": claim.what, "aim": claim.aim, "margin": claim.margin}
    lacking = [run_name(*cell, 0) for cell in trained if not seeds[cell]]
    if not common:
        return {**head, "seeds": [], "missing": lacking}
    sides = [
        (
            sign,
            [run_name(arm, regime, n) for n in common]
            if arm != "base"
            else [run_name(arm, regime, 0)],
        )
        for sign, arm, regime in claim.parts
    ]
    numbers = by_fold(found, sides, CLAIM_FOLDS)
    one = {**head, "seeds": common if trained else [], **numbers}
    return {**one, **repair_words.judged(one)}


def _accuracy(
    found: Outcomes,
    usable: Mapping[str, Sequence[Run]],
    cell: tuple[str, str],
    seeds: Iterable[int],
) -> dict[str, Any] | None:
    names = list(dict.fromkeys(run_name(*cell, seed) for seed in seeds))
    if not names:
        return None
    return {
        fold: round(float(np.mean([_in_folds(found, name)[fold] for name in names])), 3)
        for fold in CLAIM_FOLDS
    } | {"n_runs": sum(len(usable[name]) for name in names)}


def _in_folds(found: Outcomes, slug: str) -> dict[str, float]:
    """Macro accuracy in percent."""
    return {fold: round(100 * found.accuracy(slug, FOLDS[fold]), 3) for fold in CLAIM_FOLDS}


def _repeats(runs: Iterable[Sequence[Run]]) -> dict[str, Any] | None:
    """How far the same run made twice lies apart: macro accuracies of evaluations, in points."""
    gaps = [
        100 * (again["acc"] - first["acc"])
        for mine in runs
        if len(mine) == 2
        for first, again in [[(run.metrics or {})["macro"] for run in mine]]
    ]
    if not gaps:
        return None
    return {
        "n": len(gaps),
        "largest": round(float(np.abs(gaps).max()), 2),
        "standard_deviation_of_one": round(float(np.sqrt(np.mean(np.square(gaps)) / 2)), 2),
    }


def lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Claims that would rest on fewer seeds than before, and evaluations on fewer of their runs."""
    known, made = old.get("claims", {}), new.get("runs", {})
    claims = [
        key
        for key, one in new["claims"].items()
        if len(one["seeds"]) < len(known.get(key, {}).get("seeds", []))
    ]
    return claims + [
        name for name, ids in old.get("runs", {}).items() if len(made.get(name, ())) < len(ids)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="fill the pages from docs/claims.json")
    parser.add_argument(
        "--fewer", action="store_true", help="also if there are fewer seeds or runs now"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    blocks.add_check(parser)
    options = parser.parse_args(arguments)
    if not options.check and not options.page:
        try:
            write_claims(options.out, fewer=options.fewer)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        if options.out != OUT:
            return 0
    return blocks.write_or_check(
        "repair",
        repair_page.BLOCKS,
        repair_page.TABLES,
        check=options.check,
        source="the JSON files",
    )


def write_claims(out: Path, *, fewer: bool = False) -> None:
    """Compute all claims and write them. UserError if that would lose seeds or runs."""
    runs = finished()
    if STAGE1 not in runs:
        raise UserError(f"there is no finished run named {STAGE1}; run scripts.repair_runs first")
    new = compute(runs, repetitions())
    old = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if (gone := lost(old, new)) and not fewer:
        raise UserError(
            f"{out} has more seeds than the runs here, or more runs of a seed, for "
            f"{', '.join(gone)}; put the missing runs with their items into BIDIR_RUNS_DIR, or give "
            "--fewer"
        )
    write_json(out, new)
    done = sum(bool(one.get("confirm")) for one in new["claims"].values())
    print(f"{done} of {len(new['claims'])} claims have numbers; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
