"""Find the cheapest recipe that repairs: train short ones, choose on explore, confirm.

    python -m scripts.recipe_search --base-only       # the two runs that all are compared with
    python -m scripts.recipe_search --share 0/4 &     # a quarter of the grid; 1/4, 2/4, 3/4 beside
    python -m scripts.recipe_search --choose          # writes docs/recipes.json
    python -m scripts.recipe_search --confirm --alone # other seeds of the chosen one, then again

Every step goes on where it stopped when run again. Whole validation sets, both regimes, bfloat16,
like :mod:`scripts.repair_runs`. Smaller settings (``--limit``, ``--model``, ...) are for trying it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.tasks import PUBLISHED_TASKS
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.models import loading
from bidir_core.train.config import FinetuneConfig
from scripts.recipes import ALONE, Recipe, grid, summary
from scripts.repair_pairs import BASE, finished, repetitions
from scripts.repair_runs import done, finetune, numbers, settings, share, train_and_evaluate, words

OUT = Path(__file__).resolve().parent.parent / "docs" / "recipes.json"
CONFIRM_SEEDS = (1, 2, 3, 4, 5, 6)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        first, of = share(options.share)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.alone and of > 1:
        print(f"--alone: with --share {options.share} others use the device", file=sys.stderr)
        return 2
    try:
        return _run(options, first, of)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, first: int, of: int) -> int:
    if options.base_only:
        base_runs(options)
        return 0
    if options.choose:
        write_choice(options.out)
        return 0
    if options.confirm:
        arms = [(recipe, seed) for recipe in chosen(options) for seed in options.seeds]
    else:
        arms = [(one, 0) for one in grid(options.objectives, options.steps)]
    until = time.monotonic() + options.seconds
    for recipe, seed in arms[first::of]:
        if time.monotonic() > until:
            print("out of time; run again to go on")
            return 1
        train(options, recipe, seed)
    if options.confirm:
        write_choice(options.out)
    print("all done")
    return 0


def base_runs(options: argparse.Namespace) -> None:
    """The base model under both regimes, as far as they are missing here."""
    loaded = None
    for regime, name in BASE.items():
        if not done(name):
            loaded = loaded or loading.load(options.model, device=options.device)
            evaluate(replace(_evaluation(options), name=name, regime=regime), loaded=loaded)


def train(options: argparse.Namespace, recipe: Recipe, seed: int) -> None:
    """One recipe with one seed, and its evaluations under both regimes."""
    new = done(recipe.run_name(seed)) is None
    path = train_and_evaluate(training(options, recipe, seed), _evaluation(options))
    if new and options.alone:
        write_json(path / ALONE, {"alone": True})


def training(options: argparse.Namespace, recipe: Recipe, seed: int) -> FinetuneConfig:
    """The long runs' settings with the recipe's own."""
    like = argparse.Namespace(steps=recipe.steps, device=options.device)
    return replace(
        finetune(like, recipe.objective, recipe.method, seed),
        model=options.model,
        data=options.data,
        decontaminate=options.decontaminate,
        batch_samples=options.batch_samples,
        max_tokens=options.max_tokens,
        micro_tokens=options.micro_tokens,
        lr=recipe.lr,
        warmup_steps=recipe.warmup_steps,
        eval_every=0,
        name=recipe.run_name(seed),
    )


def _evaluation(options: argparse.Namespace) -> EvalConfig:
    return replace(
        settings("any", "causal", options.device),
        model=options.model,
        tasks=tuple(options.tasks),
        limit=options.limit,
    )


def write_choice(out: Path) -> None:
    """All recipes and the chosen one: from the runs that are there, and what was written before."""
    known = json.loads(out.read_text(encoding="utf-8"))["recipes"] if out.is_file() else []
    found = summary(finished(), repetitions(), known)
    seeds = {one["name"]: len(one["seeds"]) for one in known}
    if fewer := [
        one["name"] for one in found["recipes"] if len(one["seeds"]) < seeds.get(one["name"], 0)
    ]:
        raise UserError(
            f"{out} has more seeds of {fewer[0]} than the runs here; give another --out, or put those "
            "runs with their items into BIDIR_RUNS_DIR"
        )
    write_json(out, found)
    print(f"{len(found['recipes'])} recipes; chosen: {found['chosen']}; written to {out}")


def chosen(options: argparse.Namespace) -> list[Recipe]:
    """What is to be confirmed: the choice as it was written down."""
    try:
        written = json.loads(options.out.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{options.out}: run --choose first ({error})") from None
    names = list(options.recipes) or [written["chosen"]]
    if options.each_objective:
        names += written["chosen_by_objective"].values()
    names = [name for name in dict.fromkeys(names) if name]
    if not names:
        raise UserError(f"{options.out}: no recipe came close enough to stage 1, none was chosen")
    keys = ("objective", "method", "steps", "lr")
    known = {one["name"]: Recipe(*(one[key] for key in keys)) for one in written["recipes"]}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--recipes {unknown[0]}: {options.out} has {', '.join(known)}")
    return [known[name] for name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--base-only", action="store_true", help="evaluate the base model only")
    step.add_argument("--choose", action="store_true", help="choose among the finished recipes")
    step.add_argument("--confirm", action="store_true", help="train the chosen one's other seeds")
    parser.add_argument("--seeds", type=numbers, default=CONFIRM_SEEDS, help="of --confirm")
    parser.add_argument("--recipes", type=words, default=(), help="confirm these instead")
    parser.add_argument("--each-objective", action="store_true", help="confirm each one's choice")
    parser.add_argument("--alone", action="store_true", help="nothing else uses the device")
    parser.add_argument("--share", default="0/1", help="I/N: every N-th arm from the I-th on")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no arm after this long")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--micro-tokens", type=int, help="smaller where several share the memory")
    parser.add_argument("--objectives", type=words, default=("3B", "distill"))
    parser.add_argument("--steps", type=numbers, default=(25, 50, 100))
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--data", default="far")
    parser.add_argument("--decontaminate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch-samples", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--tasks", type=words, default=PUBLISHED_TASKS)
    parser.add_argument("--limit", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
