"""Numbers of a paper's ledger, computed again from the run folders and from nothing else.

Items are paired here by hand and the reports' own contrasts are not used; what is shared with the
product is the arithmetic of :mod:`bidir_core.analyse.stats`, ``effects`` and ``retention``, which has its
own tests.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from bidir_core.analyse import effects, stats
from bidir_core.analyse.effects import Retention, above_floor_retention
from bidir_core.runs.records import read_parquet

_RIGHT = {"acc": "correct", "acc_norm": "correct_norm"}


class Recomputer:
    """Computes a ledger entry again from ``root``, the folder of the runs."""

    def __init__(self, root: Path):
        self.root = root
        self.json = cache(lambda run, file: json.loads((root / run / file).read_text()))
        self.right = cache(self._right)
        self.common = cache(self._common)

    def value(self, entry: dict[str, Any]) -> Any:
        return getattr(self, "_" + entry["source"]["statistic"])(entry, **entry["source"])

    # --- fields of files ----------------------------------------------------------------------

    def _lookup(self, run: str, file: str, field: str) -> Any:
        value = self.json(run, file)
        for name in field.split("."):
            value = value[name]
        return value

    def _field(self, entry, file, field, **_):
        values = []
        for run in entry["runs"]:
            value = self._lookup(run, file, field)
            if value is None and field.endswith("acc_norm"):
                value = self._lookup(run, file, field.removesuffix("_norm"))
            values.append(value)
        return sum(values) / len(values)

    def _sum(self, entry, file, field, **_):
        return sum(self._lookup(run, file, field) for run in entry["runs"])

    def _values(self, entry, file, field, **_):
        values = {json.dumps(self._lookup(run, file, field)) for run in entry["runs"]}
        assert len(values) == 1, values
        return json.loads(values.pop())

    def _count(self, entry, file, field, **_):
        found = [self._lookup(run, file, field) for run in entry["runs"]]
        if isinstance(found[0], dict):
            assert len({len(one) for one in found}) == 1
            return len(found[0])
        return sum(one is True for one in found)

    def _dial(self, entry, file, field, dial, **rest):
        regimes = {self._lookup(run, file, field) for run in entry["runs"]}
        dials = dict(part.split("=") for part in regimes.pop().partition(":")[2].split(","))
        assert not regimes
        name, _, end = dial.partition("-")  # of "layers=2-5", the first or the last
        return float(dials[name].split("-")[-1 if end == "last" else 0])

    def _curve(self, entry, file, field, **_):
        lines = [
            json.loads(line)
            for run in entry["runs"]
            for line in (self.root / run / file).read_text().splitlines()
        ]
        values = {row[field] for line in lines for row in line.get("evals", {}).values()}
        assert len(values) == 1
        return values.pop()

    def _name(self, entry, **_):
        return entry["value"]

    # --- one run --------------------------------------------------------------------------------

    def _variance(self, run: str, metric: str) -> float:
        rows = self.json(run, "metrics.json")["tasks"].values()
        parts = []
        for row in rows:
            p = row["acc"] if row.get(metric) is None else row[metric]
            parts.append(p * (1 - p) / (row["n"] - 1))
        return sum(parts) / len(parts) ** 2

    def _macro(self, run: str, metric: str) -> float:
        return self.json(run, "metrics.json")["macro"][metric]

    def _level(self, entry, metric, part, **_):
        values = [self._macro(run, metric) for run in entry["runs"]]
        variance = np.mean([self._variance(run, metric) for run in entry["runs"]])
        if len(values) > 1:
            variance += np.var(values, ddof=1) / len(values)
        half = 1.959964 * math.sqrt(variance)
        return np.mean(values) + (half if part == "high" else -half)

    # --- pairs ------------------------------------------------------------------------------------

    def _right(self, run: str, metric: str) -> dict[tuple[str, int], bool]:
        """(task, doc_id) -> was it right; items that could not be scored left out."""
        columns = ["task", "doc_id", "correct", "correct_norm", "error"]
        found = {}
        for row in read_parquet(self.root / run / "items.parquet", columns).to_pylist():
            if row["error"] is None:
                value = row[_RIGHT[metric]]
                found[row["task"], row["doc_id"]] = row["correct"] if value is None else value
        return found

    def _by_task(self, runs: list[str], metric: str) -> dict[str, np.ndarray]:
        """task -> bools [run, item] over the items that all of these runs hold."""
        return self.common(tuple(runs), metric)

    def _common(self, runs: tuple[str, ...], metric: str) -> dict[str, np.ndarray]:
        right = [self.right(run, metric) for run in runs]
        keys = [key for key in right[0] if all(key in one for one in right)]
        tasks = list(dict.fromkeys(task for task, _ in keys))
        return {t: np.array([[one[k] for k in keys if k[0] == t] for one in right]) for t in tasks}

    def _tables(self, pair: list[str], metric: str) -> dict[str, stats.Table2x2]:
        tables = {}
        for task, (a, b) in self._by_task(pair, metric).items():
            broken, fixed = int((a & ~b).sum()), int((~a & b).sum())
            tables[task] = stats.Table2x2(int((a & b).sum()), broken, fixed, int((~a & ~b).sum()))
        return tables

    def _difference(self, pairs, metric, task) -> stats.Estimate:
        if len(pairs) == 1:
            tables = self._tables(pairs[0], metric)
            if task == "macro":
                return stats.macro_delta([stats.paired_interval(t) for t in tables.values()])
            return stats.paired_interval(tables[task])
        both = [self._by_task(pair, metric) for pair in pairs]
        values = {
            name: np.stack([one[name][1].astype(float) - one[name][0] for one in both])
            for name in both[0]
        }
        found = effects.stratified_mean(values)
        return found.estimate if task == "macro" else found.per_task[task]

    def _paired(self, entry, task, part, metric, pairs, **_):
        if part in ("acc_a", "acc_b"):
            rows = [self._by_task(pair, metric)[task][int(part == "acc_b")] for pair in pairs]
            return np.mean([row.mean() for row in rows])
        return getattr(self._difference(pairs, metric, task), part)

    def _unpaired(self, entry, task, part, metric, pairs, **_):
        assert task == "macro"
        differences = [self._macro(b, metric) - self._macro(a, metric) for a, b in pairs]
        value = np.mean(differences)
        if part == "value":
            return value
        variances = [self._variance(a, metric) + self._variance(b, metric) for a, b in pairs]
        variance = np.mean(variances)
        if len(pairs) > 1:
            variance += np.var(differences, ddof=1) / len(pairs)
        half = 1.959964 * math.sqrt(variance)
        return value + (half if part == "high" else -half)

    def _items(self, entry, task, metric, pairs=None, arms=None, **_):
        runs = pairs[0] if pairs else [run for one in arms for run in one]
        if all((self.root / run / "items.parquet").exists() for run in runs):
            sizes = {name: rows.shape[1] for name, rows in self._by_task(runs, metric).items()}
            return sum(sizes.values()) if task == "macro" else sizes[task]
        return self.json(runs[0], "metrics.json")["n_items"]

    def _flips(self, entry, task, part, metric, pairs, **_):
        return np.mean([getattr(self._tables(pair, metric)[task], part) for pair in pairs])

    def _p(self, pair: list[str], metric: str) -> dict[str, float]:
        tables = self._tables(pair, metric)
        return {
            task: binomtest(t.broken, t.churn).pvalue if t.churn else 1.0
            for task, t in tables.items()
        }

    def _mcnemar(self, entry, task, metric, pairs, pair, **_):
        return self._p(pairs[pair], metric)[task]

    def _holm(self, entry, task, metric, pairs, pair, **_):
        ranked = sorted(self._p(pairs[pair], metric).items(), key=lambda item: item[1])
        adjusted, largest = {}, 0.0
        for i, (name, p) in enumerate(ranked):
            largest = max(largest, min(1.0, p * (len(ranked) - i)))
            adjusted[name] = largest
        return adjusted[task]

    def _detectable(self, entry, metric, pairs, **_):
        return stats.smallest_detectable_macro(list(self._tables(pairs[0], metric).values()))

    def _retention(self, entry, floor, part, basis, metric, pairs, **_):
        found = [self._kept(pair, floor, basis, metric) for pair in pairs]
        values = [getattr(one, part) for one in found]
        return {"value": np.mean, "low": min, "high": max}[part](values)

    def _kept(self, pair, floor, basis, metric) -> Retention:
        if basis != "paired":
            chance = self.json(pair[0], "metrics.json")["macro"]["chance"]
            a, b = (self._macro(run, metric) for run in pair)
            return Retention((b - chance) / (a - chance), None, None, 0)
        runs = pair if floor == "chance" else [*pair, floor]
        rows = self._by_task(runs, metric)
        floors = {t: one[2] for t, one in rows.items()} if floor != "chance" else self._chance(pair)
        first, second = ({t: one[i] for t, one in rows.items()} for i in (0, 1))
        return above_floor_retention(first, second, floors)

    def _chance(self, pair) -> dict[str, float]:
        columns = ["task", "n_continuation_tokens"]
        table = read_parquet(self.root / pair[0] / "items.parquet", columns).to_pylist()
        choices: dict[str, list[float]] = {}
        for row in table:
            choices.setdefault(row["task"], []).append(1 / len(row["n_continuation_tokens"]))
        return {task: float(np.mean(values)) for task, values in choices.items()}

    def _interaction(self, entry, task, part, metric, arms, **_):
        rows = self._by_task([run for one in arms for run in one], metric)
        k = len(arms[0])
        values = {
            name: one[:k].astype(float) - one[k : 2 * k] - one[2 * k : 3 * k] + one[3 * k :]
            for name, one in rows.items()
        }
        found = effects.stratified_mean(values)
        return getattr(found.estimate if task == "macro" else found.per_task[task], part)

    def _verdict(self, entry, task, margin, metric, pairs=None, arms=None, **_):
        if arms is not None:
            low, high = (
                self._interaction(entry, task, part, metric, arms) for part in ("low", "high")
            )
            p_holm = []
        elif self._has_items(pairs):
            found = self._difference(pairs, metric, task)
            low, high = found.low, found.high
            p_holm = (
                []
                if task == "macro"
                else [self._holm(entry, task, metric, pairs, i) for i in range(len(pairs))]
            )
        elif not all(self.json(run, "metrics.json").get("tasks") for one in pairs for run in one):
            return "no interval"
        else:
            low, high = (self._unpaired(entry, task, p, metric, pairs) for p in ("low", "high"))
            p_holm = []
        if -margin < low and high < margin:
            return "no difference"
        if low <= 0 <= high or any(p >= 0.05 for p in p_holm):
            return "undecided"
        return "higher" if low > 0 else "lower"

    def _has_items(self, pairs) -> bool:
        return all((self.root / run / "items.parquet").exists() for pair in pairs for run in pair)

    def _constant(self, entry, name, **_):
        return {
            "confidence": stats.CONFIDENCE, "power": 0.8, "margin": stats.MARGIN,
            "significance": 0.05, "resamples": 10_000, "span": 13,
        }[name]  # fmt: skip
