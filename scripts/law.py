"""The tables on four models, from committed runs: damage, controls, and the law of the first layers.

    python -m scripts.law      # writes docs/tables/law*.csv and the two tables of docs/FINDINGS.md

Pairs each ``law-*`` sweep with the ``recommend-*`` run of the same name: the prediction was stored
before any label of that model was scored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from bidir_core.analyse.phrases import word
from bidir_core.explain.law import Law, hits, law_of
from bidir_core.explain.sweep_summary import Sweep, outcomes
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLES, PAGE = DOCS / "tables", DOCS / "FINDINGS.md"
CURVES, PREDICTIONS = "law.csv", "law_predictions.csv"
NAMES = {
    "smollm2": "SmolLM2 135M", "gemma": "Gemma 3 270M",
    "qwen-0.5b": "Qwen2.5-Coder 0.5B", "qwen-1.5b": "Qwen2.5-Coder 1.5B",
}  # fmt: skip


def main(folder: Path = TABLES, page: Path | None = PAGE) -> None:
    laws = {name: (law_of(run), run) for name, run in named("law-").items()}
    predicted = named("recommend-")
    predictions = list(prediction_rows(laws, predicted))
    write(folder / CURVES, curve_rows(laws))
    write(folder / PREDICTIONS, predictions)
    if page is not None:
        fill(page, "models", made_with(laws["smollm2"][1]) + table(*model_rows(laws)))
        fill(page, "context", context_kept())
        fill(page, "predictions", table(*([str(cell) for cell in row] for row in predictions)))


def model_rows(laws: dict[str, tuple[Law, Run]]) -> Iterable[list[str]]:
    """One row a model: what looking ahead costs, and what leaves it out without training."""
    yield [
        "model", "causal", "bidirectional", "`sink=1`", "`self=10`", "`causal:hide=0`",
        "A", "`layers=A-`, confirm half",
    ]  # fmt: skip
    controls = named("controls-")
    hidden = {
        str(run.name).removeprefix("causal-hide0-"): run
        for run in list_runs([COMMITTED_RUNS])
        if (run.name or "").startswith("causal-hide0-")
    }
    for name in NAMES:
        law, run = laws[name]
        sweep, kept = Sweep(run), Sweep(controls[name])
        causal = sweep.runs["causal"]
        both = outcomes(causal, {"causal": causal, "hidden": hidden[name]}, "acc")
        at = next(o for o in law.curve if o.first_layer == law.first_layer)
        yield [
            NAMES[name],
            f"{100 * sweep.numbers('causal', 'acc')['value']:.1f} %",
            *(
                points_of(whole.numbers(slug, "acc")["delta"])
                for whole, slug in (
                    (sweep, "bidirectional"),
                    (sweep, "bidirectional_sink-1"),
                    (kept, "bidirectional_self-10"),
                )
            ),
            points_of(vars(both.delta("causal", "hidden"))),
            str(law.first_layer),
            points_of(vars(at.confirm)),
        ]


def table(header: list[str], *rows: list[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def made_with(run: Run) -> str:
    """The line above the table: items, number format, device, day, versions."""
    versions = run.config["packages"]
    device = (run.metrics or {})["cost"]["device"]
    return (
        f"Whole validation sets, {(run.metrics or {})['n_items']:,} items, {run.config['dtype']}, {device}, "
        f"{run.config['created'][:10]}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}. Points of macro accuracy against causal, 95 % CI.\n\n"
    )


def context_kept() -> str:
    """What of their contexts' worth the models keep under bidirectional prefill."""
    found = []
    for name, run in named("controls-").items():
        if name not in NAMES:
            continue
        (floor,) = [c for c in (run.metrics or {})["controls"] if c["name"] == "floor"]
        found.append(f"- {NAMES[name]}: {floor['finding']}")
    return "\n".join(found)


def points_of(delta: dict[str, float]) -> str:
    value, low, high = (100 * delta[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def fill(page: Path, name: str, lines: str) -> None:
    """Put the table between its marks on the page."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- law: {name} -->\n", "<!-- end -->"
    before, _, rest = text.partition(start)
    page.write_text(f"{before}{start}{lines}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


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
