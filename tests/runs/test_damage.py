"""Damaged run folders: whatever their bytes, they are corrupt with a reason, and nobody falls."""

import json
import math
import os
import random
import re
import shutil
import socket
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bidir_core.common.errors import UserError
from bidir_core.common.files import Damaged
from bidir_core.jobs.estimate import measured
from bidir_core.report.report import build_report, write_report
from bidir_core.runs import read
from bidir_core.runs.curve import read_curve
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS, STAGE2
from bidir_core.runs.read import read_arrays
from bidir_core.runs.records import RECORD_FIELDS, read_parquet, to_table, write_texts
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from bidir_ui.reading import data
from tests.factory import make_run, scored, unsealed

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("own_runs")


# Bit rot


def flip(path, rng):
    """Another value of one bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["items.parquet", "config.json", "metrics.json"])
def test_a_flipped_bit_makes_a_run_corrupt(tmp_path, name):
    run = make_run(tmp_path, n_items=40)
    path, rng, numbers = run.path / name, random.Random(0), run.metrics or {}
    original = path.read_bytes()
    for _ in range(300):
        flip(path, rng)
        damaged = Run(run.path)
        if damaged.state == "corrupt":
            assert name in damaged.error or name == "metrics.json"  # it has the others' checksums
            with pytest.raises(UserError, match="is corrupt"):
                damaged.items()
        else:  # it met a checksum's name, or the word "checksums": no number
            assert name == "metrics.json"
            metrics = damaged.metrics or {}
            assert all(metrics[key] == numbers[key] for key in numbers if key != "checksums")
        path.write_bytes(original)
    assert Run(run.path).state == "done"


def test_other_files_of_a_run_are_checked_too(tmp_path):
    with RunWriter.create("lab", {}, root=tmp_path, kind="attend") as writer:
        for name in ("curve.jsonl", "summary.npz", "why.json", "log.txt", "items.jsonl"):
            (writer.path / name).write_text("{}\n")
        made = writer.finish(metrics={"n_items": 0})
    data = {"curve.jsonl", "summary.npz", "why.json"}
    assert set(made["checksums"]) == {"config.json", "metrics.json", *data}
    (writer.path / "log.txt").write_text("more")
    assert Run(writer.path).state == "done"
    (writer.path / "curve.jsonl").write_text("{ }\n")
    assert "curve.jsonl is not what was written" in Run(writer.path).error


def test_a_flipped_bit_in_a_sweeps_texts_shows_at_its_points(tmp_path):
    rows = scored(10)
    sweep = RunWriter.create("lab", {}, root=tmp_path, kind="lab")
    write_texts(to_table(rows), sweep.path / "texts.parquet")
    folder = sweep.path / "points" / "causal"
    with RunWriter.create("lab", {}, folder=folder, texts="texts.parquet") as writer:
        writer.append(rows)
        writer.finish()
    sweep.close()
    point = Run(folder)
    assert point.state == "done"
    assert {"items.parquet", "texts.parquet"} < set(point.metrics["checksums"])
    flip(sweep.path / "texts.parquet", random.Random(1))
    assert "texts.parquet is not what was written" in Run(folder).error


def test_a_run_without_checksums_and_one_kept_for_its_numbers_stay_readable(tmp_path):
    run = make_run(tmp_path, n_items=5)
    numbers = shutil.copytree(run.path, run.path.with_name("20200101-000000"))
    (numbers / "items.parquet").unlink()
    assert Run(numbers).state == "done"
    assert not Run(numbers).has_items
    assert run.metrics["checksums"]
    older = unsealed(run)
    assert older.state == "done"
    assert len(older.items()) == 5


# Mutations: every file of a run, thousands of ways. More of them, and what became of them:
#
#     BIDIR_MUTATIONS=10000 python -m pytest -p no:xdist -s tests/runs/test_damage.py -k reader_down

MUTATIONS = int(os.environ.get("BIDIR_MUTATIONS", "400"))  # a quarter of them of tables

BAD: tuple[Any, ...] = ("x", "", "1", -1, 0, 1.5, 1e308, 10**400, True, None, [], {}, [[]])
BAD += ({"a": {"b": []}}, ["x"], "\ud800", "bidirectional:layers=9-1", "\x1b[2J", "=1+1")
RAW = (b"", b"{", b"null", b"[]", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 200_000)
RAW += (b'{"a":' * 200_000, b'{"n_items": 1e999}', b'{"done": NaN}', b"\0" * 100)
RAW += (b"9" * 10_000, b'{"config": "\\ud800"}')


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with one value replaced, removed or renamed, or its bytes harmed.

    Of a file of lines one line is.
    """
    if data.count(b"\n{") > 1:
        lines = data.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        return b"".join([*lines[:at], mutated(lines[at], rng), b"\n", *lines[at + 1 :]])
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(RAW)
    if kind == 1:
        cut = rng.randrange(len(data))
        return data[:cut] + (b"" if rng.random() < 0.5 else rng.randbytes(3) + data[cut + 3 :])
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each))
        places += [(each, key) for key in keys]
        waiting += [each[key] for key in keys if isinstance(each[key], dict | list)]
    container, key = rng.choice(places)
    if kind == 2:
        del container[key]
    elif kind == 3 and isinstance(container, dict):
        container["x" + str(key)] = container.pop(key)
    else:
        container[key] = rng.choice(BAD)
    return json.dumps(value).encode()


def read_all(run: Run) -> str:
    """What lists, pages and reports do with a run that they are handed; its state."""
    info = data._read(run, run.modified)
    assert info.state == run.state
    assert (info.error != "") or info.state not in ("corrupt", "failed")
    for each in (info.label, info.extent, info.cautions, info.partial_note, info.weights):
        json.dumps(each, ensure_ascii=False).encode()
    if info.state == "corrupt":
        return info.state
    terminal = [run.tasks, run.created, run.is_compact, run.name, run.error, run.log_tail()]
    json.dumps(terminal, default=str, ensure_ascii=False).encode()
    measured(run)
    read_curve(run.path)
    return info.state


JSON_FILES = ("config.json", "status.json", "metrics.json", "probe.json")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A run of each kind, without checksums: readers must do without them."""
    root = tmp_path_factory.mktemp("runs")
    made = [unsealed(make_run(root, n_items=10, tasks=["piqa", "winogrande"]))]
    committed = {}
    for run in list_runs([COMMITTED_RUNS], points=True):
        committed.setdefault(run.config["kind"], run)
    copies = [
        shutil.copytree(run.path, root / kind / run.stage / run.path.name)
        for kind, run in committed.items()
    ]
    return [*made, *(unsealed(Run(copy)) for copy in copies)]


def test_no_json_takes_a_reader_down(kinds):
    rng, states = random.Random(14), Counter()
    paths = [run.path / name for run in kinds for name in (*JSON_FILES, "curve.jsonl")]
    wholes = {path: path.read_bytes() for path in paths if path.exists()}
    for _ in range(MUTATIONS * 3 // 4):
        path = rng.choice([*wholes])
        path.write_bytes(mutated(wholes[path], rng))
        states[read_all(Run(path.parent))] += 1
        path.write_bytes(wholes[path])
    print(f"{states.total()} mutations of JSON files: {dict(states)}")
    # What readers do not use may be anything.
    assert min(states["corrupt"], states["done"]) > states.total() // 5


def test_a_report_of_mutated_runs_is_written_or_refused_in_a_sentence(tmp_path):
    runs = [
        make_run(tmp_path, n_items=20, tasks=["piqa"], seed=1),
        make_run(tmp_path, STAGE2, n_items=20, tasks=["piqa"], seed=2, regime="bidirectional"),
    ]
    runs = [unsealed(run) for run in runs]
    rng = random.Random(15)
    outcomes = Counter()
    for _ in range(10):
        run = rng.choice(runs)
        path = run.path / rng.choice(JSON_FILES)
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, rng))
        try:
            report = build_report([Run(each.path) for each in runs])
            write_report(report, tmp_path / "report.md", csv=True)
            outcomes["written"] += 1
        except UserError:
            outcomes["refused"] += 1
        path.write_bytes(whole)
    assert outcomes["written"] > 2


def test_no_table_takes_a_reader_down(tmp_path):
    """Without checksums, as in runs of earlier versions: the types and the values are checked."""
    run = unsealed(make_run(tmp_path, n_items=20, tasks=["piqa"]))
    path, rng = run.path / "items.parquet", random.Random(16)
    whole = path.read_bytes()
    outcomes = Counter()
    for _ in range(MUTATIONS // 4):
        harmed = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            harmed[rng.randrange(len(harmed))] = rng.randrange(256)
        path.write_bytes(harmed)
        for look in (lambda each: each.items(RECORD_FIELDS), lambda each: each.item("piqa", 3)):
            try:
                look(Run(run.path))
                outcomes["read"] += 1
            except UserError:
                outcomes["refused"] += 1
    print(f"{MUTATIONS // 4} mutations of a table, each read in two ways: {dict(outcomes)}")
    assert min(outcomes.values()) > outcomes.total() // 20


WRONG_TABLES = {
    "types": {"doc_id": pa.array(["x"] * 4), "task": pa.array([1] * 4)},
    "pred": {"pred": pa.array([9] * 4, pa.int16())},
    "gold": {"gold": pa.array([-1] * 4, pa.int16())},
    "nan": {"ll": pa.array([[math.nan, 1.0]] * 4, pa.list_(pa.float32()))},
    "no task": {"task": pa.array([None] * 4, pa.string())},
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_table_of_other_types_or_values_is_refused(tmp_path, case):
    path = tmp_path / "items.parquet"
    table = to_table(scored(4))
    for name, column in WRONG_TABLES[case].items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    with pytest.raises(Damaged):
        read_parquet(path)


def test_a_table_that_unpacks_to_too_much_is_refused_unread(tmp_path):
    path = tmp_path / "items.parquet"
    table = pa.table(
        {"task": pa.DictionaryArray.from_arrays(np.zeros(3_000_000, np.int32), ["x" * 1_000_000])}
    )
    pq.write_table(table, path)
    assert path.stat().st_size < 2_000_000  # three terabytes
    with pytest.raises(Damaged, match="unpacks to"):
        read_parquet(path, ["task"])
    pq.write_table(pa.table({"doc_id": pa.nulls(5_000_000, pa.int32())}), path)
    with pytest.raises(Damaged, match="claims 5000000 rows"):
        read_parquet(path, ["doc_id"])


def test_arrays_that_unpack_to_too_much_or_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MOST_ARRAY_BYTES", 1 << 20)
    path = tmp_path / "shares.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as f,
    ):
        for _ in range(2):
            f.write(b"\0" * (1 << 20))
    with pytest.raises(Damaged, match="too much"):
        read_arrays(path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    header = header.ljust(118) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(Damaged):
        read_arrays(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(Damaged):
        read_arrays(path)


FILES = (*JSON_FILES, "items.parquet", "items.jsonl", "curve.jsonl", "log.txt", ".lock")


def put(what: str, path: Path, spare: Path) -> None:
    """In the place of a file."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path.name)
    else:
        socket.socket(socket.AF_UNIX).bind(str(spare))  # its path has to be short
        spare.rename(path)


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_a_plain_file_is_not_waited_for(tmp_path, name):
    state = "done" if name == "items.parquet" else "lost"
    run = make_run(tmp_path, n_items=5, tasks=["piqa"], state=state)
    path = run.path / name
    path.unlink(missing_ok=True)
    for what in ("pipe", "device", "folder", "loop", "socket"):
        put(what, path, tmp_path / "s")
        now = Run(run.path)
        read_all(now)
        if name in (*JSON_FILES, "items.parquet"):
            assert now.state == "corrupt", what
        elif name == "items.jsonl":
            with pytest.raises(UserError, match="cannot be read"):
                now.items()
        path.rmdir() if what == "folder" else path.unlink()


def test_lines_that_are_no_records_are_told_not_cut_off(tmp_path):
    run = make_run(tmp_path, n_items=10, tasks=["piqa"], state="failed")
    path = run.path / "items.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for line in (b'{"task": "piqa"}\n', b'{"task": 3, "doc_id": 1}\n', b'{"doc_id": 1e999}\n'):
        path.write_bytes(lines[0] + line + b"".join(lines[1:]))
        with pytest.raises(UserError, match="cannot be read"):
            Run(run.path).items()
        with pytest.raises(UserError, match="no record"):
            RunWriter.resume(run.path)
    for name, value in (("ll", "x"), ("gold", 1e99), ("contexts", 3), ("pred", 7), ("error", {})):
        record = json.loads(lines[1]) | {name: value}
        path.write_bytes(lines[0] + json.dumps(record).encode() + b"\n")
        with pytest.raises(UserError, match="cannot be read"):
            Run(run.path).items()
    path.write_bytes(lines[0] + b"[" * 200_000 + b"\n")
    assert len(Run(run.path).items()) == 1


def test_every_committed_run_is_whole():
    for run in list_runs([COMMITTED_RUNS], points=True):
        assert run.state in ("done", "reference"), (run.id, run.error)


def test_nothing_else_parses_the_files_of_a_run():
    """``json.loads``, ``pq.read`` and the like stay behind the door, in what reads run folders."""
    parsers = re.compile(r"json\.loads?\(|read_parquet\(|ParquetFile\(|read_table\(|np\.load\(")
    allowed = {"runs/read.py", "runs/records.py", "runs/lm_eval_read.py", "runs/run.py"}
    names = set()
    for room in ("runs", "analyse", "report", "explain"):
        for path in (ROOT / "bidir_core" / room).glob("*.py"):
            if parsers.search(path.read_text()):
                names.add(f"{room}/{path.name}")
    for path in [*(ROOT / "bidir_ui").rglob("*.py"), *(ROOT / "pages").glob("*.py")]:
        if parsers.search(path.read_text()):
            names.add(path.name)
    # Prompts of one's own, and a figure's and a folder's own files.
    assert names - allowed <= {"explain/recommend.py", "report/html_page.py", "report/paper.py"}
