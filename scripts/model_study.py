"""One study of several models on GPUs: prediction, law, controls, repair, order. Any number of workers.

    python -m scripts.model_study MODEL ... --seconds 1500      # as many processes as there is room for

Each step is a run of its own name under the runs folder, taken by one worker and never twice; run
again, the same line goes on with what is missing. Whole validation sets in bfloat16, compact records.
What decides is fixed here, before any result:

- the prediction (``recommend``) of a model is stored before any of its labelled items is scored;
- the law asks for ``bidirectional:layers=A-`` at every A of :data:`LAW` below the model's last layer;
- of the learning rates in :data:`RATES` the one with the best macro accuracy under bidirectional prefill
  on the explore half, seed 0 of 3B, is taken for every objective and seed of the method. What is claimed
  is measured on the confirm half.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidir_core.common.progress import terminable
from bidir_core.data import assets
from bidir_core.data.assets import EMBEDDED_MODELS
from bidir_core.data.sampling import fold_of
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.explain.recommend import RecommendConfig, recommend
from bidir_core.explain.sweep import run_lab
from bidir_core.explain.sweep_points import LabConfig
from bidir_core.models import loading
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import runs_roots
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import run_finetune

LAW = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24)
ORDER_TASKS = tuple(
    f"{family}_{order}"
    for family in ("sciq", "sciq_letters", "boolq", "sciq_medium", "sciq_long")
    for order in ("first", "last")
)
RATES = {"lora": (2e-4, 5e-4, 1e-3), "full": (1e-5, 3e-5)}
SEEDS = {"lora": (0, 1, 2), "full": (0,)}
STEPS = 400
OBJECTIVES = ("3B", "3C", "distill")
SMALLER: dict[str, Any] = {"limit": None, "steps": STEPS}  # for trying it


@dataclass(frozen=True)
class Step:
    """``name``: of its run, or of the last one it makes. ``needs``: names of finished runs."""

    name: str
    model: str
    run: Callable[[Step], object]
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repair", nargs="*", default=[], help="of these, also the fine-tunes")
    parser.add_argument("--order", nargs="*", default=[], help="of these, also the order tasks")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no step after this long")
    parser.add_argument("--limit", type=int, help="items a task, for trying it")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each fine-tune")
    parser.add_argument("--wait-for", type=Path, help="models arrive until this file is there")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    SMALLER.update(limit=options.limit, steps=options.steps)
    steps = list(plan(options.models, options.repair, options.order))
    with terminable():
        while time.monotonic() < until:
            names = finished()
            todo = [step for step in steps if step.name not in names]
            if not todo:
                print("all done")
                return
            step = next((s for s in todo if ready(s, names, options.wait_for) and claim(s)), None)
            if step is None:
                if all((claims() / s.name).exists() for s in todo):
                    print("the rest is with other workers")
                    return
                time.sleep(1)
                continue
            started = time.monotonic()
            try:
                step.run(step)
            except Exception as error:  # one step's failure is not the others'
                print(f"{step.name}: FAILED {type(error).__name__}: {error}", flush=True)
                continue
            print(f"{step.name}: {time.monotonic() - started:.1f} s", flush=True)
    print("out of time; run again to go on")


def plan(models: list[str], repair: list[str], order: list[str]) -> Iterator[Step]:
    """All steps, the ones that matter most first."""
    for model in models:
        yield Step(f"recommend-{short(model)}", model, _recommend)
    for model in models:
        predicted = (f"recommend-{short(model)}",)
        yield Step(f"law-{short(model)}", model, _law, predicted)
    for model in repair:
        yield from _search(model)
    for model in models:
        predicted = (f"recommend-{short(model)}",)
        for name, changes in (
            ("no-context", {"context": "none"}),
            ("causal-hide0", {"regime": "causal:hide=0"}),
        ):
            yield Step(f"{name}-{short(model)}", model, _evaluation, predicted, changes)
    for model in order:
        yield from _order(model)
    for model in repair:
        yield from _repair(model)
    for model in models:
        yield Step(f"controls-{short(model)}", model, _controls, (f"recommend-{short(model)}",))
    for model in repair:
        if model in order:
            yield from _order_repaired(model)


def short(model: str) -> str:
    """A model's short name in run names: ``qwen-1.5b``."""
    return {
        "smollm2-135m-instruct": "smollm2",
        "gemma3-270m": "gemma",
        "qwen2.5-coder-0.5b-instruct": "qwen-0.5b",
        "qwen2.5-coder-1.5b-instruct": "qwen-1.5b",
    }.get(model, model.rsplit("/", 1)[-1])


# --- the steps ----------------------------------------------------------------------------------


def _recommend(step: Step) -> None:
    recommend(RecommendConfig(model=step.model, dtype="float32", name=step.name))


def _law(step: Step) -> None:
    last = layers_of(step.model) - 1
    opened = ",".join(f"{a}-" for a in LAW if a < last)
    sweep = (f"layers={opened},0-0", "sink=1,4")
    run_lab(LabConfig(**common(step), sweep=sweep))


def _controls(step: Step) -> None:
    sweep = ("hide=0", "self=2,10,30", "sink=1")
    run_lab(LabConfig(**common(step), sweep=sweep, controls=True))


def _evaluation(step: Step) -> None:
    evaluate(EvalConfig(**(common(step) | (step.settings or {}))))


def _search(model: str) -> Iterator[Step]:
    for method, rates in RATES.items():
        for rate in rates:
            settings = {"objective": "3B", "method": method, "seed": 0, "lr": rate}
            name = f"{short(model)}-3B-{method}-lr{rate:g}-seed0"
            yield Step(f"{name}-bidirectional", model, _train, (), settings)


def _repair(model: str) -> Iterator[Step]:
    for method in RATES:
        needs = tuple(
            f"{short(model)}-3B-{method}-lr{rate:g}-seed0-bidirectional" for rate in RATES[method]
        )
        for seed in SEEDS[method]:
            for objective in OBJECTIVES:
                if (objective, seed) != ("3B", 0):
                    settings = {"objective": objective, "method": method, "seed": seed}
                    name = f"{short(model)}-{objective}-{method}-seed{seed}"
                    yield Step(f"{name}-bidirectional", model, _train, needs, settings)
    needs = (f"recommend-{short(model)}", *needs_of_lora(model))
    settings = {"objective": "3B", "method": "lora", "seed": 0, "opened": True}
    yield Step(f"{short(model)}-3B-opened-lora-seed0-bidirectional", model, _train, needs, settings)


def needs_of_lora(model: str) -> tuple[str, ...]:
    return tuple(f"{short(model)}-3B-lora-lr{r:g}-seed0-bidirectional" for r in RATES["lora"])


def _train(step: Step) -> None:
    """One fine-tune and its evaluations: causal, under its own regime if that is a third, bidirectional."""
    settings = dict(step.settings or {})
    name = step.name.removesuffix("-bidirectional")
    opened = recommended(step.model) if settings.pop("opened", False) else None
    settings.setdefault("lr", None)
    settings["lr"] = settings["lr"] or chosen_rate(step.model, settings["method"])
    trained = finished().get(name)
    path = trained.path if trained else run_finetune(
        FinetuneConfig(
            model=step.model,
            steps=SMALLER["steps"],
            regime=opened,
            data="farther",
            causal_anchor=1.0 if settings["objective"] == "distill" else 0.0,
            checkpoint_every=0,
            eval_every=0,
            name=name,
            **settings,
        )
    )  # fmt: skip
    checkpoint = str(path / "final")
    loaded = loading.load(step.model, checkpoint=checkpoint)
    for regime in ("causal", *([opened] if opened else []), "bidirectional"):
        own = f"{name}-{'opened' if regime == opened else regime}"
        if own not in finished():
            config = common(step) | {"name": own, "regime": regime, "checkpoint": checkpoint}
            evaluate(EvalConfig(**config), loaded=loaded)


def _order(model: str) -> Iterator[Step]:
    needs = (f"recommend-{short(model)}",)
    for label, changes in (
        ("causal", {}),
        ("bidirectional", {"regime": "bidirectional"}),
        ("sink1", {"regime": "bidirectional:sink=1"}),
        ("layers2", {"regime": "bidirectional:layers=2-"}),
        ("opened", {"opened": True}),
        ("twice", {"repeat_prompt": 2}),
    ):
        yield Step(f"order-{label}-{short(model)}", model, _on_order_tasks, needs, changes)


def _order_repaired(model: str) -> Iterator[Step]:
    for arm, regimes in (
        ("3B", ("bidirectional", "causal")),
        ("3C", ("causal",)),
        ("3B-opened", ("opened", "causal")),
    ):
        for regime in regimes:
            lora = needs_of_lora(model)
            made = () if arm == "3B" else (f"{short(model)}-{arm}-lora-seed0-bidirectional",)
            changes = {"arm": arm} | (
                {"opened": True} if regime == "opened" else {"regime": regime}
            )
            name = f"order-{arm}-{regime}-{short(model)}"
            yield Step(name, model, _on_order_tasks, (*lora, *made), changes)


def _on_order_tasks(step: Step) -> None:
    changes = dict(step.settings or {})
    if changes.pop("opened", False):
        changes["regime"] = recommended(step.model)
    if arm := changes.pop("arm", None):
        rate = f"-lr{chosen_rate(step.model, 'lora'):g}" if arm == "3B" else ""
        trained = finished()[f"{short(step.model)}-{arm}-lora{rate}-seed0"]
        changes["checkpoint"] = str(trained.path / "final")
    evaluate(EvalConfig(**(common(step) | {"tasks": ORDER_TASKS} | changes)))


# --- what is known so far -----------------------------------------------------------------------


def common(step: Step) -> dict[str, Any]:
    return {
        "model": step.model,
        "dtype": "bfloat16",
        "compact": True,
        "limit": SMALLER["limit"],
        "name": step.name,
    }


def layers_of(model: str) -> int:
    return loading.preflight(model).n_layers


def recommended(model: str) -> str:
    """The regime that unlabelled prompts predict by the tenth of the divergence that is left.

    The threshold in nats asks for nearly causal models, which leaves little to look ahead with.
    """
    run = finished()[f"recommend-{short(model)}"]
    found = run.metrics["predictions"]  # type: ignore[index]
    first = found["share"] if found["share"] is not None else found["kl"]
    return f"bidirectional:layers={first}-" if first else "bidirectional"


def chosen_rate(model: str, method: str) -> float:
    """The learning rate that was best on the explore half."""
    runs = finished()
    scores = {
        rate: explore_macro(runs[f"{short(model)}-3B-{method}-lr{rate:g}-seed0-bidirectional"])
        for rate in RATES[method]
    }
    return max(scores, key=scores.__getitem__)


def explore_macro(run: Run) -> float:
    """Macro accuracy over the items of the explore half."""
    items = run.items(["task", "doc_hash", "correct"])
    half = items[[fold_of(doc_hash) == "explore" for doc_hash in items["doc_hash"]]]
    return float(half.groupby("task")["correct"].mean().mean())


def finished() -> dict[str, Run]:
    runs = list_runs([Path(runs_roots()[0])])
    return {run.name: run for run in runs if run.name and run.state == "done"}


def ready(step: Step, names: dict[str, Run], wait_for: Path | None) -> bool:
    if not all(need in names for need in step.needs):
        return False
    if wait_for is None or wait_for.exists() or step.model not in EMBEDDED_MODELS:
        return True
    return assets.state(step.model) == "ready"


def claims() -> Path:
    folder = Path(runs_roots()[0]) / ".claims"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def claim(step: Step) -> bool:
    """Whether this worker is the one to do it."""
    try:
        os.close(os.open(claims() / step.name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    main()
