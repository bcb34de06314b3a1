"""Make finished runs small enough to be committed, and put them under ``runs/``.

    python -m scripts.keep_runs RUNS --items '*-full-seed0-*' 'bf16-*' --shared-device

Copies every finished evaluation, fine-tune and sweep of the runs folder RUNS whose name matches
``--names`` (default: all). Weights stay behind; of observed attention the shares are kept, rounded to
1/256, not the heads' weights. Items are kept for names that match ``--items``, with log-likelihoods
rounded to 1/64 nat after predictions and accuracies were taken from the exact ones: less than a number
format or a batch changes them. What compact runs share (hashes, gold answers, token counts) goes to
``runs/items`` once. Of a sweep whose name does not match the points' numbers are kept, not their items;
of runs and points whose id matches ``--answers`` what was answered, not the scores. Paths into RUNS
become ``runs/...``.
``--shared-device`` notes in ``metrics.json`` that other work ran on the same device, so that nobody
reads a speed from the run's seconds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa

from bidir_core.common.files import read_json, write_json
from bidir_core.explain.attend_files import Shares, read_shares, write_shares
from bidir_core.explain.sweep_points import ATTENTION_FILE
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.read import sealed
from bidir_core.runs.records import (
    SHARED_FIELDS,
    SHARED_FOLDER,
    SLIM_FIELDS,
    read_parquet,
    share,
    shared_files,
    write_parquet,
    write_slim,
)
from bidir_core.runs.run import Run

TEXTS = ["config.json", "status.json", "probe.json", "data.json", "curve.jsonl", "log.txt"]
TEXTS += ["prompts.jsonl", ATTENTION_FILE]
STEPS_A_NAT, STEPS_A_SHARE = 64, 256


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
    for name in TEXTS:
        if (run.path / name).is_file():
            text = (run.path / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace(f"{made_in}/", "runs/"), encoding="utf-8")
    config = read_json(folder / "config.json")
    if items:
        source, target = run.path / "items.parquet", folder / "items.parquet"
        answers_only = any(fnmatch(run.id, pattern) for pattern in options.answers)
        if run.is_compact or run.texts_path is not None:
            fingerprints = config["data_fingerprint"], config["tokenizer_fingerprint"]
            shared_name = share(run.items_table(SHARED_FIELDS), options.to, *fingerprints)
            config |= {"texts": shared_name, "texts_in": SHARED_FOLDER}
            write_slim(rounded(read_parquet(source, SLIM_FIELDS), answers_only), target)
        else:
            write_parquet(rounded(read_parquet(source), answers_only), target)
    write_json(folder / "config.json", config, dense=run.is_point)  # a sweep has many
    metrics = dict(run.metrics or {})
    if "matrices" in metrics:  # observed attention of one text
        keep_shares(run, folder, len(metrics["observed"]))
        note = f"the weights of single heads were left out, shares rounded to 1/{STEPS_A_SHARE}, for size"
        metrics |= {"matrices": False, "notes": [*metrics["notes"], note]}
    if options.shared_device:
        metrics["cost"] = {**metrics["cost"], "shared_device": True}
    shared = shared_files(folder, config.get("texts"), config.get("texts_in"))
    write_json(folder / "metrics.json", sealed(metrics, folder, shared), dense=run.is_point)


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
    """``ll`` in steps of 1/:data:`STEPS_A_NAT` or left out, and the margin that follows from it."""
    scores = [
        None if ll is None or answers_only else np.round(np.asarray(ll) * STEPS_A_NAT) / STEPS_A_NAT
        for ll in table.column("ll").to_pylist()
    ]
    table = _with(table, "ll", scores)
    if "margin" not in table.column_names:  # of a sweep's point: readers join it
        return table
    margins = [
        None if ll is None else float(ll[gold] - np.delete(ll, gold).max())
        for ll, gold in zip(scores, table.column("gold").to_pylist(), strict=True)
    ]
    return _with(table, "margin", margins)


def _with(table: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    index = table.schema.get_field_index(name)
    array = pa.array(values, type=table.schema.field(name).type)
    return table.set_column(index, table.schema.field(name), array)


if __name__ == "__main__":
    main()
