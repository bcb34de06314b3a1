"""Comparing runs: what pairs, what does not and why, flips, verdicts, the command."""

import json
import shutil
import timeit

import numpy as np
import pytest

from bidir_core.analyse.compare import compare
from bidir_core.analyse.flips import flips
from bidir_core.analyse.pairing import mismatch_report, pair
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from tests.factory import TASKS, answered, error_record, make_reference, make_run, spread_items

STAGE2 = "stage2_prefill_bidir_eval"


@pytest.fixture
def two(tmp_path):
    a = make_run(tmp_path, n_items=300, seed=1)
    b = make_run(tmp_path, STAGE2, n_items=300, seed=2, regime="bidirectional")
    return a, b


# --- the numbers -------------------------------------------------------------------------------


def test_a_comparison_agrees_with_the_runs_own_metrics(two):
    a, b = two
    result = compare(a, b)
    for row in result.tasks:
        assert row.acc_a == pytest.approx(a.metrics["tasks"][row.task]["acc"])
        assert row.acc_b == pytest.approx(b.metrics["tasks"][row.task]["acc"])
        assert row.chance == pytest.approx(a.metrics["tasks"][row.task]["chance"])
        assert row.delta == pytest.approx(row.acc_b - row.acc_a)
        assert row.both_right + row.broken + row.fixed + row.both_wrong == row.n == 60
        assert row.low < row.delta < row.high
        assert row.p_holm >= row.p_value
    assert result.macro.acc_b == pytest.approx(b.metrics["macro"]["acc"])
    assert result.macro.n == 300
    assert result.macro.churn == sum(row.churn for row in result.tasks)
    assert result.macro.chance == pytest.approx(0.35)
    kept = (result.macro.acc_b - 0.35) / (result.macro.acc_a - 0.35)
    assert result.above_chance.value == pytest.approx(kept)
    assert result.plain_ratio == pytest.approx(result.macro.acc_b / result.macro.acc_a)


def test_acc_norm_uses_acc_where_there_is_none(two):
    a, b = two
    result = compare(a, b, metric="acc_norm")
    assert result.macro.acc_a == pytest.approx(a.metrics["macro"]["acc_norm"])
    assert result.macro.acc_b == pytest.approx(b.metrics["macro"]["acc_norm"])
    by_task = {row.task: row for row in result.tasks}
    assert by_task["winogrande"].acc_a == pytest.approx(a.metrics["tasks"]["winogrande"]["acc"])
    assert by_task["piqa"].acc_a == pytest.approx(a.metrics["tasks"]["piqa"]["acc_norm"])
    with pytest.raises(UserError, match="unknown metric 'f1'"):
        compare(a, b, metric="f1")


def test_one_task_of_five_must_survive_holm(tmp_path):
    # One task broken on 9 items and fixed on 1: p = 0.02, times five is not significant.
    a = answered(tmp_path, "causal", {"v": [100]}, "vwxyz", n=200)
    b = answered(tmp_path, "bidirectional", {"v": range(9)}, "vwxyz", n=200)
    row = compare(a, b).tasks[0]
    assert (row.broken, row.fixed) == (9, 1)
    assert row.p_value == pytest.approx(2 * 11 / 1024)
    assert row.p_holm == pytest.approx(5 * row.p_value)
    assert row.high < 0  # its own interval excludes 0
    assert row.verdict == "undecided"
    assert "Holm" in row.words


def test_retention_above_the_no_context_run(tmp_path, two):
    a, b = two
    floor = make_run(tmp_path, n_items=600, seed=5, accuracy=0.3, config={"context": "none"})
    kept = compare(a, b, floor=floor).above_no_context
    assert kept.n == 300
    floor_accuracy = np.mean(
        [floor.items().query("task == @task and doc_id < 60")["correct"].mean() for task in a.tasks]
    )
    macro_a, macro_b = a.metrics["macro"]["acc"], b.metrics["macro"]["acc"]
    assert kept.value == pytest.approx((macro_b - floor_accuracy) / (macro_a - floor_accuracy))
    other = make_run(tmp_path, n_items=300, data_seed=9, config={"context": "none"})
    with pytest.raises(UserError, match="do not pair"):
        compare(a, b, floor=other)


# --- what does not pair ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "facts", "message"),
    [
        ({"split": "test"}, {}, "split 'validation', the other 'test'"),
        ({"num_fewshot": 5}, {}, "'0' solved examples before each item, the other '5'"),
        ({"chat_template": True}, {}, "chat template"),
        ({"context": "none"}, {}, "context 'full', the other with context 'none'"),
        ({}, {"tokenizer_fingerprint": "bytes"}, "different tokenizers"),
        ({}, {"bos_added": True}, "BOS token"),
    ],
)
def test_settings_that_do_not_pair(tmp_path, config, facts, message):
    a = make_run(tmp_path, n_items=20)
    b = make_run(tmp_path, n_items=20, seed=3, config=config, facts=facts)
    for intersect in (False, True):  # intersecting does not help here
        with pytest.raises(UserError, match=message) as caught:
            pair(a, b, intersect=intersect)
        assert "\n" not in str(caught.value)
        assert a.id in str(caught.value)


def test_what_a_run_did_not_record_is_not_held_against_it(tmp_path):
    a = make_run(tmp_path, n_items=20)
    b = make_run(tmp_path, n_items=20, facts={"tokenizer_fingerprint": None, "bos_added": None})
    assert pair(a, b).n == 20
    assert "repeat_prompt" not in a.settings  # from before prompts could be repeated
    assert pair(a, make_run(tmp_path, n_items=20, config={"repeat_prompt": 1})).n == 20


def test_a_repeated_prompt_pairs_with_the_same_prompt_given_once(tmp_path):
    items = spread_items(20, TASKS)
    once, repeated = make_run(tmp_path, items=items), {"repeat_prompt": 2}
    doubled = [
        item | {"contexts": [f"{text}\n\n{text}" for text in item["contexts"]]} for item in items
    ]
    comparison = compare(once, make_run(tmp_path, items=doubled, seed=4, config=repeated))
    assert comparison.macro.n == 20
    assert comparison.sentence.startswith("Giving the prompt 2 times instead of 1")
    assert any("what repeating it does" in note for note in comparison.notes)
    doubled[7]["contexts"] = ["another prompt\n\nanother prompt"] * len(items[7]["contexts"])
    with pytest.raises(UserError, match=r"prompt of .* differ between"):
        compare(once, make_run(tmp_path, items=doubled, seed=4, config=repeated))


def test_seeds_matter_only_where_contexts_are_drawn(tmp_path):
    def of(**config):
        return make_run(tmp_path, n_items=20, config=config)

    assert pair(of(seed=1), of(seed=2)).n == 20
    with pytest.raises(UserError, match="seeds '1' and '2'"):
        pair(of(seed=1, context="shuffled"), of(seed=2, context="shuffled"))
    with pytest.raises(UserError, match="seeds"):
        pair(of(seed=1, num_fewshot=2), of(seed=2, num_fewshot=2))


def test_other_data_does_not_pair(tmp_path):
    a, b = make_run(tmp_path, n_items=20), make_run(tmp_path, n_items=20, data_seed=1)
    for intersect in (False, True):
        with pytest.raises(UserError, match="20 item ids hold different documents"):
            pair(a, b, intersect=intersect)


def test_different_item_sets_intersect_on_request_only(tmp_path):
    small = make_run(tmp_path, n_items=50, seed=1)
    large = make_run(tmp_path, STAGE2, n_items=200, seed=2, regime="bidirectional")
    with pytest.raises(UserError, match=r"50 and 200, of which 50 are in both; --intersect"):
        compare(small, large)
    result = compare(small, large, intersect=True)
    assert result.intersected
    assert result.macro.n == 50
    assert result.n_unpaired == 150
    assert any(note.startswith("intersected: only the 50 items") for note in result.notes)
    assert len(flips(large, small, intersect=True)) == 50
    one_task = make_run(tmp_path, n_items=10, tasks=["piqa"])
    with pytest.raises(UserError, match="only one of the runs has the task arc_challenge"):
        compare(small, one_task)
    assert [r.task for r in compare(small, one_task, intersect=True).tasks] == ["piqa"]
    with pytest.raises(UserError, match="0 items are in both"):
        compare(one_task, make_run(tmp_path, n_items=9, tasks=["winogrande"]), intersect=True)


def test_the_mismatch_report_lists_everything(tmp_path):
    a = make_run(tmp_path, n_items=20)
    b = make_run(tmp_path, n_items=30, config={"split": "test", "num_fewshot": 2})
    mismatches = {m.what: m for m in mismatch_report(a, b)}
    assert list(mismatches) == ["split", "few-shot", "items"]
    assert (mismatches["items"].value_a, mismatches["items"].value_b) == ("20 items", "30 items")
    assert mismatch_report(a, a) == []


def test_row_order_does_not_matter(tmp_path):
    items = spread_items(60, ["piqa", "arc_easy"])
    a = make_run(tmp_path, items=items, tasks=["piqa", "arc_easy"], seed=1)
    b = make_run(tmp_path, STAGE2, items=items[::-1], tasks=["arc_easy", "piqa"], seed=2)
    result = compare(a, b)
    assert not result.intersected
    for row in result.tasks:
        assert row.acc_b == pytest.approx(b.metrics["tasks"][row.task]["acc"])
    frame = flips(a, b).set_index("item_id")
    assert frame.loc["piqa/7", "pred_b"] == b.item("piqa", 7)["pred"]


def test_runs_without_items(tmp_path):
    a = make_run(tmp_path, n_items=10)
    reference = make_reference(tmp_path, tasks={"piqa": 0.7})
    for run, message in (
        (reference, "published numbers only"),
        (make_run(tmp_path, n_items=10, state="queued"), "no items to pair"),
        (make_run(tmp_path, n_items=10, state="corrupt"), "is corrupt"),
    ):
        with pytest.raises(UserError, match=message):
            pair(a, run)


def test_partial_runs_pair_on_request_and_say_so(tmp_path):
    a = make_run(tmp_path, n_items=40, tasks=["piqa"])
    b = make_run(tmp_path, n_items=40, tasks=["piqa"], seed=2, state="failed")
    with pytest.raises(UserError, match="--intersect"):
        compare(a, b)
    result = compare(a, b, intersect=True)
    assert result.macro.n == 20
    assert any(note.startswith("partial:") for note in result.notes)


def test_notes_say_what_was_computed_in_and_which_items_make_no_claim(tmp_path):
    """Both settings say "auto"; the runs were made on a CPU and on a GPU."""
    explore = {"dtype": "auto", "fold": "explore"}
    a = make_run(tmp_path, n_items=20, config=explore, facts={"dtype": "float32"})
    other = explore | {"weights": "native"}
    b = make_run(tmp_path, n_items=20, seed=2, config=other, facts={"dtype": "bfloat16"})
    notes = compare(a, b).notes
    assert "the runs differ in dtype: float32 and bfloat16" in notes
    assert not any("weights" in note for note in notes)  # the other run is from before there were
    c = make_run(tmp_path, n_items=20, seed=3, config=explore | {"weights": "dequantise"})
    assert "the runs differ in weights: dequantise and native" in compare(c, b).notes
    assert any(note.startswith("explore fold") for note in notes)


def test_error_items_never_enter_a_pair(tmp_path):
    a = make_run(tmp_path, n_items=50, seed=1, n_errors=3)
    b = make_run(tmp_path, n_items=50, seed=2, n_errors=5)
    result = compare(a, b)
    assert result.macro.n == 45
    assert result.n_errors == 5
    assert "5 items left out" in " ".join(result.notes)
    frame = flips(a, b)
    assert len(frame) == 45
    assert frame.notna().all().all()
    writer = RunWriter.create(STAGE2, a.settings, root=tmp_path)
    writer.append([error_record(item) for item in spread_items(50, a.tasks)])
    writer.finish()
    with pytest.raises(UserError, match="share no item that both could score"):
        pair(a, Run(writer.path))


# --- flips -------------------------------------------------------------------------------------


def test_flips_row_by_row(two):
    a, b = two
    frame = flips(a, b).set_index("item_id")
    assert len(frame) == 300
    for item_id in ("piqa/0", "hellaswag/11", "winogrande/59"):
        row = frame.loc[item_id]
        task, number = item_id.split("/")
        record_a, record_b = a.item(task, int(number)), b.item(task, int(number))
        if record_a["correct"] != record_b["correct"]:
            expected = "broken" if record_a["correct"] else "fixed"
        elif record_a["correct"]:
            expected = "same_right"
        else:
            expected = "changed_wrong" if record_a["pred"] != record_b["pred"] else "same_wrong"
        assert row["flip"] == expected
        assert row["margin_a"] == pytest.approx(record_a["margin"])
        assert row["margin_change"] == pytest.approx(record_b["margin"] - record_a["margin"])
        odds = np.exp(np.array(record_b["ll"]) - max(record_b["ll"]))
        assert row["gold_prob_b"] == pytest.approx(odds[record_a["gold"]] / odds.sum())
        assert row["n_prefix_tokens"] == max(record_a["n_prefix_tokens"])
        assert row["n_gold_tokens"] == record_a["n_continuation_tokens"][record_a["gold"]]
        assert row["n_choices"] == len(record_a["ll"])
        assert row["prompt_group"] == record_a["prompt_group"]
        assert row["context_short"] == record_a["contexts"][0][:120].replace("\n", " ")
    counts = frame["flip"].value_counts()
    macro = compare(a, b).macro
    assert counts["broken"] == macro.broken
    assert counts["fixed"] == macro.fixed
    assert counts["changed_wrong"] == macro.changed_wrong


def test_flips_of_compact_runs_have_no_text_unless_the_other_has(tmp_path):
    full = make_run(tmp_path, n_items=20)
    compact = make_run(tmp_path, n_items=20, texts=False, seed=2)
    assert (flips(compact, compact)["context_short"] == "").all()
    assert (flips(compact, full)["context_short"] != "").all()
    assert (flips(full, compact)["context_short"] != "").all()


@pytest.mark.alone
def test_ten_thousand_items_are_paired_in_a_moment(tmp_path):
    texts = spread_items(1000, TASKS) * 10
    items = [text | {"doc_id": number} for number, text in enumerate(texts)]
    a = make_run(tmp_path, items=items)
    b = Run(shutil.copytree(a.path, tmp_path / "again"))
    flips(a, b)
    assert min(timeit.repeat(lambda: flips(a, b), number=1, repeat=5)) < 0.3


# --- the command -------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_json(two, capsys):
    a, b = two
    assert main(["compare", str(a.path), str(b.path)]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 25
    assert all(word in text for word in ("hellaswag", "macro", "95 % CI", "p (Holm)"))
    assert compare(a, b).sentence in text
    assert main(["compare", str(a.path), str(b.path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["macro"]["n"] == 300
    assert result["tasks"][0]["churn"] == result["tasks"][0]["broken"] + result["tasks"][0]["fixed"]
    assert result["judgement"] == compare(a, b).verdict
    assert result["run_a"] == a.id


def test_recorded_prompts_are_compared_for_every_pair(tmp_path):
    """Not only an imported run's: a chat template may have written the prompts of two days."""
    items = spread_items(60, ("piqa", "winogrande"))
    a = make_run(tmp_path, items=items, seed=1)
    dated = [{**item, "contexts": [f"26 Jul\n{t}" for t in item["contexts"]]} for item in items]
    b = make_run(tmp_path, STAGE2, items=dated, seed=2, regime="bidirectional")
    with pytest.raises(UserError, match=r"the prompt of .* differ"):
        compare(a, b)
    short = make_run(tmp_path, STAGE2, items=dated, seed=2, regime="bidirectional", texts=False)
    assert compare(a, short).macro.n == 60  # nothing was kept that could be compared
