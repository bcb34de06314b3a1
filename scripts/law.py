"""The tables of the law of the first layers, from committed runs.

    python -m scripts.law      # writes docs/tables/law.csv and docs/tables/law_predictions.csv

Pairs each ``law-*`` sweep with the ``recommend-*`` run of the same name: the prediction was stored
before any label of that model was scored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from bidir_core.analyse.phrases import word
from bidir_core.explain.law import Law, hits, law_of
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run

TABLES = Path(__file__).resolve().parent.parent / "docs" / "tables"
CURVES, PREDICTIONS = "law.csv", "law_predictions.csv"


def main(folder: Path = TABLES) -> None:
    laws = {name: (law_of(run), run) for name, run in named("law-").items()}
    predicted = named("recommend-")
    write(folder / CURVES, curve_rows(laws))
    write(folder / PREDICTIONS, prediction_rows(laws, predicted))


def named(prefix: str) -> dict[str, Run]:
    """The newest finished lab run of each name with the prefix, by what follows it."""
    found: dict[str, Run] = {}
    for run in list_runs([COMMITTED_RUNS]):
        if run.stage == "lab" and run.state == "done" and (run.name or "").startswith(prefix):
            found.setdefault(str(run.name).removeprefix(prefix), run)
    return dict(sorted(found.items()))


def curve_rows(laws: dict[str, tuple[Law, Run]]) -> Iterable[list[object]]:
    yield [
        "model", "run", "first layer A of layers=A-", "half", "macro accuracy against causal, points",
        "95 % from", "to", "n",
    ]  # fmt: skip
    for name, (law, run) in laws.items():
        for opened in law.curve:
            for half in ("explore", "confirm", "whole"):
                delta = getattr(opened, half)
                ends = (100 * delta.value, 100 * delta.low, 100 * delta.high)
                yield [name, run.id, opened.first_layer, half, *(f"{x:.2f}" for x in ends), delta.n]


def prediction_rows(
    laws: dict[str, tuple[Law, Run]], predicted: dict[str, Run]
) -> Iterable[list[object]]:
    yield [
        "model", "layers", "A by labels (explore)", "on confirm", "on all items",
        "kl", "outlier", "attention", "share", "right",
    ]  # fmt: skip
    for name, (law, _) in laws.items():
        metrics = predicted[name].metrics or {}
        right = [key for key, hit in hits(law, metrics).items() if hit]
        yield [
            name,
            metrics.get("n_layers"),
            law.first_layer,
            law.confirm and word(law.confirm),
            law.whole and word(law.whole),
            *(metrics["predictions"].get(key) for key in ("kl", "outlier", "attention", "share")),
            " ".join(right) or "none",
        ]


def write(path: Path, rows: Iterable[list[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
