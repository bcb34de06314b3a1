"""Seeded run folders for the browser tests and screenshots.

``python -m tests.e2e.seed FOLDER large`` writes one part of them and prints its runs' ids.
"""

import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bidir_core.runs.run import Run
from tests.factory import TASKS, make_item, make_reference, make_run, spread_items

N_ITEMS = 2299
PUBLISHED_1 = dict(zip(TASKS, (0.622, 0.788, 0.814, 0.585284, 0.666)))
PUBLISHED_2 = dict(zip(TASKS, (0.242, 0.534, 0.238, 0.247492, 0.518)))
CAUSAL = dict(zip(TASKS, (0.35, 0.66, 0.5, 0.26, 0.51)))
BIDIRECTIONAL = dict(zip(TASKS, (0.31, 0.6, 0.37, 0.25, 0.5)))
HOSTILE = (
    "<script>window.hacked=1</script><img src=http://evil.test/a.png onerror=alert(1)>",
    "![x](http://evil.test/b.png) [click](http://evil.test/c) <style>@import 'http://evil.test/d.css'</style>",
    "<form action=http://evil.test/e><button>go</button></form> \u202edrow\u202c zero\u200bwidth $x^2$ :red[hot]",
    "https://evil.test/f <iframe src=http://evil.test/g></iframe> **bold** `code` | a | b |",
)


def seed(root: Path, *, n_items: int = N_ITEMS) -> dict[str, Run]:
    """The runs most tests need; a corrupt, a partial, a mismatched and a hostile one among them."""
    stage2, ahead = "stage2_prefill_bidir_eval", {"regime": "bidirectional"}
    items = spread_items(n_items, TASKS)  # made once: three runs hold the same
    whole: dict[str, Any] = {"items": items, "config": {"limit": 500}}
    sink = {"regime": "bidirectional:sink=1", "accuracy": {**CAUSAL, "arc_easy": 0.51}}
    foreign = {"data_seed": 7, "model": "mistralai/Ministral-3-3B-Instruct-2512"}
    runs = {
        "stage1": make_run(root, accuracy=CAUSAL, **whole),
        "stage2": make_run(root, stage2, accuracy=BIDIRECTIONAL, seed=1, **ahead, **whole),
        "sink": make_run(root, stage2, seed=2, **sink, **whole),
        "corrupt": make_run(root, stage2, name="torn", n_items=10, state="corrupt", **ahead),
        "partial": make_run(root, stage2, name="stopped", n_items=400, state="partial", **ahead),
        "failed": make_run(root, name="oom", n_items=60, state="failed"),
        "other": make_run(root, name="other-data", n_items=40, **foreign),
        "published1": make_reference(root, tasks=PUBLISHED_1),
        "published2": make_reference(root, stage2, tasks=PUBLISHED_2, **ahead),
    }
    return runs | seed_hostile(root)


def seed_hostile(root: Path) -> dict[str, Run]:
    """Two runs whose texts try to run code, fetch, style, submit, reorder and drown the page."""
    items = [make_item("hostile", number, 3) for number in range(len(HOSTILE))]
    for item, text in zip(items, HOSTILE, strict=True):
        item["contexts"] = [text]
        item["continuations"] = [" " + text, " plain", " <b>x</b>", " ]]>"]
        item["prefix_token_ids"] = [[1, 2]]
        item["prefix_token_offsets"] = [[[0, 5], [5, len(text)]]]
        item["n_prefix_tokens"] = [2]
        item["continuation_token_ids"] = [[1]] * 4
        item["continuation_token_offsets"] = [[[0, len(c)]] for c in item["continuations"]]
        item["n_continuation_tokens"] = [1] * 4
        item["gold"] = 0
    huge = make_item("hostile", len(HOSTILE), 3)
    huge["contexts"] = ["<b>long</b> " * 9000]
    huge["prefix_token_ids"] = [list(range(18000))]
    huge["prefix_token_offsets"] = [[[6 * i, 6 * i + 6] for i in range(18000)]]
    huge["n_prefix_tokens"] = [18000]
    common = {"items": [*items, huge], "tasks": ["hostile"], "model": "</b><img src=x>model"}
    ahead = {"regime": "bidirectional", "accuracy": 0.0, "seed": 5}
    return {
        "hostile1": make_run(root, name="hostile", accuracy=1.0, **common),
        "hostile2": make_run(root, "stage2_prefill_bidir_eval", name="hostile", **ahead, **common),
    }


def seed_large(root: Path) -> dict[str, Run]:
    """A pair of ten thousand items of one task, newer than what :func:`seed` makes.

    Their texts come again and again, under ids of their own.
    """
    texts = [make_item("hellaswag", number, 0) for number in range(1000)]
    items = [
        texts[number % 1000] | {"doc_id": number, "doc_hash": f"{number:064x}"}
        for number in range(10_000)
    ]
    common: dict[str, Any] = {"items": items, "tasks": ["hellaswag"]}
    stages = ("stage1_vanilla_eval", "stage2_prefill_bidir_eval")
    one, other = (root / stage / f"20261122-08010{n}_large" for n, stage in enumerate(stages))
    ahead = {"regime": "bidirectional", "accuracy": 0.38, "seed": 1, "folder": other}
    return {
        "large1": make_run(root, stages[0], accuracy=0.45, folder=one, **common),
        "large2": make_run(root, stages[1], **ahead, **common),
    }


def seed_part(folder: Path, part: str) -> dict[str, str]:
    """Make what a process of its own makes; the ids of runs that tests ask for."""
    if part == "sweep":
        from tests.lab_factory import make_sweep

        make_sweep(folder / part, n_items=100)  # the Lab page reads its summary
        return {}
    return {name: run.id for name, run in seed_large(folder / "runs").items()}


def seed_all(folder: Path) -> dict[str, str]:
    """Make all that the tests read in ``folder``; the ids of the runs in its ``runs``."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.seed", str(folder), part],
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in ("large", "sweep")
    ]
    with quickly():
        ids = {name: run.id for name, run in seed(folder / "runs").items()}
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError("a part of the seeds could not be made")
        ids |= json.loads(said)
    return ids


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Without the time that collecting garbage takes."""
    gc.disable()
    yield
    gc.enable()


if __name__ == "__main__":
    with quickly():
        print(json.dumps(seed_part(Path(sys.argv[1]), sys.argv[2])))
