"""lm-eval's output: ``results_<time>.json`` and ``samples_<task>_<time>.jsonl``, as scored items.

```
{"doc_id": 0, "doc": {...}, "target": "1", "filter": "none", "doc_hash": "340121b4...",
 "arguments": {"gen_args_0": {"arg_0": "<context>", "arg_1": " <choice>"}, "gen_args_1": ...},
 "filtered_resps": [["-56.59", "False"], ...], "acc": 0.0, "acc_norm": 1.0, ...}
```

Only multiple choice has what a run needs, a log-likelihood for each choice. What lm-eval counted
as right is checked against what its log-likelihoods say, item by item: a log whose numbers do not
give its own accuracy is refused.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item, choice_lengths, hash_doc
from bidir_core.data.source import parse_json
from bidir_core.data.tasks import TASKS
from bidir_core.runs.records import unusable
from bidir_core.runs.shapes import ANY, TEXTS, Kind, ListOf, MapOf, fields, problem

READ_VERSION = "0.4.13"  # of lm-eval: the tests read and write its output
MOST_UNPACKED_BYTES = 1 << 30  # of a compressed file

_TIME = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
# Older versions wrote the samples as one JSON list; either may be kept compressed.
_RESULTS = re.compile(rf"(?!samples_).+_({_TIME})\.json(?:\.gz)?")
_SAMPLES = re.compile(rf"samples_(.+)_({_TIME})\.jsonl?(?:\.gz)?")
_NAMES = "results_<time>.json and samples_<task>_<time>.jsonl"

_SAMPLE = fields(
    doc_id=Kind("a row number", lambda v: type(v) is int and 0 <= v < 2**31),
    doc=MapOf(ANY),
    filtered_resps=ListOf(ANY),
    needs="doc_id doc filtered_resps",
    keys="target arguments",
)

# What reading a document of another shape than its task's may raise.
_ODD_DOCUMENT = (KeyError, ValueError, IndexError, TypeError, AttributeError)


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

    def part(self, *keys: str) -> dict[str, Any]:
        """An object inside the results file, such as a task's configuration; empty if not there."""
        value: Any = self.results
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Sample:
    """A scored item. ``acc``: what lm-eval counted, or None where the task has no acc."""

    item: Item
    ll: tuple[float, ...]
    acc: float | None
    acc_norm: float | None


class _Bad(ValueError):
    """What is wrong with a file or a line; the caller knows which."""


# Which files belong together.


def find_output(path: Path) -> LmEvalOutput:
    """The newest set of files in a folder (or in the only one below it), or that of a named file.

    Raises `UserError` for a path that is not there, a folder without lm-eval's files, samples
    without results, results without samples, and a results file that is none.
    """
    time, folder = None, path.parent
    if path.is_file():
        named = _SAMPLES.fullmatch(path.name) or _RESULTS.fullmatch(path.name)
        if named is None:
            raise UserError(
                f"{path} is not named like lm-eval's output; its files are called {_NAMES}"
            )
        time = named[named.lastindex or 1]
    elif path.is_dir():
        folder = _folder_with_output(path)
    else:
        raise UserError(f"{path} does not exist; give lm-eval's output folder or results file")
    results: dict[str, Path] = {}
    samples: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := _SAMPLES.fullmatch(file.name):
            samples.setdefault(match[2], {})[match[1]] = file
        elif match := _RESULTS.fullmatch(file.name):
            results[match[1]] = file
    time = time or max({*results, *samples})
    if time not in results:
        samples_path = next(iter(samples[time].values()))
        raise UserError(
            f"{samples_path} has no results_{time}.json beside it, which says what was run; keep the "
            "two together"
        )
    if time not in samples:
        raise UserError(
            f"{results[time]} has no samples_<task>_{time}.jsonl beside it; only a run made with "
            "--log_samples has items to read"
        )
    n_others = len({*results, *samples} - {time})
    results_path = results[time]
    return LmEvalOutput(time, results_path, _read_results(results_path), samples[time], n_others)


def _folder_with_output(path: Path) -> Path:
    """The folder itself or, as lm-eval makes one for each model, the only one below with output."""
    files = [file for file in path.rglob("*_*.json*") if file.is_file()]
    files = [f for f in files if _SAMPLES.fullmatch(f.name) or _RESULTS.fullmatch(f.name)]
    inside = sorted({file.parent for file in files})
    if path in inside:
        return path
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(str(sub.relative_to(path)) for sub in inside[:4])
        names += ", ..." if len(inside) > 4 else ""
        raise UserError(
            f"{path} holds results of {len(inside)} models ({names}); give the folder of one"
        )
    raise UserError(
        f"{path} holds no lm-eval output; its files are called {_NAMES} since lm-eval 0.4.3"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:  # a small file can unpack to any size
            data = file.read(MOST_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not whole gzip ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MOST_UNPACKED_BYTES:
        raise UserError(
            f"{path} unpacks to more than {MOST_UNPACKED_BYTES:,} bytes; if that is right, unpack it "
            "yourself and give the plain file"
        )
    return data


def _read_results(path: Path) -> dict[str, Any]:
    # NaN, which lm-eval may write, would not go into our files.
    value = parse_json(_read_bytes(path), str(path), parse_constant=lambda _: None)
    needed = ("results", "configs", "config")
    if not isinstance(value, dict) or not all(isinstance(value.get(k), dict) for k in needed):
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


def choose_tasks(output: LmEvalOutput, requested: Sequence[str]) -> list[str]:
    """The tasks to read: those named, else all that were run (groups are sums, not tasks)."""
    configs = output.part("configs")  # sorted by name; the results are in the order run
    known = [task for task in dict.fromkeys([*output.part("results"), *configs]) if task in configs]
    for task in requested:
        if task not in known:
            raise UserError(
                f"--tasks {task}: {output.results_path} has no such task; it has {', '.join(known)}"
            )
    strangers = [task for task in output.samples if task not in known]
    if strangers and not requested:
        raise UserError(
            f"{output.samples[strangers[0]]} lies beside {output.results_path}, which has no "
            f"configuration of it; name what to read with --tasks {','.join(known)}"
        )
    chosen = list(dict.fromkeys(requested or known))
    logged = ",".join(task for task in chosen if task in output.samples)
    for task in chosen:
        if task not in output.samples:
            raise UserError(
                f"{output.results_path} lists {task!r}, but there is no "
                f"samples_{task}_{output.time}.jsonl beside it; leave the task out with --tasks "
                f"{logged}"
            )
    return chosen


# One task's samples.


def read_task(output: LmEvalOutput, task: str, name: str) -> tuple[list[Sample], list[str]]:
    """The samples of lm-eval's ``task``, our task ``name``, by ``doc_id``; and notes on them.

    Raises `UserError` naming file and line for a task without choices, a torn or edited file, and
    numbers that disagree with the results file.
    """
    path = output.samples[task]
    output_type = output.part("configs", task).get("output_type")
    if output_type not in (None, "multiple_choice"):
        raise UserError(
            f"{path}: the task {task!r} is of type {str(output_type)[:40]}; only multiple_choice has "
            "a log-likelihood for each choice, so choose such tasks with --tasks"
        )
    samples: dict[int, Sample] = {}
    lines: dict[int, int] = {}
    filters: list[str] = []  # a task with several has all its samples once for each
    n_edited, number = 0, 1
    try:
        for number, line in _numbered(path):
            where = f"{path}, line {number}"
            record = _checked(parse_json(line, where) if isinstance(line, bytes) else line)
            filter_name = str(record.get("filter", "none"))
            if filter_name not in filters:
                filters.append(filter_name)
            if filter_name != filters[0]:
                continue
            sample = _sample(record, name)
            doc_id = sample.item.doc_id
            if doc_id in samples:
                raise _Bad(f"document {doc_id} again; line {lines[doc_id]} has it too")
            samples[doc_id], lines[doc_id] = sample, number
            n_edited += hash_doc(record["doc"]) != sample.item.doc_hash
    except _Bad as error:
        raise UserError(f"{path}, line {number}: {error}") from error
    if not samples:
        raise UserError(f"{path} is empty; lm-eval writes one line a document")
    ordered = [samples[doc_id] for doc_id in sorted(samples)]
    _check_totals(output, task, ordered, filters[0])
    notes = []
    if len(filters) > 1:
        notes.append(f"{name}: of the filters {', '.join(filters)} the first was read")
    if n_edited:
        notes.append(
            f"{name}: the doc_hash of {n_edited:,} documents is not that of the document logged "
            "beside it; the hash is kept"
        )
    if failed := [sample for sample in ordered if unusable(sample.ll) is not None]:
        n_right = sum(sample.acc == 1 for sample in failed)
        notes.append(
            f"{name}: {len(failed):,} items have a log-likelihood that is no number; here they are "
            f"item errors and count as wrong, lm-eval counted {n_right:,} of them as right"
        )
    if n_off := sum(map(_norm_differs, ordered)):
        notes.append(
            f"{name}: acc_norm of {n_off:,} items is not lm-eval's, which measured the length of "
            "the choices otherwise; acc is the same"
        )
    return ordered, notes


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    """Samples: a line each or, as lm-eval wrote them before 0.4.4, the values of one JSON list."""
    data = _read_bytes(path)
    if data.lstrip()[:1] == b"[":
        yield from enumerate(parse_json(data, str(path)), start=1)
    else:
        yield from ((n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip())


def _checked(record: Any) -> dict[str, Any]:
    if fault := problem(record, _SAMPLE):
        raise _Bad(f"{fault}, so it is no sample that lm-eval logged")
    if "acc_mutual_info" in record:
        raise _Bad("the task also scores choices without context (acc_mutual_info), unlike ours")
    return record


def _sample(record: dict[str, Any], name: str) -> Sample:
    requests = _requests(record["arguments"])
    contexts = tuple(context for context, _ in requests)
    continuations = tuple(continuation for _, continuation in requests)
    ll = _log_likelihoods(record["filtered_resps"], len(requests))
    # lm-eval logs each choice's context; only a task like winogrande has several.
    per_choice = len(set(contexts)) > 1 or len(set(continuations)) == 1
    acc, acc_norm = (_accuracy(record, metric) for metric in ("acc", "acc_norm"))
    best = int(np.argmax(ll))
    gold = _gold(record, name, continuations, per_choice, best, acc)
    if acc is not None and unusable(ll) is None and acc != float(best == gold):
        raise _Bad(
            f"lm-eval counted acc {acc:g}, but its log-likelihoods choose {best} and choice {gold} "
            "is right; the task is not scored by its largest log-likelihood, or the file was changed"
        )
    doc_hash, group = record.get("doc_hash"), ""
    if name in TASKS and (group_of := TASKS[name].group):
        try:
            group = group_of(record["doc"])
        except _ODD_DOCUMENT:
            group = ""
    item = Item(
        task=name,
        doc_id=record["doc_id"],
        doc_hash=doc_hash if isinstance(doc_hash, str) else hash_doc(record["doc"]),
        gold=gold,
        contexts=contexts if per_choice else contexts[:1],
        continuations=continuations,
        prompt_group=group,
    )
    return Sample(item, ll, acc, acc_norm)


def _requests(arguments: Any) -> list[tuple[str, str]]:
    """(context, continuation) per choice, from ``{"gen_args_0": {"arg_0": .., "arg_1": ..}}``."""
    if isinstance(arguments, dict):
        arguments = [arguments.get(f"gen_args_{i}") for i in range(len(arguments))]
    requests = []
    for request in arguments if isinstance(arguments, list) else [None]:
        pair: Any = request
        if isinstance(request, dict):
            pair = [request.get("arg_0"), request.get("arg_1")]
        if problem(pair, TEXTS) or len(pair) != 2:
            raise _Bad(
                "'arguments' are not a context and a choice each, as multiple choice has them"
            )
        requests.append((pair[0], pair[1]))
    if len(requests) < 2:
        raise _Bad("has one choice, so there is nothing to choose from; multiple choice is needed")
    return requests


def _accuracy(record: dict[str, Any], metric: str) -> float | None:
    value = record.get(metric)
    if not isinstance(value, int | float):
        return None
    if abs(value) > 1:
        raise _Bad(f"{metric} is {str(value)[:20]}, which is no accuracy")
    return float(value)


def _log_likelihoods(responses: list[Any], n_choices: int) -> tuple[float, ...]:
    if len(responses) != n_choices:
        n = len(responses)
        raise _Bad(f"has {n_choices} requests and {n} responses; both need one per choice")
    values = []
    for choice, response in enumerate(responses):
        try:
            number = float(response[0] if isinstance(response, list) and response else response)
        except (TypeError, ValueError, OverflowError):
            number = 1e308
        if math.isfinite(number) and abs(number) > 1e30:
            raise _Bad(
                f"the response of choice {choice} is {str(response)[:40]!r}, not a log-likelihood"
            )
        values.append(number)
    return tuple(values)


def _gold(
    record: dict[str, Any],
    name: str,
    continuations: Sequence[str],
    per_choice: bool,
    best: int,
    acc: float | None,
) -> int:
    """The index of the right choice; ``best``: that of the largest log-likelihood.

    lm-eval logs it as ``target``, except where the choices differ in their contexts: there
    ``target`` is the text behind them. For our own tasks the document says it; elsewhere it
    follows from what lm-eval counted, if that leaves one possibility.
    """
    n_choices, target = len(continuations), str(record["target"])
    if name in TASKS:
        try:
            gold = TASKS[name].gold(record["doc"])
        except _ODD_DOCUMENT:
            gold = -1
        if type(gold) is int and 0 <= gold < n_choices:
            return gold
    if not per_choice:
        if target.lstrip("-").isdigit():
            if not 0 <= int(target) < n_choices:
                raise _Bad(f"its right answer is number {target} of {n_choices} choices")
            return int(target)
        matches = [i for i, text in enumerate(continuations) if text.strip() == target.strip()]
        if len(matches) == 1:
            return matches[0]
    if acc == 1:
        return best
    if acc == 0 and n_choices == 2:
        return 1 - best
    raise _Bad(f"does not say which of its {n_choices} choices is right (target {target[:40]!r})")


def _norm_differs(sample: Sample) -> bool:
    """Whether lm-eval's acc_norm is another than that of the logged texts."""
    if sample.acc_norm is None or unusable(sample.ll) is not None:
        return False
    lengths = choice_lengths(sample.item.continuations) or 1
    pred = int(np.argmax(np.array(sample.ll) / lengths))
    return (pred == sample.item.gold) != bool(sample.acc_norm)


def _check_totals(
    output: LmEvalOutput, task: str, samples: Sequence[Sample], filter_name: str
) -> None:
    """The results file must count and score what the samples hold."""
    path, results_name = output.samples[task], output.results_path.name
    count = output.part("n-samples", task).get("effective")
    if isinstance(count, int) and count != len(samples):
        raise UserError(
            f"{path} has {len(samples):,} samples, but {results_name} counts {count:,}; the file is "
            "not whole, or not of this run"
        )
    accs = [sample.acc for sample in samples if sample.acc is not None]
    acc = output.part("results", task).get(f"acc,{filter_name}")
    if not accs or not isinstance(acc, int | float):
        return
    mean = sum(accs) / len(accs)
    if abs(acc) > 1 or abs(acc - mean) > 1e-6:  # the first: an int may be too large for a float
        raise UserError(
            f"{path} gives acc {mean:.4f}, but {results_name} says {str(acc)[:20]}; these files are "
            "not of one run"
        )
