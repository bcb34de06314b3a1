"""From runs to a report: the published figures come back, and each arm is judged by its control."""

import csv
import io
import json
import re
import shlex
import shutil

import numpy as np
import pytest

from bidir_core.analyse.contrasts import contrast
from bidir_core.analyse.study import make_study
from bidir_core.common.errors import UserError
from bidir_core.report.report import build_report
from bidir_core.runs.find import find_run, list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from tests.factory import make_run, unsealed
from tests.lab_factory import SINKS, make_sweep
from tests.report_runs import REPAIRED, evaluation, make_finetune, report, section, two_by_two


def test_the_published_figures_come_back():
    published = [run for run in list_runs([COMMITTED_RUNS]) if run.is_reference]
    result = build_report(published, roots=[COMMITTED_RUNS])
    rows = list(csv.DictReader(io.StringIO(result.tables["contrasts"].csv())))
    differences = {row["Contrast"]: float(row["Difference"]) for row in rows}
    assert differences["stage 2 minus stage 1"] == pytest.approx(-0.3391592562, abs=5e-11)
    assert differences["stage 4 from 3B minus stage 2"] == pytest.approx(0.0528007278, abs=5e-11)
    assert differences["3B, causal minus stage 1"] == pytest.approx(-0.0751224080, abs=5e-11)
    ratios = {row[0]: row[-1] for row in result.tables["macro"].rows}
    assert (ratios["stage 2"], ratios["stage 4 from 3B"]) == ("0.512x", "0.588x")
    text = result.markdown()
    per_task = section(text, "Per-Task")
    for figure in ("-29.8", "-17.2", "-46.2", "-33.8", "-16.2", "+8.2", "+11.4", "-1.4"):
        assert f"| {figure} |" in per_task
    answer = section(text, "The Answer")
    assert "It hurts." in answer
    assert "kept: 1.7 % (no interval)" in answer
    assert "does **not** recover to stage 1" in answer
    assert "17.0 %" in section(text, "Repair or Ordinary Tuning")
    # The study had no control: its gain is not called repair, nor its interval paired.
    assert "is not shown" in answer
    assert "unpaired" in answer
    assert "Repair cannot be told from ordinary tuning" in answer


def test_the_answer_is_one_page_and_everything_else_its_appendix(repaired_report, committed_report):
    for result in (repaired_report, committed_report):
        text = result.markdown()
        answer, appendix = text.split("\n## Appendix\n")
        assert len(answer.split()) <= 800
        # The verdict, three bullets, what is undecided, and what it is about.
        headings = re.findall(r"^(?:##? |\*\*|- \*\*)([\w ]+)", answer, re.M)[1:]
        assert headings[:3] == ["The Answer", "It hurts", "What is left"]
        assert headings[3:] == ["Without training", "With training", "What is undecided"]
        assert "n = " in answer.split("**What is undecided**")[0]
        assert re.findall(r"^### (.*)", appendix, re.M) == [
            s.heading for s in result.sections if not s.is_front
        ]
        assert not re.search(r"\d\.\d{5}", text)  # of the numbers, none has many decimals


def test_what_is_undecided_or_not_run_is_on_the_first_page(tmp_path):
    evaluation(tmp_path, "causal", 0.5)
    answer = section(report(tmp_path).markdown(), "The Answer")
    assert "Not run: it takes stage 1 and stage 2" in answer
    assert "Not run: stage 2 (bidirectional), a repair fine-tune (3B)" in answer
    evaluation(tmp_path, "bidirectional", 0.49)
    evaluation(tmp_path, "bidirectional:sink=1", 0.5, seed=4)
    result = report(tmp_path)
    answer = section(result.markdown(), "The Answer")
    undecided = [row for row in result.tables["contrasts"].rows if row[-3] == "undecided"]
    assert undecided
    for row in undecided:
        assert row[0].capitalize() in answer


def test_the_answer_is_about_the_chosen_pair(tmp_path):
    few = {"n_items": 500, "config": {"limit": 100}}
    a = evaluation(tmp_path, "causal", 0.5, **few)
    b = evaluation(tmp_path, "bidirectional:sink=1", 0.3, **few)
    evaluation(tmp_path, "bidirectional", 0.4, **few)
    two_by_two(tmp_path, REPAIRED)  # fuller, over other items
    result = build_report(pair=(a, b), roots=[tmp_path])
    assert result.study.regime == "bidirectional:sink=1"
    assert "bidirectional:sink=1 prefill lowers" in result.markdown({"answers"})
    assert {run.settings["limit"] for run in result.study.all_runs} == {100}
    arguments = shlex.split(result.command())[4:-2]
    named = [find_run(word, [tmp_path]) for word in arguments if "/" in word]
    again = build_report(named, regime=arguments[arguments.index("--regime") + 1], roots=[tmp_path])
    assert again.markdown() == result.markdown()
    with pytest.raises(UserError, match="was not run under 'bidirectional:sink=7'"):
        build_report([a, b], regime="bidirectional:sink=7", roots=[tmp_path])


def test_repair_is_told_from_tuning_by_the_control(repaired_report, tmp_path):
    study = repaired_report.study
    assert study.floor is not None
    assert len(study.runs(study.base, "causal")) == 1  # that without contexts is none of them
    text = section(repaired_report.markdown(), "The Answer")
    assert "It hurts." in text
    assert re.search(r"yes, the level of stage 1 is passed", text)
    assert "part of the gain is repair of the mask" in text
    # The same 3B, but the control gains as much under both regimes: ordinary tuning.
    two_by_two(tmp_path, REPAIRED | {("3C", "bidirectional"): 0.60})
    text = section(report(tmp_path).markdown(), "The Answer")
    assert "Yes" not in text
    assert "not repair" in text


def test_the_control_must_have_the_same_recipe(tmp_path):
    cells = {k: v for k, v in REPAIRED.items() if k[0] != "3C"}
    two_by_two(tmp_path, cells)
    other = make_finetune(tmp_path, "3C", steps=100)
    for regime in ("causal", "bidirectional"):
        evaluation(tmp_path, regime, 0.5, trained=other)
    assert "no causal control (3C) of the same recipe" in report(tmp_path).markdown()


def test_recipes_are_variants_of_their_arm(tmp_path):
    two_by_two(tmp_path, REPAIRED)
    lora = {k: v for k, v in REPAIRED.items() if k[0] != "base"}
    two_by_two(tmp_path, lora, method="lora", lora_rank=8)
    result = report(tmp_path)
    titles = [arm.title for arm in result.study.arms]
    assert titles == ["base", "3B", "3B (method lora)", "3C", "3C (method lora)"]
    lines = [row for row in result.tables["interaction"].rows if row[3] == "macro"]
    assert [row[0] for row in lines] == ["3B", "3B (method lora)"]
    assert [row[1] for row in lines] == ["3C", "3C (method lora)"]


def test_the_leaky_arm_is_called_leaky_everywhere_and_answers_nothing(tmp_path):
    two_by_two(tmp_path, REPAIRED | {("3A", "causal"): 0.3, ("3A", "bidirectional"): 0.9})
    result = report(tmp_path)
    text = result.markdown()
    for line in text.splitlines():
        if "3A" in line:
            assert "leaky" in line.lower(), line
    assert "3A" not in section(text, "The Answer")
    for table in result.tables.values():
        for line in table.csv().splitlines():
            assert "3A" not in line or "leaky" in line.lower(), line


def test_distillation_has_the_base_model_as_its_control(tmp_path):
    cells = {k: v for k, v in REPAIRED.items() if k[0] == "base"}
    two_by_two(tmp_path, cells | {("distill", "causal"): 0.55, ("distill", "bidirectional"): 0.55})
    text = section(report(tmp_path).markdown(), "The Answer")
    assert "Beyond its control, the base model, it gains" in text
    assert "the distillation, distil: yes, stage 1 is reached within 1 point" in text


@pytest.mark.parametrize(
    "cells",
    [
        {("base", "causal")},
        {("base", "bidirectional")},
        {("3B", "bidirectional")},
        {("base", "causal"), ("3B", "causal")},
        {("3B", "causal"), ("3C", "causal")},
    ],
)
def test_what_is_missing_is_said_to_be_not_run(tmp_path, cells):
    two_by_two(tmp_path, {cell: REPAIRED[cell] for cell in cells})
    text = report(tmp_path).markdown()
    assert "not run" in text.lower()
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_a_hidden_token_is_an_ablation_and_no_baseline(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] == "base"})
    evaluation(tmp_path, "causal:hide=0", 0.2)  # the newest run: it must not take causal's place
    result = report(tmp_path)
    study = result.study
    assert study.regime == "bidirectional"
    assert study.bidirectional_regimes(study.base) == ["bidirectional"]
    text = result.markdown()
    assert "stage 2 (causal:hide=0)" in section(text, "Macro Accuracy by Stage")
    assert "hide=0" not in section(text, "The Answer")
    stage1 = next(iter(study.runs(study.base, "causal").values()))
    assert stage1.regime == "causal"
    assert stage1.metrics["macro"]["acc"] > 0.3


def test_item_sets_are_not_mixed(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] == "base"})
    other = evaluation(tmp_path, "causal", 0.5, n_items=100, config={"limit": 20})
    text = report(tmp_path).markdown()
    assert f"`{other.id}`: over other items" in text
    another = evaluation(tmp_path, "bidirectional", 0.5, n_items=100, config={"limit": 20})
    lines = report(tmp_path).markdown().splitlines()
    (line,) = (line for line in lines if "over other items" in line)
    assert line.startswith("- 2 runs, over other items")
    assert f"`{other.id}`" in line
    assert f"`{another.id}`" in line


def test_unusable_runs_are_left_out_with_the_reason(tmp_path):
    two_by_two(tmp_path, {k: v for k, v in REPAIRED.items() if k[0] == "base"})
    for state in ("failed", "corrupt", "partial"):
        make_run(tmp_path, n_items=20, state=state)
    bad = unsealed(make_run(tmp_path, "stage2_prefill_bidir_eval", n_items=20))
    config = json.loads((bad.path / "config.json").read_text())
    config["config"]["regime"] = "bidirectional:sink=many"
    (bad.path / "config.json").write_text(json.dumps(config))
    text = report(tmp_path).markdown()
    for why in ("failed", "partial"):
        assert f"not finished ({why})" in text
    assert "corrupt: metrics.json cannot be read" in text
    assert "corrupt: config.json: 'config.regime' is not a regime" in text


def test_runs_that_do_not_pair_get_no_paired_interval(tmp_path):
    evaluation(tmp_path, "causal", 0.55, n_items=300)
    evaluation(tmp_path, "bidirectional", 0.4, n_items=300, facts={"tokenizer_fingerprint": "x"})
    result = report(tmp_path)
    (row,) = result.tables["contrasts"].rows
    assert row[-1].startswith("unpaired")
    assert "different tokenizers" in section(result.markdown(), "The Answer")


def without_items(study, root, *seeds) -> None:
    """A copy of the study in which these seeds' evaluations keep their metrics only."""
    shutil.copytree(study, root, dirs_exist_ok=True)
    for run in list_runs([root]):
        trained = (run.config.get("training_record") or {}).get("run", "")
        if any(f"-{seed}" in trained[-2:] for seed in seeds):
            (run.path / "items.parquet").unlink()


def test_where_only_some_seeds_kept_items_those_alone_are_compared(three_seeds, tmp_path):
    complete = report(three_seeds)
    without_items(three_seeds, tmp_path, 1, 2)
    result = report(tmp_path)
    rows = {row[0]: row for row in result.tables["contrasts"].rows}
    row = rows["stage 4 from 3B minus 3C, causal"]
    assert (row[2], row[-1]) == (1, "paired item by item")
    assert "from 1 of 3 seeds: the others have no items here, only metrics" in result.markdown()
    lines = [line for line in result.markdown().splitlines() if "(the interaction)" in line]
    assert lines
    assert all("It is from 1 of 3 seeds: the others have no items here" in line for line in lines)
    assert not re.search("It is from|Accuracies and their", complete.markdown())
    assert {row[0]: row for row in result.tables["macro"].rows}["stage 4 from 3B"][4] == 3


def test_without_any_items_seeds_give_an_unpaired_interval_with_their_spread(three_seeds, tmp_path):
    without_items(three_seeds, tmp_path, 0, 1, 2)
    study = report(tmp_path).study
    arm = study.trained("3B")[0]
    cells = (study.base, "causal"), (arm, "bidirectional")
    all_seeds = contrast(study, *cells)
    runs = list_runs([tmp_path])
    few = [run for run in runs if "3B-0" in (run.settings.get("checkpoint") or "3B-0")]
    one_seed = contrast(make_study(few), *cells)
    assert all_seeds.basis == one_seed.basis == "unpaired"
    assert len(all_seeds.per_seed) == 3
    assert all_seeds.value == pytest.approx(sum(all_seeds.per_seed) / 3)
    # The same items answered thrice are not three times as many items.
    spread = np.var(all_seeds.per_seed, ddof=1) / 3
    widths = [c.interval.high - c.interval.low for c in (all_seeds, one_seed)]
    half, single = (width / 2 / 1.959964 for width in widths)
    assert half**2 == pytest.approx(single**2 + spread, rel=0.03)
    # What is kept goes by the mean over seeds, like the ratio beside it.
    chance = study.runs(*cells[0])[0].metrics["macro"]["chance"]
    kept = (all_seeds.acc_b - chance) / (all_seeds.acc_a - chance)
    assert all_seeds.above_chance.value == pytest.approx(kept)


def test_no_runs_at_all(tmp_path):
    with pytest.raises(UserError, match="no finished runs"):
        build_report(roots=[tmp_path])
    with pytest.raises(UserError, match="at least one finished evaluation"):
        build_report([make_run(tmp_path, n_items=20, state="failed")], roots=[tmp_path])


def test_the_fullest_set_of_a_model_is_chosen(tmp_path):
    two_by_two(tmp_path, REPAIRED)
    evaluation(tmp_path, "causal", 0.9, n_items=1600, config={"limit": 320})  # more items, alone
    make_run(tmp_path, n_items=50, model="another")
    result = build_report(roots=[tmp_path])
    assert result.study.model == "smollm2-135m-instruct"
    assert {arm.code for arm in result.study.arms} == {"base", "3B", "3C"}
    assert build_report(roots=[tmp_path], model="another").study.model == "another"


def test_tasks_are_named_as_their_authors_write_them(committed_report):
    answer = committed_report.markdown().partition("## Appendix")[0]
    assert "ARC-Challenge" in answer
    assert "arc_challenge" not in answer


def test_a_sweeps_points_stand_for_evaluations_that_nobody_made(tmp_path):
    sweep = make_sweep(tmp_path, SINKS, n_items=100)
    make_sweep(tmp_path, SINKS[:1], n_items=100)  # newer, of fewer points
    make_run(tmp_path, n_items=100, config={"context": "none", "limit": 500})
    alone = build_report(roots=[tmp_path]).study
    names = ("causal", "bidirectional", "bidirectional:sink=1")
    ids = {regime: alone.runs(alone.base, regime)[0].id for regime in names}
    slugs = {regime: regime.replace(":", "_").replace("=", "-") for regime in names}
    assert ids == {regime: f"{sweep.id}/points/{slug}" for regime, slug in slugs.items()}
    made = make_run(tmp_path, n_items=100, config={"limit": 500})
    study = build_report(roots=[tmp_path]).study
    assert study.runs(study.base, "causal")[0].id == made.id
    assert study.runs(study.base, "bidirectional")[0].id == ids["bidirectional"]
