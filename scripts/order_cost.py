"""Seconds and memory of each way to ask the order tasks, form by form.

    python -m scripts.order_cost MODEL ...    # into docs/tables/order_cost.csv

The first ``--limit`` documents of each form, in both orders, on a device with nothing else on it. Each
is evaluated twice, and the second time is taken: the first one pays for kernels that are chosen once.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from pathlib import Path

from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.models import loading
from bidir_core.runs.run import Run
from scripts.model_study import recommended, short
from scripts.pages import TABLES

FORMS = ("sciq", "sciq_letters", "boolq", "sciq_medium", "sciq_long")
HEADER = ("model", "form", "regime", "prompt given", "prompts", "scoring, s", "peak GB", "device")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--limit", type=int, default=200, help="documents of each form")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=TABLES / "order_cost.csv")
    options = parser.parse_args(arguments)
    with options.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for model in options.models:
            loaded = loading.load(model, device=options.device)
            regimes = ("causal", "bidirectional", "bidirectional:sink=1", recommended(model))
            ways = (*((regime, 1) for regime in regimes), ("causal", 2))
            for form, (regime, times) in itertools.product(FORMS, ways):
                config = EvalConfig(
                    model=model,
                    tasks=(f"{form}_first", f"{form}_last"),
                    limit=options.limit,
                    regime=regime,
                    repeat_prompt=times,
                    compact=True,
                    device=options.device,
                )
                row = (short(model), form, regime, times, *measured(config, loaded))
                table.writerow(row)
                file.flush()
                print(*row, flush=True)


def measured(config: EvalConfig, loaded: loading.LoadedModel) -> tuple[object, ...]:
    """Prompts, seconds of scoring, peak GB and device of the second of two evaluations."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "run")
            evaluate(config, loaded=loaded, folder=run.path)
            metrics = run.metrics or {}
    cost = metrics["cost"]
    peak = max(cost["peak_memory_bytes"].values()) / 1e9
    n = sum(task["n"] for task in metrics["tasks"].values())
    return n, f"{cost['seconds']:.2f}", f"{peak:.2f}", cost["device"]


if __name__ == "__main__":
    main()
