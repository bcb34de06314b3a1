"""Make finished runs small enough to be committed, and put them under ``runs/``.

    python -m scripts.keep_runs RUNS --items '*-full-seed0-*' 'bf16-*' --shared-device

Copies every finished evaluation, fine-tune and sweep of the runs folder RUNS whose name matches
``--names`` (default: all). Weights and what ``recommend`` measured of single prompts stay behind; of
observed attention the shares are kept, rounded to 1/256, not the heads' weights. Items are kept for names that match ``--items``: exactly where there is a
score of each token, else with log-likelihoods rounded to 1/64 nat after predictions and accuracies were
taken from the exact ones, which is less than a number format or a batch changes them. What runs share
(texts, tokens, hashes, gold answers) goes to ``runs/items`` once. Of a sweep whose name does not match the points' numbers are kept, not their items;
of runs and points whose id matches ``--answers`` what was answered, not the scores. Of the status
what a finished run's readers need; no log of a fine-tune, whose curve says the same, nor of a point,
whose sweep has one. Paths into RUNS become ``runs/...``.
``--shared-device`` notes in ``metrics.json`` that other work ran on the same device, so that nobody
reads a speed from the run's seconds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bidir_core.common.files import read_json, write_json
from bidir_core.explain.attend_files import Shares, read_shares, write_shares
from bidir_core.explain.sweep_points import ATTENTION_FILE
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.read import sealed
from bidir_core.runs.records import (
    SCORES,
    SHARED_FIELDS,
    SHARED_FOLDER,
    read_parquet,
    share,
    shared_files,
    write_parquet,
    write_slim,
)
from bidir_core.runs.run import Run

TEXTS = ["config.json", "status.json", "probe.json", "data.json", "curve.jsonl", ATTENTION_FILE]
STEPS_A_NAT, STEPS_A_SHARE = 64, 256
DIGITS = 4  # of shares of attention in metrics.json
STATUS = ("schema", "state", "done", "total", "started", "finished", "right", "recorded")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--names", nargs="+", default=["*"], help="patterns of names to keep")
    parser.add_argument("--items", nargs="+", default=[], help="patterns of names with items")
    parser.add_argument("--made-in", help="where RUNS lay when they were made, if elsewhere")
    parser.add_argument("--shared-device", action="store_true")
    parser.add_argument("--to", type=Path, default=COMMITTED_RUNS)
    parser.add_argument("--answers", nargs="+", default=[], help="patterns of ids without scores")
    options = parser.parse_args(arguments)
    for run in list_runs([options.runs]):
        name = run.name or ""
        if run.state != "done" or not any(fnmatch(name, pattern) for pattern in options.names):
            continue
        items = any(fnmatch(name, pattern) for pattern in options.items)
        folder = options.to / run.path.parent.name / run.path.name
        keep(run, folder, items=items, options=options)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{size / 1e3:8.1f} kB  {folder.relative_to(options.to)}")


def keep(run: Run, folder: Path, *, items: bool, options: argparse.Namespace) -> None:
    """Write ``run`` to ``folder`` anew, as the module says; what was there before is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    points = [(point, folder / "points" / point.path.name) for point in run.points()]
    for source, to in [(run, folder), *points]:
        _write_copy(source, to, items=items and source.has_items, options=options)


def _write_copy(run: Run, folder: Path, *, items: bool, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True)
    made_in = (options.made_in or str(options.runs.resolve())).rstrip("/")
    has_log = folder.parent.name != "points" and not (run.path / "curve.jsonl").is_file()
    for name in [*TEXTS, "log.txt"] if has_log else TEXTS:
        if (run.path / name).is_file():
            text = (run.path / name).read_text(encoding="utf-8")
            text = text.replace(f"{made_in}/", "runs/").replace(f'"{made_in}"', '"runs"')
            (folder / name).write_text(text, encoding="utf-8")
    status = read_json(folder / "status.json")
    kept = {name: status[name] for name in STATUS if name in status}
    write_json(folder / "status.json", kept, dense=True)
    if (folder / "data.json").is_file():
        write_json(folder / "data.json", read_json(folder / "data.json"), dense=True)
    if (run.path / "summary.npz").is_file():  # attention over many items
        shutil.copyfile(run.path / "summary.npz", folder / "summary.npz")
    config = read_json(folder / "config.json")
    if items:
        scores = read_parquet(run.path / "items.parquet", SCORES)
        answers_only = any(fnmatch(run.id, pattern) for pattern in options.answers)
        fingerprints = config["data_fingerprint"], config["tokenizer_fingerprint"]
        shared_name = share(run.items_table(SHARED_FIELDS), options.to, *fingerprints)
        config |= {"texts": shared_name, "texts_in": SHARED_FOLDER}
        if scores.column("token_ll").null_count < scores.num_rows:
            write_parquet(scores, folder / "items.parquet", store_schema=False)
        else:
            write_slim(rounded(scores, answers_only), folder / "items.parquet")
    write_json(folder / "config.json", config, dense=True)
    metrics = dict(run.metrics or {})
    if "matrices" in metrics:  # observed attention of one text
        keep_shares(run, folder, len(metrics["observed"]))
        note = f"the weights of single heads were left out, shares rounded to 1/{STEPS_A_SHARE}, for size"
        metrics |= {"matrices": False, "notes": [*metrics["notes"], note]}
    for name in ("observed", "drift"):
        if name in metrics:
            metrics[name] = shorter(metrics[name])
    if options.shared_device:
        metrics["cost"] = {**metrics["cost"], "shared_device": True}
    shared = shared_files(folder, config.get("texts"), config.get("texts_in"))
    write_json(folder / "metrics.json", sealed(metrics, folder, shared), dense=True)


def shorter(value: Any) -> Any:
    """The same with the numbers of lists, one a layer, rounded to :data:`DIGITS`."""
    if isinstance(value, dict):
        return {name: shorter(part) for name, part in value.items()}
    if isinstance(value, list):
        return [round(v, DIGITS) if isinstance(v, float) else shorter(v) for v in value]
    return value


def keep_shares(run: Run, folder: Path, n_regimes: int) -> None:
    """Where the tokens of one text attended, layer by layer and head by head, without the weights."""
    for name in ("tokens.json", "drift.npz"):
        shutil.copyfile(run.path / name, folder / name)
    kept = []
    for shares in read_shares(run.path, n_regimes):
        arrays = {
            name: np.round(a * STEPS_A_SHARE) / STEPS_A_SHARE for name, a in vars(shares).items()
        }
        kept.append(Shares(**arrays | {"n_prefix": shares.n_prefix}))
    write_shares(folder, kept)


def rounded(table: pa.Table, answers_only: bool) -> pa.Table:
    """``ll`` in steps of 1/:data:`STEPS_A_NAT`, or left out."""
    scores = [
        None if ll is None or answers_only else np.round(np.asarray(ll) * STEPS_A_NAT) / STEPS_A_NAT
        for ll in table.column("ll").to_pylist()
    ]
    field = table.schema.field("ll")
    index = table.schema.get_field_index("ll")
    return table.set_column(index, field, pa.array(scores, type=field.type))


if __name__ == "__main__":
    main()
