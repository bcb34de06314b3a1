"""Explaining one item, beside an earlier version of the same, in one run.

    python -m benchmarks.why_speed --before 8d4f660 --repeats 3

Takes ``bidir_core/variants.py`` as it was at a commit (from git) and as it is now, and explains
the same item with both, interleaved; prints wall and CPU seconds, their ratio (median of paired
repeats), and the largest difference of any number in the result. Model loading is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers

from bidir_core.evaluate.evaluate import preflight
from bidir_core.explain import variants, why
from bidir_core.explain.why import WhyConfig, resolve, sentences
from bidir_core.explain.why_search import investigate
from bidir_core.models import loading
from bidir_core.regimes import parse_regime

RUN = "stage2_prefill_bidir_eval/20261122-230425_limit500"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", default="8d4f660", help="the commit to compare with")
    parser.add_argument("--as-run", default=RUN)
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--doc-id", type=int, default=117)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    asked = WhyConfig(as_run=options.as_run, task=options.task, doc_id=options.doc_id)
    config, reading, run = resolve(asked)
    regime = parse_regime(reading.regime)
    plan = preflight(reading, regime)
    encoded, _ = why._read(config, reading, plan, run)
    loaded = loading.load_weights(plan)
    versions = {"before": module_at(options.before), "now": variants}

    print(
        f"{encoded.item.item_id}, {loaded.dtype} on {loaded.device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    )
    trials: dict[str, list[tuple[float, float]]] = {name: [] for name in versions}
    results: dict[str, dict[str, Any]] = {}
    for number in range(options.repeats):
        # In turn first and second: whatever else the machine does favours neither.
        for name in sorted(versions, reverse=bool(number % 2)):
            with in_place(versions[name]):
                wall, cpu = time.monotonic(), time.process_time()
                result, computed = investigate(loaded, encoded, regime, config.metric)
                trials[name].append((time.monotonic() - wall, time.process_time() - cpu))
            results[name] = result | {"computed_tokens": computed}
            print(f"  {name:6s} {trials[name][-1][0]:7.1f} s   cpu {trials[name][-1][1]:7.1f} s")
    for name, found in trials.items():
        wall, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:6s} median {wall:7.1f} s   cpu {cpu:7.1f} s")
    for which, unit in enumerate(("wall", "cpu")):
        ratios = [b[which] / a[which] for a, b in zip(trials["before"], trials["now"], strict=True)]
        print(f"now / before, {unit}: {statistics.median(ratios):.2f}")
    words = [sentences({**result, "recorded": None}) for result in results.values()]
    print(f"sentences {'equal' if words[0] == words[1] else 'DIFFER'}")
    print(f"largest difference of a number: {difference(*results.values()):.2g}")


def module_at(commit: str) -> ModuleType:
    """``bidir_core.explain.variants`` as it was at a commit, under another name."""
    source = subprocess.run(
        ["git", "show", f"{commit}:bidir_core/variants.py"],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parent,
    ).stdout  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variants_before.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("variants_before", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextmanager
def in_place(module: ModuleType) -> Iterator[None]:
    """``bidir_core.explain.variants`` is ``module`` inside."""
    sys.modules["bidir_core.explain.variants"] = module
    try:
        yield
    finally:
        sys.modules["bidir_core.explain.variants"] = variants


def difference(one: Any, other: Any) -> float:
    """The largest difference between numbers at the same place; infinite where else they differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")


if __name__ == "__main__":
    main()
