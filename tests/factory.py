"""Valid run folders made of seeded random records, for everybody's tests.

Two runs made with the same ``n_items``, ``tasks`` and ``data_seed`` hold the same items, so they
pair; ``seed`` and ``accuracy`` decide what the pretended model did with them.
"""

import hashlib
import json
import random
import socket
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from pyarrow import parquet

from bidir_core.common.files import write_json
from bidir_core.runs.layout import evaluation_dir
from bidir_core.runs.records import make_record
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter

TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
N_CHOICES = {"hellaswag": 4, "piqa": 2, "arc_easy": 4, "arc_challenge": 4, "winogrande": 2}
ABOVE_CHANCE = {"causal": 0.18, "bidirectional": 0.05}
_TEXT = """
    the a water light keeps growing when plants receive heat from sunlight then she puts it
    back into warm oven because rocks melt under pressure and small animals need food to store
    energy for winter while someone cleans their bicycle chain with an old brush before riding
    down to river where children throw stones across quiet surface until evening comes
"""
_WORDS = _TEXT.split()
# What an evaluation's config says unless a test says otherwise.
EVALUATION: dict[str, Any] = {"split": "validation", "limit": None, "sample": "first", "seed": 0}
EVALUATION |= {"fold": "all", "context": "full", "bos": "auto", "chat_template": False}
EVALUATION |= {"num_fewshot": 0, "dtype": "float32", "device": "cpu"}
_clock = datetime(2026, 11, 22, 8, 0, 0, tzinfo=UTC)
_made = 0
_write_table = parquet.write_table


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(low, high)))


def tokens(text: str) -> tuple[list[int], list[list[int]]]:
    """A pretended tokenizer, like GPT-2's: a token is a word with the space before it."""
    ids, offsets, start = [], [], 0
    while start < len(text):
        end = text.find(" ", start + 1)
        end = len(text) if end < 0 else end
        ids.append(zlib.crc32(text[start:end].encode()) % 49152)
        offsets.append([start, end])
        start = end
    return ids, offsets


def make_item(task: str, doc_id: int, data_seed: int) -> dict[str, Any]:
    """One item's texts, tokens, gold and hash, decided by (task, doc_id, data_seed) alone."""
    return dict(_item(task, doc_id, data_seed))


@lru_cache(4096)  # most runs of a session hold the same items
def _item(task: str, doc_id: int, data_seed: int) -> dict[str, Any]:
    rng = random.Random(f"{data_seed}/{task}/{doc_id}")
    n_choices = N_CHOICES.get(task, 4)
    if task == "winogrande":
        opening = words(rng, 5, 14)
        contexts = [f"{opening} {name}" for name in ("Maria", "Jordan")]
        continuations = [" " + words(rng, 3, 8) + "."] * 2
    else:
        contexts = [f"Question: {words(rng, 8, 40)}?\nAnswer:"]
        continuations = [" " + words(rng, 1, 12) for _ in range(n_choices)]
    kinds = ("activitynet", "wikihow") if task == "hellaswag" else ("",)
    text = json.dumps([contexts, continuations])
    prefix = [tokens(text) for text in contexts]
    continuation = [tokens(text) for text in continuations]
    return {
        "task": task,
        "doc_id": doc_id,
        "doc_hash": hashlib.sha256(f"{task}/{doc_id}/{text}".encode()).hexdigest(),
        "gold": rng.randrange(n_choices),
        "contexts": contexts,
        "continuations": continuations,
        "n_prefix_tokens": [len(ids) for ids, _ in prefix],
        "n_continuation_tokens": [len(ids) for ids, _ in continuation],
        "prefix_token_ids": [ids for ids, _ in prefix],
        "prefix_token_offsets": [offsets for _, offsets in prefix],
        "continuation_token_ids": [ids for ids, _ in continuation],
        "continuation_token_offsets": [offsets for _, offsets in continuation],
        "prompt_group": rng.choice(kinds),
    }


def score_item(
    item: Mapping[str, Any], *, seed: int, accuracy: float, data_seed: int, compact: bool = False
) -> dict[str, Any]:
    """Log-likelihoods that make the gold win with probability ``accuracy``.

    Four fifths of the luck belongs to the item, so two runs agree about as often as real ones.
    """
    key = f"{item['task']}/{item['doc_id']}"
    own, shared = random.Random(f"{seed}/{key}"), random.Random(f"item/{data_seed}/{key}")
    luck = shared.random() if own.random() < 0.8 else own.random()
    n_choices = len(item["continuations"])
    wrong = [c for c in range(n_choices) if c != item["gold"]]
    winner = item["gold"] if luck < accuracy else own.choice(wrong)
    token_ll = [
        [round(-own.expovariate(0.4) - 0.01, 4) for _ in range(n)]
        for n in item["n_continuation_tokens"]
    ]
    totals = [sum(row) for row in token_ll]
    best = max(range(n_choices), key=totals.__getitem__)
    if best != winner:  # lower the others, on a random token each, until the winner wins
        target = totals[winner]
        for choice in range(n_choices):
            if choice != winner and totals[choice] >= target:
                drop = totals[choice] - target + 0.05 + own.expovariate(1.0)
                token_ll[choice][own.randrange(len(token_ll[choice]))] -= drop
    return make_record(
        **item, ll=[sum(row) for row in token_ll], token_ll=token_ll, compact=compact
    )


def error_record(
    item: Mapping[str, Any], message: str = "the log-likelihood of choice 0 is nan"
) -> dict[str, Any]:
    return make_record(**item, ll=None, error=message)


def _write_at_once(*values: Any, **options: Any) -> None:
    _write_table(*values, **options | {"compression_level": 1})


def make_run(
    root: Path | str,
    stage_dir: str = "stage1_vanilla_eval",
    *,
    name: str | None = None,
    n_items: int = 50,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
    data_seed: int = 0,
    regime: str = "causal",
    accuracy: float | Mapping[str, float] | None = None,
    model: str = "smollm2-135m-instruct",
    checkpoint: str | None = None,
    texts: bool = True,
    state: str = "done",
    n_errors: int = 0,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    items: Sequence[Mapping[str, Any]] | None = None,
) -> Run:
    """Write a run folder of ``n_items`` items in all and return it.

    ``state``: done; running (this process), lost, failed, cancelled, queued: half the items are
    there; partial: half the items and no status; corrupt: a torn metrics.json. ``texts=False``
    makes a compact run. ``config`` and ``facts`` override settings and the facts beside them.
    ``items`` gives the items themselves (as :func:`make_item`), for hostile texts and the like.
    """
    global _made
    if items is None:
        items = spread_items(n_items, tasks, data_seed)
    if accuracy is None:
        above = ABOVE_CHANCE["causal" if regime == "causal" else "bidirectional"]
        accuracy = {task: 1 / N_CHOICES.get(task, 4) + above for task in tasks}
    rates = accuracy if isinstance(accuracy, Mapping) else dict.fromkeys(tasks, accuracy)
    records = [error_record(item) for item in items[:n_errors]]
    luck = {"seed": seed, "data_seed": data_seed, "compact": not texts}
    records += [
        score_item(item, accuracy=rates.get(item["task"], 0.4), **luck) for item in items[n_errors:]
    ]
    _made += 1
    if folder is None:
        stamp = (_clock + timedelta(seconds=_made)).strftime("%Y%m%d-%H%M%S")
        folder = Path(root) / stage_dir / (stamp + (f"_{name}" if name else ""))
    hashes = "".join(sorted(item["doc_hash"] for item in items))
    settings = {"model": model, "checkpoint": checkpoint, "tasks": list(tasks), **EVALUATION}
    settings |= {"regime": regime, "compact": not texts} | dict(config or {})
    recorded: dict[str, Any] = {
        "model_fingerprint": hashlib.sha256(f"{model}{checkpoint}".encode()).hexdigest()[:16],
        "data_fingerprint": hashlib.sha256(hashes.encode()).hexdigest()[:16],
    }
    recorded |= {"tokenizer_fingerprint": "words-with-spaces", "bos_added": False, **(facts or {})}
    writer = RunWriter.create(stage_dir, settings, folder=folder, **recorded)
    passed = {"name": "every layer attends as the regime says", "passed": True, "detail": ""}
    writer.write_probe({"passed": True, "regime": regime, "checks": [passed]})
    (folder / "log.txt").write_text(f"{stage_dir}: {len(records)} items\n", encoding="utf-8")
    if state in ("done", "corrupt"):
        writer.append(records)
        n_prefix = sum(sum(item["n_prefix_tokens"]) for item in items)
        n_continuation = sum(sum(item["n_continuation_tokens"]) for item in items)
        cost = {"seconds": round(0.05 * len(records), 2), "device": "cpu"}
        cost |= {"prefix_tokens": n_prefix, "continuation_tokens": n_continuation}
        # The smallest files take the longest, and these are read a few times and thrown away.
        with mock.patch.object(parquet, "write_table", _write_at_once):
            writer.finish(cost=cost | {"computed_tokens": n_prefix + n_continuation})
        if state == "corrupt":
            (folder / "metrics.json").write_text('{"schema": 1, "tasks": {"piq')
        return Run(folder)
    done = 0 if state == "queued" else len(records) // 2
    if done:
        writer.append(records[:done])
    writer.heartbeat(done, len(records), rate=20.0, eta_seconds=(len(records) - done) / 20)
    writer.close()
    status = json.loads((folder / "status.json").read_text())
    if state == "lost":
        status["pid_started"] -= 1000  # the pid now belongs to somebody else
        status["pid_ticks"] = 0
    elif state == "failed":
        status.update(state="failed", error="CUDA out of memory")
    elif state == "partial":
        (folder / "status.json").unlink()
        return Run(folder)
    else:
        status["state"] = state
    (folder / "status.json").write_text(json.dumps(status))
    return Run(folder)


def unsealed(run: Run) -> Run:
    """The run without checksums, as earlier versions wrote it: its files may be changed."""
    path = run.path / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics.pop("checksums", None)
    write_json(path, metrics)
    return Run(run.path)


def spread_items(n_items: int, tasks: Sequence[str], data_seed: int = 0) -> list[dict[str, Any]]:
    """``n_items`` items, spread evenly over the tasks."""
    share, rest = divmod(n_items, len(tasks))
    return [
        make_item(task, doc_id, data_seed)
        for t, task in enumerate(tasks)
        for doc_id in range(share + (t < rest))
    ]


def make_reference(
    root: Path | str,
    stage_dir: str = "stage1_vanilla_eval",
    *,
    tasks: Mapping[str, float],
    name: str = "published",
    source: str = "a publication",
    regime: str = "causal",
) -> Run:
    """A reference run: numbers only, no items."""
    settings = {"model": "published-model", "regime": regime, "tasks": list(tasks)}
    settings["split"] = "validation"
    more = {"name": name, "kind": "reference", "source": source}
    writer = RunWriter.create(stage_dir, settings, root=root, **more)
    rows = {task: {"n": 500, "acc": acc, "acc_norm": None} for task, acc in tasks.items()}
    writer.finish(metrics={"tasks": rows, "macro": {"acc": sum(tasks.values()) / len(tasks)}})
    return Run(writer.path)


def answered(
    root: Path | str,
    regime: str,
    wrong: Collection[int] | Mapping[str, Collection[int]],
    tasks: Sequence[str],
    *,
    n: int = 500,
    trained: str | None = None,
    seed: int = 0,
) -> Run:
    """A run of ``n`` items a task that has exactly the items of these numbers wrong.

    ``wrong`` holds of every task, or by task.
    """
    settings = {**EVALUATION, "model": "m", "tasks": list(tasks), "regime": regime}
    record = {"objective": trained, "method": "full", "steps": 9, "seed": seed}
    facts = {"training_record": record} if trained else {}
    stage = evaluation_dir(regime, checkpoint=trained)
    settings["checkpoint"] = trained and f"{trained}/final"
    writer = RunWriter.create(stage, settings, root=root, name=f"s{seed}", **facts)
    luck = {"seed": 0, "data_seed": 0, "compact": True}
    for task in tasks:
        bad = wrong.get(task, ()) if isinstance(wrong, Mapping) else wrong
        items = enumerate(spread_items(n, [task]))
        writer.append([score_item(x, accuracy=float(i not in bad), **luck) for i, x in items])
    writer.finish()
    return Run(writer.path)


def write_lines(path: Path, lines: Iterable[Any]) -> str:
    """A JSONL file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def training_file(path: Path, n: int) -> str:
    """``n`` short samples to train on."""
    lines = ({"prompt": f"say {i} then", "response": f" {i} it is"} for i in range(n))
    return write_lines(path, lines)


def tear(run: Run) -> None:
    """Damage a run's items so that they cannot be read."""
    table = run.path / "items.parquet"
    table.write_bytes(table.read_bytes()[:100] + b"x" * 200 + b"PAR1")


def until(check: Callable[[], Any], seconds: float = 300, explain: Callable = str) -> Any:
    """What ``check`` gives, once that is something; AssertionError if it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := check():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {explain()}")


def scored(n: int, tasks: Sequence[str] = ("piqa", "winogrande")) -> list[dict[str, Any]]:
    """``n`` items with scores, spread over the tasks."""
    return [score_item(item, seed=1, accuracy=0.6, data_seed=0) for item in spread_items(n, tasks)]


def timed_run(root: Path | str, *, model: str = "smollm2-135m-instruct", **cost: Any) -> Run:
    """A finished run of this machine, with that cost."""
    run = unsealed(make_run(root, n_items=20, model=model))
    host = {"host": socket.gethostname()}
    for name, more in (("metrics.json", {"cost": cost}), ("status.json", host)):
        values = json.loads((run.path / name).read_text())
        write_json(run.path / name, {**values, **more})
    return Run(run.path)
