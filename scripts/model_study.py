"""One study of several models on GPUs: prediction, law, controls, repair, order. Any number of workers.

    python -m scripts.model_study MODEL ... --seconds 1500      # as many processes as there is room for

Each step is a run of its own name under the runs folder, and one worker has it at a time; run again,
the same line goes on with what is missing. A step that fails is noted in ``.claims/NAME.failed`` with
its error and keeps no other from running; without that file it is tried again. Whole validation sets
in bfloat16, compact records. What decides is fixed here, before any result:

- the prediction (``recommend``) of a model is stored before any of its labelled items is scored;
- the law asks for what ``lab --preset law`` does;
- of the learning rates in :data:`RATES` the one with the best macro accuracy under bidirectional prefill
  on the explore half, seed 0 of 3B, is taken for every objective and seed of the method. What is
  claimed is measured on the confirm half;
- of the fine-tunes of :data:`OTHER_STEPS` the shortest one counts that lies, bidirectionally, at most a
  point below the base model's causal accuracy on the explore half.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import torch

from bidir_core.common.errors import UserError
from bidir_core.common.progress import terminable
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.explain.configs import RecommendConfig
from bidir_core.explain.recommend import recommend
from bidir_core.explain.sweep import run_lab
from bidir_core.explain.sweep_points import LabConfig, open_from, predicted_regime
from bidir_core.models import loading
from bidir_core.runs.layout import runs_roots
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import run_finetune
from scripts.repair import Names, chosen_rate, runs_by_name

ORDER_TASKS = tuple(
    f"{family}_{order}"
    for family in ("sciq", "sciq_letters", "boolq", "sciq_medium", "sciq_long")
    for order in ("first", "last")
)
RATES = {"lora": (2e-4, 5e-4, 1e-3), "full": (1e-5, 3e-5)}
OTHER_STEPS = {"3B": (25, 50, 100, 1600), "distill": (100, 1600)}  # of LoRA, seed 0
ORDER_LAYERS = (4, 8, 12, 16, 20, 24)  # every A of layers=A- that the order tasks are asked under
SEEDS = {"lora": (0, 1, 2), "full": (0,)}
OBJECTIVES = ("3B", "3C", "distill")
B = "bidirectional"


@dataclass(frozen=True)
class Step:
    """``name``: of its run, or of the last one it makes. ``needs``: steps that come before."""

    name: str
    model: str
    work: Callable[[Step], object]
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What is run of which models; ``limit``, ``steps`` and the training fields are for trying it."""

    models: tuple[str, ...]
    repair: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    limit: int | None = None
    tasks: tuple[str, ...] = EvalConfig.tasks
    training: dict[str, Any] = field(default_factory=lambda: {"data": "farther"})
    steps: int = 400

    # The plan

    def plan(self) -> Iterator[Step]:
        """All steps, the ones that matter most first."""
        for model in self.models:
            yield Step(f"recommend-{short(model)}", model, self._recommend)
        for model in self.models:
            yield Step(f"law-{short(model)}", model, self._law, predicted(model))
        for model in self.repair:
            yield from self._rates(model, "lora")
        for model in self.models:
            for name, changes in (
                ("no-context", {"context": "none"}),
                ("causal-hide0", {"regime": "causal:hide=0"}),
                ("twice", {"repeat_prompt": 2}),
            ):
                name = f"{name}-{short(model)}"
                yield Step(name, model, self._evaluate, predicted(model), changes)
        for model in self.order:
            yield from self._order(model)
        for model in self.repair:
            yield from self._repair(model, "lora")
        for model in self.models:
            yield Step(f"controls-{short(model)}", model, self._controls, predicted(model))
            for name in ("top", "causal-top-hide0"):
                yield Step(f"{name}-{short(model)}", model, self._hidden_on_top, predicted(model))
        for model in self.order:
            if model in self.repair:
                yield from self._order_repaired(model)
        for model in self.repair:
            yield from self._other_steps(model)
            yield from self._rates(model, "full")
            yield from self._repair(model, "full")

    def _rates(self, model: str, method: str) -> Iterator[Step]:
        for name, rate in zip(searched(model, method), RATES[method], strict=True):
            settings = {"objective": "3B", "method": method, "seed": 0, "lr": rate}
            yield Step(name, model, self._train, predicted(model), settings)

    def _repair(self, model: str, method: str) -> Iterator[Step]:
        needs = (f"law-{short(model)}", *searched(model, method))
        for seed in SEEDS[method]:
            for objective in OBJECTIVES:
                if (objective, seed) != ("3B", 0):  # trained when its learning rate was searched
                    name = f"{short(model)}-{objective}-{method}-seed{seed}-{B}"
                    settings = {"objective": objective, "method": method, "seed": seed}
                    yield Step(name, model, self._train, needs, settings)
        if method == "lora":
            settings = {"objective": "3B", "method": "lora", "seed": 0, "opened": True}
            name = f"{short(model)}-3B-opened-lora-seed0-{B}"
            yield Step(name, model, self._train, searched(model, "lora"), settings)

    def _other_steps(self, model: str) -> Iterator[Step]:
        for objective, numbers in OTHER_STEPS.items():
            for steps in numbers:
                name = f"{short(model)}-{objective}-lora-steps{steps}-seed0-{B}"
                settings = {"objective": objective, "method": "lora", "seed": 0, "steps": steps}
                yield Step(name, model, self._train, searched(model, "lora"), settings)

    def _order(self, model: str) -> Iterator[Step]:
        arms: tuple[tuple[str, dict[str, Any]], ...] = (
            ("causal", {}),
            (B, {"regime": B}),
            ("sink1", {"regime": f"{B}:sink=1"}),
            ("layers2", {"regime": f"{B}:layers=2-"}),
            ("opened", {"regime": "opened"}),
            ("kl", {"regime": "kl"}),
            ("twice", {"repeat_prompt": 2}),
            *((f"from{layer}", {"regime": f"from{layer}"}) for layer in ORDER_LAYERS),
        )
        for label, changes in arms:
            name = f"order-{label}-{short(model)}"
            yield Step(name, model, self._on_order_tasks, predicted(model), changes)

    def _order_repaired(self, model: str) -> Iterator[Step]:
        for arm, regimes in (
            ("3B", (B, "causal")),
            ("3C", ("causal",)),
            ("3B-opened", ("opened", "causal")),
        ):
            trained = () if arm == "3B" else (f"{short(model)}-{arm}-lora-seed0-{B}",)
            for regime in regimes:
                name = f"order-{arm}-{regime}-{short(model)}"
                needs = (*searched(model, "lora"), *trained)
                changes = {"arm": arm, "regime": regime}
                yield Step(name, model, self._on_order_tasks, needs, changes)

    # The steps

    def _recommend(self, step: Step) -> None:
        config = RecommendConfig(
            model=step.model, dtype="float32", name=step.name, tasks=self.tasks
        )
        recommend(config)

    def _law(self, step: Step) -> None:
        run_lab(LabConfig(**self._common(step), preset="law"))

    def _controls(self, step: Step) -> None:
        sweep = ("hide=0", "self=2,10,30", "sink=1")
        run_lab(LabConfig(**self._common(step), sweep=sweep, controls=True))

    def _hidden_on_top(self, step: Step) -> None:
        """The first token hidden, and seen, in the last two thirds of the layers and in the last; or
        hidden in the last two thirds without looking ahead."""
        n_layers = prediction(step.model)["n_layers"]
        if step.name.startswith("causal"):
            regime = f"causal:layers={n_layers // 3}-,hide=0"
            evaluate(EvalConfig(**self._common(step), regime=regime))
            return
        ranges = ",".join(f"{n_layers * third // 3}-" for third in (1, 2))
        sweep = (f"layers={ranges}", f"layers={ranges}*hide=0")
        run_lab(LabConfig(**self._common(step), sweep=sweep))

    def _evaluate(self, step: Step) -> None:
        evaluate(EvalConfig(**(self._common(step) | step.settings)))

    def _on_order_tasks(self, step: Step) -> None:
        changes = {"tasks": ORDER_TASKS, **step.settings}
        if changes.get("regime") == "opened":
            changes["regime"] = recommended(step.model)
        stored = prediction(step.model)
        first_layers = {f"from{layer}": layer for layer in ORDER_LAYERS}
        first_layers["kl"] = stored["predictions"]["kl"]
        if (first := first_layers.get(changes.get("regime", ""))) is not None:
            changes["regime"] = str(open_from(min(first, stored["n_layers"] - 1)))
        if arm := changes.pop("arm", None):
            names = Names.of(short(step.model), [runs_folder()])
            trained = names.trained(f"{arm}-lora", 0)
            changes["checkpoint"] = str(names.runs[trained][0].path / "final")
        evaluate(EvalConfig(**(self._common(step) | changes)))

    def _train(self, step: Step) -> None:
        """One fine-tune and its evaluations: causal, under its own regime if a third, bidirectional."""
        settings = {"steps": self.steps, **self.training, **step.settings}
        name = step.name.removesuffix(f"-{B}")
        opened = recommended(step.model) if settings.pop("opened", False) else None
        if "lr" not in settings:
            settings["lr"] = chosen_rate(finished(), short(step.model), settings["method"])
            if settings["lr"] is None:
                raise UserError(f"no learning rate of {settings['method']} was finished")
        config = FinetuneConfig(
            model=step.model,
            regime=opened,
            causal_anchor=1.0 if settings["objective"] == "distill" else 0.0,
            checkpoint_every=0,
            eval_every=0,
            name=name,
            **settings,
        )
        done = finished()
        path = done[name][0].path if name in done else run_finetune(config)
        checkpoint = str(path / "final")
        loaded = loading.load(step.model, checkpoint=checkpoint)
        for regime in ("causal", *([opened] if opened else []), B):
            run_name = f"{name}-{'opened' if regime == opened else regime}"
            if run_name not in done:
                changes = {"name": run_name, "regime": regime, "checkpoint": checkpoint}
                evaluate(EvalConfig(**(self._common(step) | changes)), loaded=loaded)

    def _common(self, step: Step) -> dict[str, Any]:
        settings = {"dtype": "bfloat16", "compact": True, "limit": self.limit, "tasks": self.tasks}
        return {"model": step.model, "name": step.name, **settings}


def free_memory() -> None:
    """Free memory for other workers. Not inside of an ``except``, whose frames hold the model."""
    gc.collect()
    torch.cuda.empty_cache()


# Names, and what is known so far


def short(model: str) -> str:
    """A model's short name in run names: ``qwen-1.5b``."""
    return {
        "smollm2-135m-instruct": "smollm2",
        "gemma3-270m": "gemma",
        "qwen2.5-coder-0.5b-instruct": "qwen-0.5b",
        "qwen2.5-coder-1.5b-instruct": "qwen-1.5b",
    }.get(model, model.rsplit("/", 1)[-1])


def predicted(model: str) -> tuple[str, ...]:
    return (f"recommend-{short(model)}",)


def searched(model: str, method: str) -> tuple[str, ...]:
    """The runs among which a method's learning rate is chosen."""
    return tuple(f"{short(model)}-3B-{method}-lr{rate:g}-seed0-{B}" for rate in RATES[method])


def recommended(model: str) -> str:
    """The regime that unlabelled prompts predict."""
    return predicted_regime(prediction(model))


def prediction(model: str) -> dict[str, Any]:
    """What was stored of a model before its labels were scored."""
    (run, *_) = finished()[f"recommend-{short(model)}"]
    return run.metrics or {}


def runs_folder() -> Path:
    return Path(runs_roots()[0])


def finished() -> dict[str, list[Run]]:
    return runs_by_name([runs_folder()])


# Who does which step


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repair", nargs="*", default=[], help="of these, also the fine-tunes")
    parser.add_argument("--order", nargs="*", default=[], help="of these, also the order tasks")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no step after this long")
    parser.add_argument("--limit", type=int, help="items a task, for trying it")
    parser.add_argument("--steps", type=int, default=Study.steps, help="of each long fine-tune")
    parser.add_argument("--micro-tokens", type=int, help="of fine-tunes (default: by device)")
    options = parser.parse_args(arguments)
    study = Study(
        tuple(options.models),
        tuple(options.repair),
        tuple(options.order),
        limit=options.limit,
        steps=options.steps,
        training={"data": "farther", "micro_tokens": options.micro_tokens},
    )
    with terminable():
        return work(list(study.plan()), options.seconds)


def work(steps: list[Step], seconds: float) -> int:
    """Do steps until none is left, or time is over; 1 if some are missing."""
    until = time.monotonic() + seconds
    claims = runs_folder() / ".claims"
    claims.mkdir(parents=True, exist_ok=True)
    while time.monotonic() < until:
        done = set(finished())
        failed = {path.stem for path in claims.glob("*.failed")}
        todo = [step for step in steps if step.name not in done | failed]
        if not todo:
            print("; ".join(["all done", *sorted(f"{name} FAILED" for name in failed)]))
            return int(bool(failed))
        for step in todo:
            if done | failed >= set(step.needs):
                lock = filelock.FileLock(claims / f"{step.name}.lock", timeout=0)
                try:
                    with lock:
                        attempt(step, claims / f"{step.name}.failed")
                    break
                except filelock.Timeout:
                    continue
        else:
            time.sleep(1)  # other workers have the remaining steps, or must finish others first
    print("out of time; run again to go on")
    return 1


def attempt(step: Step, failure: Path) -> None:
    """Do a step unless another worker has done it meanwhile; its failure stops no other step."""
    if step.name in finished() or failure.exists():
        return
    started = time.monotonic()
    try:
        step.work(step)
    except Exception as error:
        failure.write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        print(f"{step.name}: FAILED {type(error).__name__}: {error}", flush=True)
    else:
        print(f"{step.name}: {time.monotonic() - started:.1f} s", flush=True)
    free_memory()


if __name__ == "__main__":
    raise SystemExit(main())
