"""``report --paper``: every number leads to its runs, statuses come from intervals, files are safe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidir_core import stats
from bidir_core.cli import main
from bidir_core.errors import UserError
from bidir_core.paper import bibliography, latex, write
from bidir_core.paper.claims import status_of
from bidir_core.paper.ledger import Ledger
from bidir_core.paper.quantities import verdict_words
from bidir_core.paper.write import write_paper
from bidir_core.report import Report, build_report
from bidir_core.run_layout import COMMITTED_RUNS
from bidir_core.store import list_runs
from tests.paper_recompute import Recomputer
from tests.report_runs import REPAIRED, evaluation, make_finetune, report, two_by_two

PRINTED = re.compile(r"\\fromrun\{([^}]*)\}\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


@pytest.fixture(scope="module")
def repaired(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repaired")
    two_by_two(root, REPAIRED)
    evaluation(root, accuracy=0.35, config={"context": "none"})
    return root


@pytest.fixture(scope="module")
def repaired_report(repaired) -> Report:
    return report(repaired)


@pytest.fixture(scope="module")
def paper(repaired_report, tmp_path_factory) -> Path:
    return write_paper(repaired_report, tmp_path_factory.mktemp("out") / "paper")


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> tuple[Path, Path]:
    """Two seeds an arm, a regime with dials, errors, a leaky arm, and runs without items."""
    root = tmp_path_factory.mktemp("seeded")
    few = {"n_items": 250}
    for (code, regime), accuracy in REPAIRED.items():
        for seed in (0, 1) if code != "base" else (0,):
            trained = None
            if code != "base":
                known = [
                    r for r in list_runs([root]) if r.path.name.endswith(f"{code}-{seed}-lora")
                ]
                recipe = {"seed": seed, "method": "lora", "lora_rank": 8, "lora_alpha": 16}
                trained = known[0] if known else make_finetune(root, code, **recipe)
            evaluation(root, regime, accuracy, trained=trained, seed=3 + seed, **few)
    evaluation(root, "bidirectional:sink=1,layers=2-5", 0.52, n_errors=3, **few)
    leaky, distilled = make_finetune(root, "3A"), make_finetune(root, "distill", causal_anchor=1.0)
    evaluation(root, "bidirectional", 0.99, trained=leaky, **few)
    evaluation(root, "bidirectional", 0.55, trained=distilled, **few)
    causal = evaluation(root, "causal", 0.55, trained=distilled, **few)
    (causal.path / "items.parquet").unlink()
    return root, write_paper(report(root), tmp_path_factory.mktemp("out") / "paper")


def tex_files(folder: Path) -> dict[str, str]:
    found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.tex")}
    assert found
    return found


# --- every number leads to its runs ---------------------------------------------------------


def bare(text: str) -> str:
    """TeX without what the ledger answers for and without what is no text."""
    text = PRINTED.sub("", text)
    text = text.replace(r"\providecommand{\fromrun}[2]{#2}", "")
    text = re.sub(
        r"\\(cite|label|ref|input|includegraphics|bibliography)(\[.*?\])?\{.*?\}", "", text
    )
    text = re.sub(r"\\begin\{(tabular|longtable)\}\{@\{\}.*@\{\}\}", "", text)
    text = re.sub(r"\\multicolumn\{\d+\}|\\setlength\{\\\w+\}\{[\d.]+pt\}", "", text)
    return re.sub(r"\\(documentclass|usepackage)\[.*?\]\{.*?\}", "", text)


def check_numbers(root: Path, folder: Path) -> int:
    """Every printed number is in the ledger, with runs that exist, and comes out again."""
    ledger = json.loads((folder / "numbers.json").read_text())
    again = Recomputer(root)
    n = 0
    for name, text in tex_files(folder).items():
        assert not re.search(r"\d", bare(text)), (name, re.search(r".*\d.*", bare(text)))
        for key, shown in PRINTED.findall(text):
            entry = ledger["numbers"][key]
            assert name in entry["printed_in"]
            assert shown in (
                latex.number(entry["text"]), latex.escape(entry["text"]), latex.code(entry["text"])
            ), (key, shown)  # fmt: skip
    for key, entry in (ledger["numbers"] | ledger["only_in_claims"]).items():
        assert entry["runs"], key
        assert all((root / run / "config.json").exists() for run in entry["runs"]), key
        assert entry["source"]["statistic"] in ledger["statistics"]
        expected = again.value(entry)
        if isinstance(expected, str | bool):
            assert entry["value"] == expected, key
            assert entry["text"] == str(expected)[: len(entry["text"])], key
        else:
            assert entry["value"] == pytest.approx(expected, rel=1e-9, abs=1e-12), key
            assert_reads_as(entry["text"], expected, key)
        n += 1
    return n


def assert_reads_as(text: str, value: float, key: str) -> None:
    """A printed number is the value, rounded to the digits that are printed."""
    if text.startswith("<"):
        assert value < float(text[1:]), key
        return
    number = text.replace(",", "").removesuffix(" %")
    if "e" in number or not re.fullmatch(r"[+-]?[\d.]+", number):
        assert float(number) == pytest.approx(value), key
        return
    digits = len(number.partition(".")[2])
    scales = [value, 100 * value]
    assert any(abs(float(number) - one) <= 0.5000001 * 10**-digits for one in scales), (key, value)


def test_every_number_leads_to_its_runs_and_comes_out_again(repaired, paper):
    assert check_numbers(repaired, paper) > 300


def test_so_it_does_with_seeds_dials_errors_and_missing_items(seeded):
    root, folder = seeded
    assert check_numbers(root, folder) > 300
    text = (folder / "tables" / "per-task.tex").read_text()
    assert " / " in text  # one p value a seed
    assert "unpaired" in (folder / "tables" / "contrasts.tex").read_text()
    methods = (folder / "methods.tex").read_text()
    assert "except that the first" in methods
    assert "could not be scored" in methods


def test_the_committed_runs_make_a_paper_whose_numbers_come_out_again(tmp_path):
    runs = [run for run in list_runs([COMMITTED_RUNS]) if "published" not in run.id]
    folder = write_paper(build_report(roots=[COMMITTED_RUNS]), tmp_path / "paper")
    assert runs
    assert check_numbers(COMMITTED_RUNS, folder) > 800
    claims = {c["claim"]: c for c in json.loads((folder / "claims.json").read_text())["claims"]}
    one = claims["Without training, bidirectional prefill lowers macro accuracy."]
    assert one["status"] == "supported"
    assert one["fold"] == "all"
    untested = [c for c in claims.values() if c["reason"].startswith("not tested")]
    assert untested
    assert all(c["status"] == "undecided" for c in untested)


def test_numbers_written_into_figures_are_in_the_ledger(paper):
    ledger = json.loads((paper / "numbers.json").read_text())["numbers"]
    drawn = {e["text"] for e in ledger.values() if "figures/forest" in e["printed_in"]}
    words = re.findall(r"<!-- (.*?) -->", (paper / "figures" / "forest.svg").read_text())
    titles = [word for word in words if re.search(r"\d", word) and not _is_tick(word)]
    assert titles
    for title in titles:
        for number in re.findall(r"[+−]?\d+\.\d+", title):
            assert number.replace("−", "-") in drawn, title
    for name in ("ladder", "two_by_two", "curve"):
        for word in re.findall(r"<!-- (.*?) -->", (paper / "figures" / f"{name}.svg").read_text()):
            known = any(e["text"] == word for e in ledger.values())
            assert known or _is_tick(word) or not re.search(r"\d", word), word


def _is_tick(word: str) -> bool:
    return re.fullmatch(r"−?\d+(\.\d+)?", word) is not None


def test_a_number_of_no_run_cannot_be_printed():
    ledger = Ledger()
    with pytest.raises(ValueError, match="no run"):
        ledger.add("x", 1, "1", [], statistic="field")
    with pytest.raises(ValueError, match="unknown statistic"):
        ledger.add("x", 1, "1", ["stage1/a"], statistic="guess")
    first = ledger.add("a b", 1, "1", ["r"], statistic="name")
    other = ledger.add("a-b", 2, "2", ["r"], statistic="name")
    assert first.key != other.key  # two numbers never share a key


# --- claims ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "wanted", "status"),
    [
        (-0.06, -0.03, "lower", "supported"),
        (-0.06, 0.01, "lower", "undecided"),
        (0.01, 0.05, "lower", "refuted"),
        (-0.009, 0.009, "lower", "refuted"),  # no difference to speak of
        (-0.009, -0.001, "lower", "refuted"),
        (0.02, 0.05, "higher", "supported"),
        (-0.05, -0.02, "higher", "refuted"),
        (-0.02, 0.05, "higher", "undecided"),
        (-0.009, 0.009, "not lower", "supported"),
        (0.02, 0.04, "not lower", "supported"),
        (-0.015, 0.004, "not lower", "undecided"),  # never "no cost" of a wide interval
        (-0.03, -0.002, "not lower", "refuted"),
    ],
)
def test_a_status_is_where_the_interval_lies(low, high, wanted, status):
    interval = stats.Estimate((low + high) / 2, low, high, 100)
    assert status_of(interval, wanted, 0.01) == status


def test_without_an_interval_nothing_is_decided():
    assert status_of(None, "lower", 0.01) == "undecided"
    assert verdict_words(None, 0.01) == "no interval"
    interval = stats.Estimate(0.03, 0.01, 0.05, 100)
    assert verdict_words(interval, 0.01, (0.04,)) == "higher"
    assert verdict_words(interval, 0.01, (0.04, 0.06)) == "undecided"


def statuses(folder: Path) -> dict[str, str]:
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    for claim in claims:
        assert claim["would_be_falsified_by"]
        assert claim["runs"]
        assert claim["test"]
    return {claim["claim"]: claim["status"] for claim in claims}


def test_repair_is_claimed_of_the_interaction_alone(tmp_path, repaired, paper):
    repair = "Part of what 3B gains over the base model under bidirectional prefill is repair of "
    repair += "the mask, not ordinary tuning."
    assert statuses(paper)[repair] == "supported"
    # As it would be if the control gained as much: it gets the fine-tune's own answers.
    root = Path(shutil.copytree(repaired, tmp_path / "runs"))
    trained, control = (
        next(r for r in list_runs([root]) if _is(r, code, "bidirectional")) for code in ("3B", "3C")
    )
    for name in ("items.parquet", "metrics.json"):
        shutil.copy(trained.path / name, control.path / name)
    found = statuses(write_paper(report(root), tmp_path / "paper"))
    assert found[repair] != "supported"
    assert found["Fine-tuning 3B raises macro accuracy under bidirectional prefill."] == "supported"


def _is(run, code: str, regime: str) -> bool:
    record = run.config.get("training_record") or {}
    return record.get("objective") == code and run.regime == regime


def test_small_runs_leave_claims_undecided_and_the_texts_say_so(tmp_path):
    evaluation(tmp_path / "runs", "causal", 0.5, n_items=50, config={"fold": "explore"})
    evaluation(tmp_path / "runs", "bidirectional", 0.48, n_items=50, config={"fold": "explore"})
    folder = write_paper(report(tmp_path / "runs"), tmp_path / "paper")
    assert set(statuses(folder).values()) == {"undecided"}
    text = (folder / "claims.md").read_text()
    assert "explore fold: for choosing recipes" in text
    assert "explore half" in (folder / "methods.tex").read_text()
    assert "supported" not in (folder / "tables" / "claims.tex").read_text()


# --- what the methods say -------------------------------------------------------------------


def test_methods_say_what_the_configs_say_and_no_more(paper, tmp_path):
    text = (paper / "methods.tex").read_text()
    for said in ("no BOS token", "McNemar", "Tango", "cosine"):
        assert (said in text) == (said != "cosine"), said  # these fine-tunes recorded no warm-up
    evaluation(
        tmp_path / "runs", config={"num_fewshot": 5, "chat_template": True},
        facts={"bos_added": None, "dtype": None},
    )  # fmt: skip
    alone = write_paper(report(tmp_path / "runs"), tmp_path / "paper")
    text = (alone / "methods.tex").read_text()
    assert "solved examples" in text
    assert "the model's chat template" in text
    for unsaid in (
        "BOS",
        "Tango",
        "McNemar",
        "bootstrap",
        "Fine-tuning",
        "Evaluations were computed in",
    ):
        assert unsaid not in text, unsaid
    assert "tango" not in (alone / "references.bib").read_text()
    assert not (alone / "figures" / "forest.pdf").exists()
    assert "No forest plot" in (alone / "README.md").read_text()


def test_published_numbers_alone_make_a_modest_paper(tmp_path):
    published = [run for run in list_runs([COMMITTED_RUNS]) if run.is_reference]
    folder = write_paper(build_report(published, roots=[COMMITTED_RUNS]), tmp_path / "paper")
    check_numbers(COMMITTED_RUNS, folder)
    text = (folder / "methods.tex").read_text()
    for unsaid in ("BOS", "Tango", "probe", "LM Evaluation Harness", "all of its items"):
        assert unsaid not in text, unsaid
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert {claim["test"].split(" ")[0] for claim in claims} <= {"unpaired", "none:", "per-item"}
    found = statuses(folder)
    assert found["Without training, bidirectional prefill lowers macro accuracy."] == "supported"
    # Of the non-prefill compare only macro accuracies were published: no interval, no verdict.
    assert found["Fine-tuning 3B costs no macro accuracy under causal attention."] == "undecided"


def test_a_leaky_fine_tune_stands_in_no_table_of_results(seeded):
    _, folder = seeded
    for name in ("macro", "contrasts", "per-task", "two-by-two", "interaction", "claims"):
        assert "3A" not in (folder / "tables" / f"{name}.tex").read_text(), name
    assert "3A" not in (folder / "figures" / "ladder.svg").read_text()
    assert "its numbers are no result" in (folder / "methods.tex").read_text()


# --- LaTeX ------------------------------------------------------------------------------------


def check_structure(folder: Path) -> None:
    """Braces and environments balance, and what is referred to exists."""
    texts = tex_files(folder)
    labels = set(re.findall(r"\\label\{(.*?)\}", "".join(texts.values())))
    works = set(re.findall(r"@\w+\{(\w+),", (folder / "references.bib").read_text()))
    for name, text in texts.items():
        plain = re.sub(r"\\[\\{}%]", "", text)
        plain = re.sub(r"(?<!\\)%.*", "", plain)
        depth = 0
        for letter in plain:
            depth += (letter == "{") - (letter == "}")
            assert depth >= 0, name
        assert depth == 0, name
        stack = []
        for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            if kind == "begin":
                stack.append(environment)
            else:
                assert stack.pop() == environment, name
        assert not stack, name
        for table in re.findall(r"\\begin\{tabular\}\{(.*)\}\n(.*?)\\end", text, re.S):
            columns = len(re.findall(r"[lr]|p\{", re.sub(r"@\{\}|>\{.*?\}p\{.*?\}", "l", table[0])))
            for row in re.findall(r"^(?!\\).*\\\\$", table[1], re.M):
                assert len(re.findall(r"(?<!\\)&", row)) == columns - 3, row
        for part in re.findall(r"\\input\{(.*?)\}", text):
            assert (folder / f"{part}.tex").exists(), part
        for figure in re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", text):
            assert (folder / figure).read_bytes().startswith(b"%PDF"), figure
        assert set(re.findall(r"\\ref\{(.*?)\}", text)) <= labels, name
        cited = {key for group in re.findall(r"\\cite\{(.*?)\}", text) for key in group.split(",")}
        assert cited <= works, name


def test_the_document_is_well_formed(paper, seeded):
    check_structure(paper)
    check_structure(seeded[1])


HOSTILE = r"m\input{/etc/passwd} $x_1$ 50% & # ~ ^ } { -- 中\u202e<!-- -->"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    cost = {"tasks": ("piqa", "a&b_{$c$}.d"), "model": HOSTILE, "n_items": 200}
    evaluation(root, accuracy={"piqa": 0.7, "a&b_{$c$}.d": 0.6}, **cost)
    evaluation(root, "bidirectional", {"piqa": 0.5, "a&b_{$c$}.d": 0.4}, **cost)
    return write_paper(report(root, model=HOSTILE), tmp_path_factory.mktemp("out") / "paper")


def test_text_from_outside_is_inert(hostile):
    check_structure(hostile)
    for name, text in tex_files(hostile).items():
        assert r"\input{/etc" not in text, name
        assert "中" not in text
    assert r"\textbackslash{}input\{" in (hostile / "main.tex").read_text()


@given(st.text())
def test_escaped_text_has_no_command_of_its_own(text):
    for shown in (latex.escape(text), latex.code(text)):
        commands = set(re.findall(r"\\([A-Za-z]+)", shown))
        assert commands <= {
            "textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater",
            "textbar", "textasciigrave", "texttt", "allowbreak",
        }  # fmt: skip
        rest = re.sub(r"\\[{}$&#_%]|\\[A-Za-z]+", "", shown)
        assert rest.count("{") == rest.count("}")
        assert not re.search(r"[$&#^~%\\]", rest)
        assert all(32 <= ord(letter) < 256 for letter in rest)


def test_numbers_read_as_numbers():
    assert latex.number("-4.7") == "$-$4.7"
    assert latex.number("<0.0001") == "$<$0.0001"
    assert latex.number("95 %") == r"95\,\%"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_it_compiles(seeded, hostile, tmp_path):
    for name, folder in (("seeded", seeded[1]), ("hostile", hostile)):
        copy = shutil.copytree(folder, tmp_path / name)
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"],
            cwd=copy, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]


def test_the_bibliography_holds_whole_entries():
    assert {key for _, key in bibliography.TASKS.values()} <= set(bibliography.WORKS)
    for key, entry in bibliography.WORKS.items():
        assert entry.count("{") == entry.count("}"), key
        for field in ("author", "title", "year"):
            assert re.search(rf"^  {field} = \{{", entry, re.M), (key, field)


# --- the folder -------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_the_same_runs_give_the_same_bytes(repaired, paper, tmp_path):
    """In another process, with another order of sets, from the command line."""
    again = tmp_path / "again"
    line = ["-m", "bidir_core", "report", "--runs-dir", str(repaired), "--paper", str(again)]
    subprocess.run(
        [sys.executable, *line], check=True, cwd=Path(write.__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "7"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    ours, theirs = files_of(paper), files_of(again)
    assert set(ours) == set(theirs)
    for name in set(ours) - {"README.md", "manifest.json"}:  # these name the command
        assert ours[name] == theirs[name], name
    readme = theirs["README.md"].decode()
    assert "--paper DIR" in readme
    assert str(again) not in readme
    for name, data in ours.items():
        if name.endswith(".pdf"):
            assert b"/CreationDate" not in data
            assert b"/FontFile2" in data  # embedded
        if name.endswith(".svg"):
            assert b"<dc:date>" not in data
            assert b"<text" not in data  # outlines: no font is needed


def small(report, folder, command):
    """Stands for the whole paper where only the folder matters."""
    (folder / "figures").mkdir()
    (folder / "methods.tex").write_text("x")
    (folder / "figures" / "a.svg").write_text("<svg/>")


def test_its_own_folder_is_replaced_and_nothing_else(repaired_report, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "fill", small)
    target = tmp_path / "paper"
    target.mkdir()  # an empty folder will do
    first = repaired_report
    write_paper(first, target)
    (target / "main.aux").write_text("left by LaTeX")
    write_paper(first, target)
    assert not (target / "main.aux").exists()
    (target / "methods.tex").write_text("mine now")
    with pytest.raises(UserError, match=r"'methods\.tex' was added or changed"):
        write_paper(first, target)
    assert (target / "methods.tex").read_text() == "mine now"
    shutil.rmtree(target)
    target.mkdir()
    (target / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and was not made by this command"):
        write_paper(first, target)
    assert [p.name for p in tmp_path.iterdir()] == ["paper"]


def test_places_that_cannot_be_written_are_refused(repaired_report, tmp_path):
    found = repaired_report
    file = tmp_path / "file"
    file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for place, why in ((file, "not a folder"), (link, "not a folder"), (file / "in", "--paper")):
        with pytest.raises(UserError, match=why):
            write_paper(found, place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_paper_that_fails_half_way_leaves_the_old_one(repaired_report, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "fill", small)
    target = write_paper(repaired_report, tmp_path / "paper")
    before = files_of(target)

    def broken(report, folder, command):
        (folder / "main.tex").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "fill", broken)
    with pytest.raises(UserError, match="No space left"):
        write_paper(repaired_report, target)
    assert files_of(target) == before
    assert [p.name for p in tmp_path.iterdir()] == ["paper"]


def test_the_command_answers_mistakes_in_one_line(repaired, tmp_path, capsys):
    place = ["report", "--runs-dir", str(repaired)]
    empty = tmp_path / "no-runs"
    empty.mkdir()
    for wrong, why in (
        (place, "--out FILE.md"),
        ([*place, "--paper", str(tmp_path / "p"), "--csv"], "go with --out"),
        ([*place, "--paper", str(repaired)], "not made by this command"),
        (["report", "--runs-dir", str(empty), "--paper", str(tmp_path / "p")], "no finished runs"),
        ([*place, "stage9/none", "--paper", str(tmp_path / "p")], "there is no run"),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["no-runs"]


def test_importing_the_command_line_needs_no_matplotlib():
    code = "import sys, bidir_core.cli, bidir_core.report, bidir_core.paper.write\n"
    code += "assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
