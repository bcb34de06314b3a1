"""Documents for lm-eval, and its output files: to read, and to damage."""

import json
from pathlib import Path
from typing import Any

from bidir_core.runs.records import HEAVY_FIELDS

N = 12
TASKS = ("hellaswag", "winogrande", "piqa")
DOCS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {
            "ind": i,
            "activity_label": "Baking",
            "ctx_a": f"A cook “opens” oven {i}.",
            "ctx_b": "the Cook",
            "ctx": f"A cook opens oven {i}. the Cook",
            "endings": [
                f"eats [step] it {i}.",
                "[header] Cake [title] Bake.",
                "runs.",
                "sings  on.",
            ],
            "source_id": ("wikihow~1", "activitynet~v_x")[i % 2],
            "split": "val",
            "split_type": "indomain",
            "label": str(i % 4),
        }
        for i in range(N)
    ],
    "piqa": [
        {"goal": f"Open jar {i}", "sol1": "turn the lid " * (i % 3 + 1), "sol2": "blow at it"}
        | {"label": i % 2}
        for i in range(N)
    ],
    "winogrande": [
        {"sentence": f"Ann paid Bea {i} times, so _ was “broke”.", "option1": "Ann"}
        | {"option2": "Bea", "answer": str(1 + i % 2)}
        for i in range(N)
    ],
}
LIMIT = 10
# What an lm-eval run cannot know, or knows only of a tokenizer that it has itself.
TOKENIZER_KEYS = {f"tokenizer_{kind}_token" for kind in ("pad", "eos", "bos")}
TOKENIZER_KEYS |= {"eot_token_id", "max_length"}
TOKEN_FIELDS = ["n_prefix_tokens", "n_continuation_tokens"]
TOKEN_FIELDS += [name for name in HEAVY_FIELDS if "token" in name]


def lines_of(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())


def edit_results(folder: Path, change) -> None:
    (path,) = folder.rglob("results_*.json")
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_lines(folder: Path, task: str, change) -> None:
    """``change`` gets the list of samples."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    lines = lines_of(folder, task)
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
