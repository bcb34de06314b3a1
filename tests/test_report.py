"""Reports: the published figures come back, answers come out either way, nothing is overclaimed."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factory import make_item, make_run, spread_items

from bidir_core import stats
from bidir_core.cli import main
from bidir_core.errors import UserError
from bidir_core.report import build_report, write_report
from bidir_core.reporting import answers
from bidir_core.reporting.answers import Attempt
from bidir_core.reporting.arms import make_study
from bidir_core.reporting.contrasts import Contrast
from bidir_core.reporting.markdown import Column, Interval, Table, code, escape
from bidir_core.run_layout import COMMITTED_RUNS, FINETUNE_DIRS
from bidir_core.run_writer import RunWriter
from bidir_core.store import Run, list_runs
from bidir_core.training.curve import append_curve

FOLDERS = {
    (False, False): "stage1_vanilla_eval", (False, True): "stage2_prefill_bidir_eval",
    (True, False): "nonprefill_compare", (True, True): "stage4_postft_eval",
}  # fmt: skip


def make_finetune(root, code="3B", *, seed=0, evals=True, **settings) -> Run:
    regime = "causal" if code == "3C" else "bidirectional"
    full = {
        "model": "smollm2-135m-instruct", "objective": code, "regime": regime, "seed": seed,
        "method": "full", "steps": 400, "lr": 1e-4, "batch_samples": 64, "data": "far",
        "causal_anchor": 0.0,
    } | settings  # fmt: skip
    facts = {"data_fingerprint": "d", "training_data": {"n_used": 900, "n_dropped_contaminated": 7}}
    name = f"{code}-{seed}" + ("-lora" if full["method"] == "lora" else "")
    writer = RunWriter.create(
        FINETUNE_DIRS[code], full, root=root, name=name, kind="finetune", **facts
    )
    for step in (0, 200, 400) if evals else ():
        row = {"acc": 0.4 + step / 4000, "acc_norm": 0.4, "n": 250}
        append_curve(
            writer.path,
            {"step": step, "tokens": step * 100, "seconds": step / 10,
             "evals": {"bidirectional": row, "causal": row}},
        )  # fmt: skip
    writer.finish(
        metrics={"steps": 400, "tokens": 40_000, "final_loss": 1.25, "weight_bytes": 9_000_000},
        cost={"seconds": 40.0, "computed_tokens": 41_000, "device": "cpu"},
    )
    return Run(writer.path)


def evaluation(root, regime="causal", accuracy=0.5, *, trained: Run | None = None, **more) -> Run:
    """One of the 2x2's cells; equal ``accuracy`` and ``seed`` make equal predictions."""
    folder = FOLDERS[trained is not None, regime != "causal"]
    facts = {}
    if trained is not None:
        facts["training_record"] = {"run": trained.id, "objective": trained.settings["objective"]}
    return make_run(
        root, folder, regime=regime, accuracy=accuracy,
        checkpoint=str(trained.path / "final") if trained else None,
        **{"n_items": 1000, "seed": 3, "texts": False, "facts": facts} | more,
    )  # fmt: skip


def two_by_two(root, cells: dict[tuple[str, str], float], *, seeds=(0,), **recipe) -> None:
    for code_ in dict.fromkeys(code_ for code_, _ in cells):
        for seed in seeds if code_ != "base" else (0,):
            trained = None if code_ == "base" else make_finetune(root, code_, seed=seed, **recipe)
            for regime in ("causal", "bidirectional"):
                if (code_, regime) in cells:
                    evaluation(root, regime, cells[code_, regime], trained=trained, seed=3 + seed)


REPAIRED = {
    ("base", "causal"): 0.55, ("base", "bidirectional"): 0.40,
    ("3B", "causal"): 0.60, ("3B", "bidirectional"): 0.60,
    ("3C", "causal"): 0.60, ("3C", "bidirectional"): 0.45,
}  # fmt: skip


@pytest.fixture(scope="module")
def repaired(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repaired")
    two_by_two(root, REPAIRED)
    return root


def report(root, **more):
    return build_report(list_runs([root]), roots=[root], **more)


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}.*?(?=^## |\Z)", text, re.S | re.M)
    assert found, heading
    return found[0]


# --- the published summary ---------------------------------------------------------------------


def test_the_published_figures_come_back():
    published = [run for run in list_runs([COMMITTED_RUNS]) if run.is_reference]
    text = build_report(published, roots=[COMMITTED_RUNS]).markdown()
    derived = section(text, "Macro Accuracy by Stage")
    for figure in ("-0.3391592562", "0.512x", "+0.0528007278", "+5.28", "0.5880x"):
        assert f"`{figure}`" in derived
    check = section(text, "Additional Check: Non-Prefill")
    for figure in ("0.6950568562", "0.6199344482", "-0.0751224080", "0.8919x"):
        assert f"`{figure}`" in check
    per_task = section(text, "Per-Task")
    for figure in ("-29.8", "-17.2", "-46.2", "-33.8", "-16.2", "+8.2", "+11.4", "-1.4"):
        assert f"| {figure} |" in per_task
    direct = section(text, "Direct Answer")
    assert "It hurts." in direct
    assert "above chance 1.7 % (no interval)" in direct
    assert "does **not** recover to stage 1" in direct
    assert "17.0 %" in direct
    # The study had no control: its gain is not called repair, nor its interval paired.
    assert "is not shown" in direct
    assert "unpaired" in direct
    assert "Repair cannot be told from ordinary tuning" in direct


def test_the_sections_of_the_published_summary_stand_in_its_order(repaired):
    text = report(repaired).markdown()
    headings = re.findall(r"^##+ (.*)", text, re.M)
    wanted = [
        "Scope", "Stage Definitions", "Macro Accuracy by Stage", "Per-Task",
        "Direct Answer to the Main Questions",
        "1) How much does prefill bidirectional attention hurt performance?",
        "2) Can this be fixed easily with a bit of finetuning?", "Additional Check: Non-Prefill",
        "Repair or Ordinary Tuning", "Differences", "Churn", "Training", "Recovery Curve", "Cost",
        "Artifacts",
    ]  # fmt: skip
    places = [next(i for i, h in enumerate(headings) if h.startswith(name)) for name in wanted]
    assert places == sorted(places)


# --- answers come out either way ---------------------------------------------------------------


def contrast(value, low, high, *, a=0.45, **more) -> Contrast:
    interval = None if low is None else stats.Estimate(value, low, high, 2000)
    basis = "none" if low is None else "paired"
    return Contrast("k", "stage 1", "stage 2", a, a + value, value, interval, basis, **more)


HARM = contrast(-0.05, -0.06, -0.04)
NONE = contrast(0.001, -0.005, 0.007)
GAIN = contrast(0.05, 0.04, 0.06)
WIDE = contrast(-0.01, -0.03, 0.01)
UNKNOWN = contrast(-0.075, None, None)


def effect(value, low, high) -> stats.Contrast:
    return stats.Contrast(stats.Estimate(value, low, high, 2000), {}, (value,))


REAL, TUNING, UNSURE = effect(0.1, 0.08, 0.12), effect(0, -0.005, 0.005), effect(0.01, -0.02, 0.04)
MISSING = "there is no causal control (3C) of the same recipe"


def attempt(**more) -> Attempt:
    given = {"gain": GAIN, "gap": NONE, "control_gap": None, "normal": NONE, "control_normal": None,
             "interaction": REAL} | more  # fmt: skip
    return Attempt(arm="3B", control="3C", regime="bidirectional", **given)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(HARM, "It hurts."), (NONE, "It makes no difference beyond 1 point."),
     (GAIN, "It does not hurt here."), (WIDE, "These runs do not decide it."),
     (None, "Not run")],
)  # fmt: skip
def test_question_1(damage, says):
    text = " ".join(answers.how_much_it_hurts(damage, "bidirectional"))
    assert text.startswith(says)
    others = {"It hurts.", "It makes no difference", "It does not hurt", "do not decide"}
    assert sum(other in text for other in others) == (damage is not None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "Yes, stage 1 is reached within 1 point"),
        ({"gap": GAIN}, "Yes, the level of stage 1 is passed"),
        ({"gap": HARM}, "Partially, but not back to stage 1"),
        ({"gap": WIDE}, "At least in part; whether stage 1 is reached is undecided"),
        ({"gain": NONE}, "No: fine-tuning does not raise accuracy"),
        ({"gain": HARM}, "No: fine-tuning does not raise accuracy"),
        ({"gain": WIDE}, "Undecided"),
        ({"gain": UNKNOWN}, "Undecided"),
        ({"interaction": MISSING}, "that this is repair, and not ordinary tuning, is not shown"),
        ({"interaction": TUNING}, "it is not repair of the mask"),
        ({"interaction": UNSURE}, "whether this is repair or ordinary tuning is undecided"),
        ({"interaction": effect(-0.1, -0.12, -0.08)}, "it is not repair of the mask"),
        ({"gain": None, "gap": None}, "Not run"),
    ],
)
def test_question_2(changes, says):
    assert says in answers.can_it_be_fixed(HARM, attempt(**changes))[0]


@pytest.mark.parametrize("damage", [NONE, GAIN])
def test_nothing_is_repaired_where_nothing_was_damaged(damage):
    assert "nothing to repair" in answers.can_it_be_fixed(damage, attempt())[0]


@pytest.mark.parametrize("interaction", [MISSING, TUNING, UNSURE, effect(-0.1, -0.12, -0.08)])
@pytest.mark.parametrize("gain", [GAIN, NONE, HARM, WIDE])
@pytest.mark.parametrize("gap", [GAIN, NONE, HARM, WIDE])
def test_nothing_is_called_repair_without_the_interaction(interaction, gain, gap):
    text = " ".join(
        answers.can_it_be_fixed(HARM, attempt(interaction=interaction, gain=gain, gap=gap))
    )
    assert "Yes" not in text
    assert "artially" not in text
    assert "is repair of the mask, not" not in text
    for match in re.finditer(r"repair", text):  # each mention takes it back
        around = text[max(0, match.start() - 60) : match.end() + 60]
        assert re.search(r"not |cannot|undecided|nothing", around), around


@pytest.mark.parametrize("cost", [GAIN, HARM, WIDE, UNKNOWN])
def test_no_cost_takes_equivalence(cost):
    lines = answers.can_it_be_fixed(HARM, attempt(control_gap=cost))
    lines += answers.normal_behaviour(attempt(normal=cost, control_normal=cost))
    assert "no cost" not in " ".join(lines)
    assert "unchanged" not in " ".join(lines)


def test_equivalence_may_be_called_no_cost():
    lines = answers.can_it_be_fixed(HARM, attempt(control_gap=NONE))
    assert "no cost beyond 1 point (equivalent)" in " ".join(lines)
    # The very same difference is undecided once the interval leaves the margin.
    wider = contrast(0.001, -0.011, 0.013)
    assert "no cost" not in " ".join(answers.can_it_be_fixed(HARM, attempt(control_gap=wider)))


def test_the_margin_is_the_readers(repaired):
    wide = section(report(repaired, margin=0.05).markdown(), "Direct Answer")
    assert "no cost beyond 5 points (equivalent)" in wide


# --- from runs ---------------------------------------------------------------------------------


def test_repair_is_told_from_tuning_by_the_control(repaired, tmp_path):
    text = section(report(repaired).markdown(), "Direct Answer")
    assert "It hurts." in text
    assert re.search(r"Yes, the level of stage 1 is passed", text)
    assert "part of the gain is repair of the mask" in text
    # The same 3B, but the control gains as much under both regimes: ordinary tuning.
    two_by_two(tmp_path, REPAIRED | {("3C", "bidirectional"): 0.60})
    text = section(report(tmp_path).markdown(), "Direct Answer")
    assert "Yes" not in text
    assert "not repair" in text


def test_without_the_control_the_same_gain_is_no_repair(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] != "3C"})
    text = report(tmp_path).markdown()
    direct = section(text, "Direct Answer")
    assert "is not shown" in direct
    assert "no causal control (3C)" in direct
    assert "not run" in section(text, "Repair or Ordinary Tuning")


def test_the_control_must_have_the_same_recipe(tmp_path):
    cells = {k: v for k, v in REPAIRED.items() if k[0] != "3C"}
    two_by_two(tmp_path, cells)
    other = make_finetune(tmp_path, "3C", steps=100)
    for regime in ("causal", "bidirectional"):
        evaluation(tmp_path, regime, 0.5, trained=other)
    assert "no causal control (3C) of the same recipe" in report(tmp_path).markdown()


def test_numbers_agree_with_the_runs(repaired):
    made = report(repaired)
    by_stage = {row[0]: row for row in made.tables["macro"].rows}
    cells = {(arm.code, regime): by[0] for (arm, regime), by in made.study.cells.items()}
    expected = {"stage 1": ("base", "causal"), "stage 4 from 3B": ("3B", "bidirectional"),
                "3C, bidirectional": ("3C", "bidirectional")}  # fmt: skip
    for stage, cell in expected.items():
        assert by_stage[stage][5] == pytest.approx(cells[cell].metrics["macro"]["acc"])
    macro = {key: run.metrics["macro"]["acc"] for key, run in cells.items()}
    value = (macro["3B", "bidirectional"] - macro["3C", "bidirectional"]) - (
        macro["3B", "causal"] - macro["3C", "causal"]
    )
    row = next(row for row in made.tables["interaction"].rows if row[3] == "macro")
    assert row[5] == pytest.approx(value)
    assert row[6].low < value < row[6].high
    assert len(made.tables["mcnemar"].rows) % 5 == 0
    assert {"0", "200", "400"} == {str(row[1]) for row in made.tables["curve"].rows}


def test_several_seeds_give_mean_spread_and_one_p_value_each(tmp_path):
    two_by_two(tmp_path, REPAIRED, seeds=(0, 1, 2))
    made = report(tmp_path)
    row = next(row for row in made.tables["macro"].rows if row[0] == "stage 4 from 3B")
    runs = [run for run in list_runs([tmp_path]) if run.stage == "stage4_postft_eval"]
    accs = [r.metrics["macro"]["acc"] for r in runs
            if "stage3_" in r.settings["checkpoint"]]  # fmt: skip
    assert len(accs) == 3
    assert row[4] == 3
    assert row[5] == pytest.approx(sum(accs) / 3)
    assert row[7] == pytest.approx((min(accs), max(accs)))
    contrasts = {row[0]: row for row in made.tables["contrasts"].rows}
    assert contrasts["stage 4 from 3B minus 3C, causal"][2] == 3
    p = next(r[9] for r in made.tables["mcnemar"].rows if r[0].startswith("stage 4 from 3B minus"))
    assert p.count(" / ") == 2
    text = made.markdown()
    assert "3 seeds" in section(text, "Direct Answer")
    assert "By seed:" in text


def test_recipes_are_variants_of_their_arm(tmp_path):
    two_by_two(tmp_path, REPAIRED)
    lora = {k: v for k, v in REPAIRED.items() if k[0] != "base"}
    two_by_two(tmp_path, lora, method="lora", lora_rank=8)
    made = report(tmp_path)
    titles = [arm.title for arm in made.study.arms]
    assert titles == ["base", "3B", "3B (method lora)", "3C", "3C (method lora)"]
    lines = [row for row in made.tables["interaction"].rows if row[3] == "macro"]
    assert [(row[0], row[1]) for row in lines] == [
        ("3B", "3C"), ("3B (method lora)", "3C (method lora)")
    ]  # fmt: skip


def test_the_leaky_arm_is_called_leaky_everywhere_and_answers_nothing(tmp_path):
    two_by_two(tmp_path, REPAIRED | {("3A", "causal"): 0.3, ("3A", "bidirectional"): 0.9})
    made = report(tmp_path)
    text = made.markdown()
    for line in text.splitlines():
        if "3A" in line:
            assert "leaky" in line.lower(), line
    assert "3A" not in section(text, "Direct Answer")
    for table in made.tables.values():
        for line in table.csv().splitlines():
            assert "3A" not in line or "leaky" in line.lower(), line


def test_distillation_has_the_base_model_as_its_control(tmp_path):
    cells = {k: v for k, v in REPAIRED.items() if k[0] == "base"}
    two_by_two(tmp_path, cells | {("distill", "causal"): 0.55, ("distill", "bidirectional"): 0.55})
    text = section(report(tmp_path).markdown(), "Direct Answer")
    assert "distil - the base model under bidirectional" in text
    assert "**distil**: Yes, stage 1 is reached within 1 point" in text


@pytest.mark.parametrize("left", [
    {("base", "causal")}, {("base", "bidirectional")}, {("3B", "bidirectional")},
    {("base", "causal"), ("3B", "causal")}, {("3B", "causal"), ("3C", "causal")},
])  # fmt: skip
def test_what_is_missing_is_said_to_be_not_run(tmp_path, left):
    two_by_two(tmp_path, {cell: REPAIRED[cell] for cell in left})
    text = report(tmp_path).markdown()
    assert "not run" in text.lower()
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_the_no_context_floor_is_found(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] == "base"})
    evaluation(tmp_path, "causal", 0.3, config={"context": "none"})
    made = report(tmp_path)
    assert made.study.floor is not None
    assert "above the no-context score" in made.markdown()
    assert len(made.study.runs(made.study.base, "causal")) == 1


def test_item_sets_are_not_mixed(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] == "base"})
    other = evaluation(tmp_path, "causal", 0.5, n_items=100, config={"limit": 20})
    text = report(tmp_path).markdown()
    assert f"`{other.id}`: over other items" in text


def test_unusable_runs_are_left_out_with_the_reason(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] == "base"})
    for state in ("failed", "corrupt", "partial"):
        make_run(tmp_path, n_items=20, state=state)
    bad = make_run(tmp_path, "stage2_prefill_bidir_eval", n_items=20)
    config = json.loads((bad.path / "config.json").read_text())
    config["config"]["regime"] = "bidirectional:sink=many"
    (bad.path / "config.json").write_text(json.dumps(config))
    text = report(tmp_path).markdown()
    for why in (
        "not finished (failed)",
        "not finished (corrupt)",
        "not finished (partial)",
        "sink",
    ):
        assert why in text


def test_runs_that_do_not_pair_get_no_paired_interval(tmp_path):
    evaluation(tmp_path, "causal", 0.55, n_items=300)
    evaluation(tmp_path, "bidirectional", 0.4, n_items=300, facts={"tokenizer_fingerprint": "x"})
    made = report(tmp_path)
    (row,) = made.tables["contrasts"].rows
    assert row[-1].startswith("unpaired")
    assert "different tokenizers" in made.markdown()


def test_no_runs_at_all(tmp_path):
    with pytest.raises(UserError, match="no finished runs"):
        build_report(roots=[tmp_path])
    with pytest.raises(UserError, match="at least one finished evaluation"):
        build_report([make_run(tmp_path, n_items=20, state="failed")], roots=[tmp_path])


def test_the_fullest_set_of_a_model_is_chosen(tmp_path):
    two_by_two(tmp_path, REPAIRED)
    evaluation(tmp_path, "causal", 0.9, n_items=1600, config={"limit": 320})  # more items, alone
    make_run(tmp_path, n_items=50, model="another")
    made = build_report(roots=[tmp_path])
    assert made.study.model == "smollm2-135m-instruct"
    assert {arm.code for arm in made.study.arms} == {"base", "3B", "3C"}
    assert build_report(roots=[tmp_path], model="another").study.model == "another"


# --- hostile text, files, the command ----------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)> | ![x](http://evil/x.png) `code` **b**\n# heading"


def test_hostile_names_stay_text(tmp_path):
    items = [*spread_items(40, (HOSTILE,)), make_item(HOSTILE, 99, 0)]
    for regime in ("causal", "bidirectional"):
        make_run(
            tmp_path, FOLDERS[False, regime != "causal"], regime=regime, items=items,
            tasks=(HOSTILE,), model=HOSTILE, facts={"source": HOSTILE}, seed=len(regime),
        )  # fmt: skip
    text = report(tmp_path).markdown()
    assert "<img" not in text
    assert "![" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "http://" not in text
    assert not [line for line in text.splitlines() if line.startswith("# heading")]
    markdown_it = pytest.importorskip("markdown_it")
    page = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert not re.search(r"<(img|a|strong>b|script)\b", page)
    assert page.count("<h1") == 1
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {re.sub(r"\\\|", "", line).count("|") for line in tables if "onerror" in line}
    headers = {line.count("|") for line in tables if line.startswith(("| Task", "| What"))}
    assert widths <= headers | {line.count("|") for line in tables if set(line) <= set("|-:")}


@pytest.mark.parametrize("text", ["a`b", "``", "`", "plain", "a b\nc"])
def test_code_spans_hold_their_text(text):
    shown = code(text)
    fence = re.match(r"`+", shown)[0]
    inside = shown[len(fence) : -len(fence)]
    assert fence not in re.findall(r"`+", inside)
    assert inside.strip() == " ".join(text.split())


def test_cells_are_one_line_and_escaped():
    table = Table("t", [Column("a|b"), Column("n", "count"), Column("d", "interval")])
    table.rows.append(["x\ny|z", 1234, Interval(-0.011, 0.02)])
    assert table.markdown().splitlines()[2] == "| x y\\|z | 1,234 | -1.1 to +2.0 |"
    assert escape("a_b*c<d>") == "a\\_b\\*c&lt;d&gt;"


def test_csv_is_plain_and_runs_no_formula():
    table = Table("t", [Column("name"), Column("value", "points"), Column("ci", "interval")])
    table.rows.append(["=HYPERLINK(1)", -0.0123456789, Interval(-0.02, 0.01)])
    header, row = csv.reader(io.StringIO(table.csv()))
    assert header == ["name", "value", "ci low", "ci high"]
    assert row == ["'=HYPERLINK(1)", "-0.0123456789", "-0.02", "0.01"]


def test_the_command_writes_markdown_and_tables(repaired, tmp_path, capsys):
    out = tmp_path / "deep" / "result.md"
    line = ["report", "--runs-dir", str(repaired), "--out", str(out), "--csv"]
    assert main(line) == 0
    written = capsys.readouterr().out.split()
    assert written[0] == str(out)
    assert {Path(path).name for path in written} >= {"result.macro.csv", "result.contrasts.csv"}
    text = out.read_text()
    assert main(line) == 0
    assert out.read_text() == text  # the same runs, the same report
    run = next(r for r in list_runs([repaired]) if r.stage.startswith("stage1"))
    assert main(["report", run.id, "--runs-dir", str(repaired), "--out", str(out)]) == 0


@pytest.mark.parametrize("words", [
    ["--out", "x.pdf"], ["nosuchrun", "--out", "x.md"], ["--out", "x.md", "--margin", "0"],
    ["--out", "/proc/nowhere/x.md"], ["--out", "x.md", "--model", "nobody"],
])  # fmt: skip
def test_bad_input_is_one_line(words, repaired, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--runs-dir", str(repaired), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_sections_can_be_chosen(repaired, tmp_path):
    made = report(repaired)
    text = made.markdown(only={"answers"})
    assert "## Direct Answer" in text
    assert "## Cost" not in text
    assert write_report(made, tmp_path / "r.md") == [tmp_path / "r.md"]


def test_reading_runs_needs_no_torch():
    check = "import sys, bidir_core.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_study_needs_its_seeds_matched(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] != "3C"}, seeds=(0, 1))
    control = make_finetune(tmp_path, "3C", seed=1)
    for regime in ("causal", "bidirectional"):
        evaluation(tmp_path, regime, REPAIRED["3C", regime], trained=control, seed=4)
    study = make_study(list_runs([tmp_path]))
    made = report(tmp_path)
    assert study.control_of(study.trained("3B")[0]) is not None
    row = next(r for r in made.tables["interaction"].rows if r[3] == "macro")
    assert row[7].count(",") == 0  # the one seed that both arms have
    assert "do NOT share the seeds" in made.markdown()
