"""The committed repair runs: fine-tunes of the embedded model and both regimes' evaluations.

    python -m scripts.repair_runs --seconds 550     # goes on where it stopped when run again
    python -m scripts.repair_runs --share 0/4 &     # a quarter of it; 1/4, 2/4, 3/4 beside it
    python -m scripts.repair_runs --seeds 3,4 --objectives 3B,3C    # more seeds

Three objectives (3B, its causal control 3C, distillation with a causal anchor), all weights and
LoRA, some seeds each, evaluated on the whole validation sets under both regimes, like the base
model beside them, which is also evaluated under `sink=1` and without contexts: in bfloat16, which
is what pairs with what. The first three seeds are evaluated at limit 500 as well, in float32 like
the base model's runs of `scripts/demo_runs.sh`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.models import loading
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import runs_roots
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import run_finetune

REGIMES = ("bidirectional", "causal")
# name, regime, context
BASE = [
    *[(f"bf16-{regime}", regime, "full") for regime in REGIMES],
    ("bf16-sink1", "bidirectional:sink=1", "full"),
    ("bf16-no-context", "causal", "none"),
]
OBJECTIVES = ("distill", "3B", "3C")
SEEDS = (0, 1, 2)
LIMIT = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1e9, help="start no arm after this long")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--share", default="0/1", help="I/N: every N-th arm from the I-th on")
    parser.add_argument("--seeds", type=numbers, default=SEEDS)
    parser.add_argument("--objectives", type=words, default=OBJECTIVES)
    options = parser.parse_args()
    try:
        first, of = share(options.share)
    except UserError as error:
        parser.error(str(error))
    until = time.monotonic() + options.seconds

    base = None
    for name, regime, context in BASE[first::of]:
        if not done(name):
            base = base or loading.load(EMBEDDED_MODEL, device=options.device)
            config = settings(name, regime, options.device)
            evaluate(replace(config, context=context), loaded=base)
    arms = [
        (objective, method, seed)
        for seed in options.seeds
        for method in ("full", "lora")
        for objective in options.objectives
    ]
    for objective, method, seed in arms[first::of]:
        if time.monotonic() > until:
            print("out of time; run again to go on")
            return
        path = train_and_evaluate(finetune(options, objective, method, seed))
        if seed in SEEDS:
            evaluate_limited(path, options.device)
    print("all done")


def train_and_evaluate(config: FinetuneConfig, like: EvalConfig | None = None) -> Path:
    """One arm, as far as it is not done yet; its training run's folder.

    ``like``: other settings for the two evaluations than :func:`settings` gives.
    """
    name = str(config.name)
    started = time.monotonic()
    trained = done(name)
    path = trained.path if trained else run_finetune(config)
    took = time.monotonic() - started
    missing = [regime for regime in REGIMES if not done(f"{name}-{regime}")]
    if missing:
        checkpoint = str(path / "final")
        like = like or settings(name, "causal", config.device)
        loaded = loading.load(config.model, checkpoint=checkpoint, device=config.device)
        for regime in missing:
            own = f"{name}-{regime}"
            evaluate(replace(like, name=own, regime=regime, checkpoint=checkpoint), loaded=loaded)
    print(f"{name}: trained in {took:.0f} s, all in {time.monotonic() - started:.0f} s")
    return path


def evaluate_limited(trained: Path, device: str) -> None:
    """The first items of each task, which pair with the base model's limited runs."""
    name = f"{Run(trained).name}-limit{LIMIT}"
    missing = [regime for regime in REGIMES if not done(f"{name}-{regime}")]
    if not missing:
        return
    checkpoint = str(trained / "final")
    like = replace(settings(name, "causal", device, checkpoint), dtype="float32", limit=LIMIT)
    loaded = loading.load(like.model, checkpoint=checkpoint, device=device, dtype=like.dtype)
    for regime in missing:
        evaluate(replace(like, name=f"{name}-{regime}", regime=regime), loaded=loaded)


def share(text: str) -> tuple[int, int]:
    """``I/N`` as two numbers; UserError unless 0 <= I < N."""
    try:
        first, of = (int(number) for number in text.split("/"))
    except ValueError:
        first, of = 0, 0
    if not 0 <= first < of:
        raise UserError(f"--share {text}: give I/N with I from 0 to N-1")
    return first, of


def finetune(options: argparse.Namespace, objective: str, method: str, seed: int) -> FinetuneConfig:
    return FinetuneConfig(
        model=EMBEDDED_MODEL,
        objective=objective,
        method=method,
        seed=seed,
        steps=options.steps,
        lr=1e-4 if method == "full" else 1e-3,
        causal_anchor=1.0 if objective == "distill" else 0.0,
        device=options.device,
        checkpoint_every=0,
        compile="reduce-overhead" if options.device.startswith("cuda") else "none",
        eval_every=50 if seed == 0 else 0,
        name=f"{objective}-{method}-seed{seed}",
    )


def settings(name: str, regime: str, device: str, checkpoint: str | None = None) -> EvalConfig:
    return EvalConfig(
        model=EMBEDDED_MODEL,
        checkpoint=checkpoint,
        regime=regime,
        device=device,
        dtype="bfloat16",
        compact=True,
        name=name,
    )


def numbers(text: str) -> tuple[int, ...]:
    """What an option with commas names."""
    return tuple(int(word) for word in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """The same, of words."""
    return tuple(text.split(","))


def done(name: str) -> Run | None:
    """The finished run of that name among the runs made here."""
    found = [run for run in list_runs([Path(runs_roots()[0])]) if run.name == name]
    return next((run for run in found if run.state == "done"), None)


if __name__ == "__main__":
    main()
