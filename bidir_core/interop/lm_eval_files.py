"""Which files make one lm-eval result: ``results_<time>.json`` and ``samples_<task>_<time>.jsonl``.

lm-eval (``EvaluationTracker``, 0.4.3 and newer) gives both kinds the same time and puts them into
a folder named after the model; a run with ``--output_path x.json`` names the first
``x_<time>.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidir_core.errors import UserError

_TIME = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_RESULTS = re.compile(rf".+_({_TIME})\.json")
_SAMPLES = re.compile(rf"samples_(.+)_({_TIME})\.jsonl")
_NAMES = "results_<time>.json and samples_<task>_<time>.jsonl"
READ_VERSION = "0.4.13"
"""The version whose output the tests read and write."""


@dataclass(frozen=True)
class LmEvalOutput:
    """One set of files of the same time. ``others``: how many further sets the folder holds."""

    time: str
    results_path: Path
    results: dict[str, Any]
    samples: dict[str, Path]
    others: int = 0

    @property
    def version(self) -> str:
        """lm-eval's version, or an empty text: older ones did not write it."""
        return str(self.results.get("lm_eval_version") or "")

    def section(self, name: str) -> dict[str, Any]:
        """A part of the results file by its key; empty where it is not there."""
        value = self.results.get(name)
        return value if isinstance(value, dict) else {}

    def row(self, section: str, task: str) -> dict[str, Any]:
        """What a part of the results file says about one task; empty where it says nothing."""
        value = self.section(section).get(task)
        return value if isinstance(value, dict) else {}


def find_output(path: Path) -> LmEvalOutput:
    """The newest set of files in a folder (or in its only subfolder), or that of a named file.

    Raises `UserError` for a path that is not there, a folder without lm-eval's files, samples
    without results, results without samples, and a results file that is none.
    """
    if path.is_dir():
        folder, time = _folder_with_output(path), None
    elif path.is_file():
        folder, time = path.parent, _time_of(path)
    else:
        raise UserError(f"{path} does not exist; give lm-eval's output folder or results file")
    results, samples = _sets(folder)
    if time is None:
        time = max({*results, *samples})
    if time not in results:
        first = next(iter(samples[time].values())).name
        raise UserError(
            f"{folder / first} has no results_{time}.json beside it, which says what was run; "
            "keep the two together"
        )
    if time not in samples:
        raise UserError(
            f"{results[time]} has no samples_<task>_{time}.jsonl beside it; only a run made with "
            "--log_samples has items to read"
        )
    found = path if path.is_file() and _RESULTS.fullmatch(path.name) else results[time]
    others = len({*results, *samples} - {time})
    return LmEvalOutput(time, found, _read_results(found), samples[time], others)


def choose_tasks(output: LmEvalOutput, wanted: Sequence[str]) -> list[str]:
    """The tasks to read: those named, else all that were run (groups are sums, not tasks)."""
    configs = output.section("configs")  # sorted by name; the results are in the order run
    known = [task for task in [*output.section("results"), *configs] if task in configs]
    known = list(dict.fromkeys(known))
    for task in wanted:
        if task not in known:
            raise UserError(
                f"--tasks {task}: {output.results_path} has no such task; it has {', '.join(known)}"
            )
    for task in output.samples:
        if task not in known:
            raise UserError(
                f"{output.samples[task]} is of task {task!r}, which {output.results_path.name} "
                "does not list; these files are not of one run"
            )
    chosen = list(dict.fromkeys(wanted or known))
    for task in chosen:
        if task not in output.samples:
            raise UserError(
                f"{output.results_path} lists {task!r}, but there is no "
                f"samples_{task}_{output.time}.jsonl beside it; leave the task out with --tasks "
                f"{','.join(t for t in chosen if t in output.samples)}"
            )
    return chosen


def _folder_with_output(path: Path) -> Path:
    """The folder itself or, as lm-eval makes one for each model, its only subfolder with output."""
    if any(_sets(path)):
        return path
    inside = [sub for sub in sorted(path.iterdir()) if sub.is_dir() and any(_sets(sub))]
    if len(inside) > 1:
        names = ", ".join(sub.name for sub in inside[:4])
        raise UserError(
            f"{path} holds results of {len(inside)} models ({names}{', ...' * (len(inside) > 4)}); "
            "give the folder of one"
        )
    if not inside:
        if (path / "results.json").is_file():
            raise UserError(
                f"{path / 'results.json'} has no time in its name: lm-eval before 0.4.3 wrote it; "
                f"run the evaluation with a newer one ({READ_VERSION} is tested)"
            )
        raise UserError(f"{path} holds no lm-eval output; its files are called {_NAMES}")
    return inside[0]


def _sets(folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """time -> results file, and time -> task -> samples file."""
    results: dict[str, Path] = {}
    samples: dict[str, dict[str, Path]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    for path in paths:
        if match := _SAMPLES.fullmatch(path.name):
            samples.setdefault(match[2], {})[match[1]] = path
        elif match := _RESULTS.fullmatch(path.name):
            results[match[1]] = path
    return results, samples


def _time_of(path: Path) -> str:
    match = _SAMPLES.fullmatch(path.name)
    if match is not None:
        return match[2]
    match = _RESULTS.fullmatch(path.name)
    if match is not None:
        return match[1]
    raise UserError(f"{path} is not named like lm-eval's output; its files are called {_NAMES}")


def _read_results(path: Path) -> dict[str, Any]:
    try:
        # NaN, which lm-eval may write, would not go into our files.
        value = json.loads(path.read_bytes(), parse_constant=lambda _: None)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}); it may be cut short") from error
    shaped = isinstance(value, dict) and all(
        isinstance(value.get(key), dict) for key in ("results", "configs", "config")
    )
    if not shaped:
        raise UserError(
            f"{path} is not lm-eval's results file: it needs the objects 'results', 'configs' and "
            "'config'"
        )
    version = value.get("lm_eval_version")
    if version is not None and not re.match(r"0\.4\.|[1-9]|0\.[5-9]|0\.\d\d", str(version)):
        raise UserError(
            f"{path} was written by lm-eval {str(version)[:40]}; 0.4.3 and newer can be read "
            f"({READ_VERSION} is tested)"
        )
    return value
