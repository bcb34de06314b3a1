"""What the Overview says of training: repair and its control, seeds, masks, leaky weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt
from tests.app import ROOT, STAGE2, open_page, pair, words
from tests.factory import make_run


def tuned(
    root: Path,
    arm: str,
    regime: str,
    *,
    method: str = "full",
    seed: int = 0,
    train_seed: int = 0,
    trained: str | None = None,
    **options,
) -> Run:
    """An evaluation of a fine-tuned checkpoint that says how it was trained."""
    stage = "nonprefill_compare" if regime == "causal" else "stage4_postft_eval"
    record = {"objective": arm, "method": method, "steps": 400, "data": "far"}
    record |= {"seed": train_seed, "regime": trained}
    facts = {"training_record": record} | options.pop("facts", {})
    checkpoint = f"checkpoints/{arm}-{method}/final"
    common = {"n_items": 40, "regime": regime, "checkpoint": checkpoint, "seed": seed}
    return make_run(root, stage, facts=facts, **common | options)


FOUR = [(arm, regime) for arm in ("3B", "3C") for regime in ("bidirectional", "causal")]


def test_overview_tells_repair_only_with_its_control(root):
    """The interaction needs 3B and 3C under both masks."""
    limit = {"limit": 500}
    pair(root, config=limit)
    for arm, regime in FOUR:
        assert "Interaction:" not in words(open_page(panel="4"))
        tuned(root, arm, regime, accuracy=0.6, config=limit)
    text = words(open_page(panel="4"))
    assert "Interaction: 0.0 points" in text
    assert "3C full, evaluated causal" in text
    assert "so does the control" not in text  # forty items decide nothing


def test_overview_finds_the_complete_study_on_other_items(root):
    """The chosen pair has no fine-tune: the whole-set study is shown, named and not mixed."""
    pair(root, config={"limit": 500})
    half = {"facts": {"dtype": "bfloat16"}}
    whole = {"n_items": 2000, "texts": False}
    for dtype in ({}, half):  # a float32 base is no partner of bfloat16 fine-tunes
        make_run(root, accuracy=0.7, **whole, **dtype)
        make_run(root, STAGE2, regime="bidirectional", accuracy=0.4, **whole, **dtype)
    make_run(root, accuracy=0.1, **whole)  # and the newest stage 1 is a wrong one
    for arm, regime in FOUR:
        repaired = arm == "3B" or regime == "causal"
        tuned(root, arm, regime, accuracy=0.72 if repaired else 0.42, **whole, **half)
        tuned(root, arm, regime, method="lora", accuracy=0.2, **whole, **half)  # newer
    tuned(root, "distill", "bidirectional", accuracy=0.1, **whole, **half)
    app = open_page(panel="4")
    text = words(app)
    assert "Training repairs it, and the control does not" in text
    assert "the whole validation sets (n = 2,000), bfloat16" in text
    assert "limit 500 per task (n = 40), float32" in text
    assert "one seed" in text
    rows = re.search(r"3B full, trained with the new mask\s+([\d.]+) %\s+([\d.]+) %", text)
    assert rows
    assert all(70 < float(value) < 74 for value in rows.groups())
    assert "Stages 3B, 3C and 4 are not run yet" not in text
    assert "With fine-tuning: stages 3B, 3C and 4" in text
    assert "Stage 4   bidirectional · 3C full" in re.sub(r"\s{2,}", "   ", text)


def test_overview_claims_no_repair_when_the_control_does_as_well(root):
    pair(root, n_items=2000, texts=False, config={"limit": 500})
    for arm, regime in FOUR:
        tuned(root, arm, regime, accuracy=0.75, n_items=2000, texts=False, config={"limit": 500})
    text = words(open_page(panel="4"))
    assert "There was nothing to repair" not in text
    assert "The control gains as much" in text
    assert "repair cannot be told from ordinary tuning" in text


def test_fine_tunes_without_items_are_named_and_not_paired(root):
    pair(root, config={"limit": 500})
    run = tuned(root, "3B", "bidirectional", config={"limit": 500})
    (run.path / "items.parquet").unlink()
    app = open_page(panel="4")
    assert not app.exception
    text = words(app)
    assert re.search(r"All fine-tunes.*3B full\s.*none", text, re.DOTALL)
    assert "Interaction:" not in text
    assert "no items to pair" in text  # the ladder


def test_all_weights_come_before_adapters_on_the_chosen_items(root):
    """Adapters evaluated on the chosen pair's items do not stand in for the study; alone they do."""
    limited = {"n_items": 60, "texts": False, "config": {"limit": 500}}
    pair(root, **limited)
    for arm, regime in FOUR:
        tuned(root, arm, regime, method="lora", **limited)
    text = words(open_page(panel="4"))
    assert "limit 500 per task (n = 60), float32, LoRA adapters, training seed 0" in text
    whole = {"n_items": 90, "texts": False}
    pair(root, **whole)
    pair(root, **limited)  # the newest pair is the chosen one
    for arm, regime in FOUR:
        tuned(root, arm, regime, **whole)
    text = words(open_page(panel="4"))
    assert "Measured on the whole validation sets (n = 90), float32, training seed 0" in text
    assert "LoRA adapters" not in text


@pytest.mark.skipif(not list((ROOT / "runs").glob("stage4*/*3C-full*")), reason="no such runs here")
def test_overview_of_the_committed_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(ROOT / "runs"))
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "cache"))
    app = open_page(panel="4")
    text = words(app)
    assert not app.exception
    assert "not run yet" not in text.casefold()
    runs = json.loads((ROOT / "docs" / "claims.json").read_text())["runs"]

    def right(arm: str, seed: int, regime: str) -> float:
        """In percent; of the runs with that seed the one that is here."""
        made = runs[f"{arm}-full-seed{seed}-{regime}"]
        (here,) = (value["all"] for run, value in made.items() if (ROOT / "runs" / run).is_dir())
        return here

    gains = [
        [right("3B", seed, regime) - right("3C", seed, regime) for seed in range(3)]
        for regime in ("bidirectional", "causal")
    ]
    each = [fmt.points((under - causal) / 100) for under, causal in zip(*gains)]
    assert f"Interaction: {each[0]} points [" in text
    assert f"training seeds 0, 1, 2: {', '.join(each)} points" in text
    assert "3B full, 3 seeds · 25 steps" in text
    assert "one of 3 seeds" in text
    assert "Only the first token kept causal (sink=1), against plain" in text
    panel = words(open_page(panel="3")).replace("\xa0", " ")
    assert re.search(r"\+\d\.\d points \[[^]]+\], n = 14,016, all items against plain", panel)


# --- where it comes from -------------------------------------------------------------------------


def test_one_token_is_claimed_only_beyond_its_placebo(root):
    common = {"n_items": 1500, "texts": False, "config": {"limit": 500}}
    make_run(root, accuracy=0.6, **common)
    bidirectional = {"regime": "bidirectional", "accuracy": 0.4, "seed": 1}
    make_run(root, STAGE2, **bidirectional, **common)
    text = words(open_page(panel="3"))
    assert "Where does it come from?" in text
    assert "--regime bidirectional:sink=1 --limit 500" in text
    make_run(
        root,
        STAGE2,
        **{**bidirectional, "regime": "bidirectional:sink=1", "accuracy": 0.6},
        **common,
    )
    text = words(open_page(panel="3"))
    assert "One token causal helps" in text
    assert "one token\n" not in text
    assert "The placebo: whether it is this token" in text
    placebo = {**bidirectional, "regime": "bidirectional:skip=8"}
    make_run(root, STAGE2, **placebo, **common)
    text = words(open_page(panel="3"))
    assert "The first token causal helps, a placebo less" in text
    assert "another single token (skip=8): 0.0 points" in text
    other = make_run(
        root, STAGE2, **placebo | {"accuracy": 0.6, "regime": "bidirectional:skip=5"}, **common
    )  # another placebo does as well
    assert "Where does it come from?" in words(open_page(panel="3"))
    make_run(root, STAGE2, **placebo | {"regime": "bidirectional:skip=3"}, **common)
    assert "Where does it come from?" in words(open_page(panel="3")), "a newer, weaker placebo"
    shutil.rmtree(other.path)
    make_run(
        root, STAGE2, **placebo | {"accuracy": 0.6}, **common
    )  # the newest run of a placebo counts
    assert "Where does it come from?" in words(open_page(panel="3"))


# --- seeds ---------------------------------------------------------------------------------------


def four(root: Path, seed: int, accuracies: dict[str, float], **options) -> None:
    """3B and 3C of one training seed under both masks."""
    for arm, regime in FOUR:
        repaired = arm == "3B" or regime == "causal"
        rate = accuracies["repaired" if repaired else "left"]
        tuned(root, arm, regime, train_seed=seed, seed=10 + seed, accuracy=rate, **options)


def test_training_seeds_are_one_row_with_their_spread(root):
    common = {"n_items": 400, "texts": False, "config": {"limit": 500}}
    pair(root, **common)
    for seed in range(3):
        four(root, seed, {"repaired": 0.72, "left": 0.42}, **common)
    app = open_page(panel="4")
    assert not app.exception
    text = words(app).replace("\xa0", " ")
    found = re.search(
        r"Interaction: (\S+) points .*?, n = (\d+), limit 500, 3 seeds: ([^:]+):", text
    )
    assert found
    each = [float(value.replace("−", "-")) for value in found[3].split(", ")]
    assert len(each) == 3
    assert float(found[1]) == pytest.approx(sum(each) / 3, abs=0.11)
    assert found[2] == "400"
    assert "training seeds 0, 1, 2" in text
    assert "3B full, 3 seeds, trained with the new mask" in text
    assert re.search(r"trained with the new mask\s+[\d.]+ %\s+[\d.]+ to [\d.]+", text)
    assert "3 seeds" in words(open_page())  # the card
    assert len(re.findall(r"Stage 4\s+bidirectional · 3B full", text)) == 1  # the ladder


def test_seeds_without_items_count_in_the_means_and_not_in_the_intervals(root):
    """Three seeds, items of one: one row an arm, which says what its interval is of."""
    common = {"n_items": 200, "texts": False, "config": {"limit": 500}}
    pair(root, **common)
    for seed in range(3):
        four(root, seed, {"repaired": 0.7, "left": 0.45}, **common)
    for run in [
        one
        for one in list_runs([root])
        if one.stage in ("stage4_postft_eval", "nonprefill_compare")
    ]:
        if run.config["training_record"]["seed"]:
            (run.path / "items.parquet").unlink()
    text = words(open_page(panel="4")).replace("\xa0", " ")
    assert ", one seed: " in text
    assert re.search(r"From accuracies alone, training seeds 0, 1, 2: \S+, \S+, \S+ points", text)
    assert "one of 3 seeds" in text  # the card
    (row,) = re.findall(
        r"Stage 4\s+bidirectional · 3B full, 3 seeds(.*?from seed 0 alone)", text, re.DOTALL
    )
    assert "Stage 4" not in row
    assert re.search(r"3C full, 3 seeds\s+[\d.]+ %\s+[\d.]+ to [\d.]+", text)


def test_an_arm_with_fewer_seeds_pairs_over_those_both_have(root):
    common = {"n_items": 200, "texts": False, "config": {"limit": 500}}
    pair(root, **common)
    four(root, 0, {"repaired": 0.7, "left": 0.45}, **common)
    tuned(root, "3B", "bidirectional", train_seed=1, accuracy=0.7, **common)
    text = words(open_page(panel="4"))
    assert ", one seed: " in text
    assert "training seeds 0, 1" in text


def test_the_pooled_numbers_are_the_reports(root):
    from bidir_core.analyse.contrasts import contrast
    from bidir_core.analyse.study import make_study
    from bidir_core.runs.find import list_runs
    from bidir_ui.reading import data, seeds, story

    common = {"n_items": 200, "texts": False, "config": {"limit": 500}}
    a, _ = pair(root, **common)
    for seed in range(2):
        four(root, seed, {"repaired": 0.7, "left": 0.45}, **common)
    infos = data.list_infos()
    study = story.find(infos, data.by_id(infos, a.id))
    made = make_study(list_runs())
    arm = made.trained("3B")[0]
    wanted = contrast("", made, (made.base, "causal"), (arm, "bidirectional"))
    ours = study.difference(("base", "causal"), ("3B", "bidirectional"))
    assert ours.interval == wanted.interval
    assert ours.per_seed == wanted.per_seed
    assert seeds.each(ours.per_seed).startswith("2 seeds: ")


# --- masks and leaks -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["", "pages/compare.py", "pages/flips.py"])
def test_another_mask_than_in_training_is_said_where_the_run_is_shown(root, page):
    a = make_run(root, n_items=40)
    same = tuned(root, "3B", "bidirectional", trained="bidirectional")
    other = tuned(root, "3C", "bidirectional", trained="causal")
    assert "Another mask than in training" not in words(open_page(page, a=a.id, b=same.id))
    text = words(open_page(page, a=a.id, b=other.id))
    assert "trained under causal and are evaluated under bidirectional" in text


def test_runs_says_the_mask_of_training_in_the_table(root):
    tuned(root, "3C", "bidirectional", trained="causal")
    tuned(root, "3B", "bidirectional", trained="bidirectional")
    app = open_page("pages/runs.py")
    assert set(app.dataframe[0].value["weights"]) == {"3C full, trained causal", "3B full"}


@pytest.mark.parametrize(
    "page", ["", "pages/compare.py", "pages/flips.py", "pages/item.py", "pages/runs.py"]
)
def test_leaky_weights_are_called_leaky_everywhere(root, page):
    a = make_run(root, n_items=40)
    run = tuned(root, "3A", "bidirectional", trained="bidirectional")
    app = open_page(page, a=a.id, b=run.id, item="piqa/3")
    assert "3A (leaky)" in words(app)
    if page not in ("pages/item.py", "pages/runs.py"):
        assert "never a result" in words(app)
    labels = [option for box in app.sidebar.selectbox for option in box.options]
    assert any("leaky" in label for label in labels)


def test_a_checkpoint_of_unknown_training_is_called_that(root):
    a = make_run(root, n_items=40)
    run = make_run(root, "stage4_postft_eval", n_items=40, regime="bidirectional", checkpoint="x/y")
    text = words(open_page("pages/compare.py", a=a.id, b=run.id))
    assert "nobody recorded under which mask" in text
