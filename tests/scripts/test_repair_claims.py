"""Claims about repair: either way sayable, made on the confirm half, and the page says no more."""

from __future__ import annotations

import json
import re
from statistics import mean

import pytest

from bidir_core.analyse import stats
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts import blocks, repair_claims, repair_page, repair_words
from scripts.repair_claims import compute, lost, run_name
from scripts.repair_pairs import BASE, FOLDS, STAGE1, by_run, estimate, finished, repetitions
from tests.repair_study import arm, base, hashes

WRONG = hashes()[::3]  # what every model gets wrong, so that there is room on both sides
ARMS = [(o, m) for o in ("3B", "3C", "distill") for m in ("full", "lora")]


def numbers(root) -> dict:
    return compute(finished([root]), repetitions([root]))


def study(root, *, seeds=(0,), **wrong):
    """All arms as good as stage 1, but for what ``wrong`` says of `objective_method_regime`."""
    base(root, WRONG)
    for seed in seeds:
        for objective, method in ARMS:
            regimes = {
                regime: wrong.get(f"{objective}_{method}_{regime}", WRONG) for regime in BASE
            }
            arm(root, f"{objective}-{method}", seed, objective=objective, method=method, **regimes)
    return numbers(root)


def better(share: int) -> list[str]:
    return [one for i, one in enumerate(WRONG) if i % share]


def worse(step: int) -> list[str]:
    return sorted({*WRONG, *hashes()[::step]})


def test_no_difference_is_equivalent_and_no_gain_is_not_called_one(tmp_path):
    claims = study(tmp_path)["claims"]
    for key, one in claims.items():
        if key != "damage":
            assert one["word"] == "equivalent", key
            assert one["confirm"]["value"] == 0
    assert claims["damage"]["word"] == "different"
    reached = {key: one["reached"] for key, one in claims.items()}
    assert reached["3b_stage1"] == reached["interaction"] == "undecided"
    assert reached["3b_control"] == reached["distil_causal"] == reached["lora_3b_causal"] == "yes"


def test_gain_and_loss_are_told_apart(tmp_path):
    """3B gains under its mask, its control loses there, distillation harms the causal mode."""
    found = study(
        tmp_path,
        **{
            "3B_full_bidirectional": better(3),
            "3C_full_bidirectional": worse(5),
            "distill_full_causal": worse(5),
            "3B_lora_bidirectional": worse(5),
        },
    )
    claims = found["claims"]
    said = {key: (one["word"], one["reached"]) for key, one in claims.items()}
    assert said["3b_stage1"] == ("different", "yes")
    assert said["3b_control"] == ("different", "no")  # better than its control: not equivalent
    assert said["interaction"] == ("different", "yes")
    assert said["distil_causal"] == ("different", "no")
    assert said["distil_stage1"] == ("equivalent", "yes")
    assert said["lora_3b_bidirectional"] == ("different", "no")
    assert "different, higher. Aim: 0 or above: **reached**." in repair_words.sentence(
        claims["3b_stage1"]
    )
    assert "different, lower. Aim: within 1 point: **not reached**" in repair_words.sentence(
        claims["distil_causal"]
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3.0, ["tuning?** yes, +3.0", "3B: above it, +3.0", "control: no, it gains, +3.0"]),
        (0.0, ["tuning?** no, +0.0", "3B: yes, +0.0", "control: no, +0.0"]),
        (-3.0, ["tuning?** no, -3.0", "3B: below it, -3.0", "control: yes, -3.0"]),
        (0.8, ["tuning?** undecided, +0.8", "3B: undecided, +0.8", "control: undecided, +0.8"]),
    ],
)
def test_the_summary_can_come_out_either_way(value, says):
    one = recipe("recipe-3B-full-25-0.0003", value)["explore"]["bidirectional"]
    if value == 0.8:
        one = {**one, "low": -0.9, "high": 2.5}
    keys = ("interaction", "3b_stage1", "distil_stage1", "3b_control", "lora_3b_causal")
    claims = {key: {"aim": "within", "margin": 1.0, "confirm": one} for key in keys}
    tried = recipe("recipe-3B-full-25-0.0003", value)
    text = "\n".join(
        repair_page.summary_lines(claims, {"chosen": tried["name"], "recipes": [tried]})
    )
    for sentence in says:
        assert sentence in text
    assert f"Shown in {int(value == 0)} of 1 comparisons" in text
    assert ("does not hold" if value == -3.0 else "that holds") in text
    assert "How little" not in "".join(repair_page.summary_lines(claims, None))


def test_what_cannot_be_told_is_undecided():
    one = stats.Estimate(0.008, -0.004, 0.02, 700)
    assert repair_words.word(one, 1.0) == "undecided"
    for aim in ("at least", "within", "above"):
        assert repair_words.reached(aim, 1.0, one) == "undecided"
    assert repair_words.reached("within or better", 1.0, one) == "yes"
    low = stats.Estimate(-0.008, -0.02, 0.004, 700)
    assert repair_words.reached("within or better", 1.0, low) == "undecided"
    text = repair_words.sentence(
        {"what": "x", "aim": "within", "margin": 1.0, "seeds": [0], "confirm": points(low)}
    )
    assert text == (
        "X: -0.8 points (95 % CI -2.0 to +0.4; n = 700; 1 seed): undecided. "
        "Aim: within 1 point: **undecided**."
    )


def points(one: stats.Estimate) -> dict:
    return {
        **{end: 100 * getattr(one, end) for end in ("value", "low", "high")},
        "n": one.n,
        "by_seed": [100 * one.value],
    }


def test_an_effect_on_explore_alone_does_not_reach_the_claims(tmp_path):
    explore = set(hashes("explore"))
    gained = [one for one in WRONG if one not in explore]
    one = study(tmp_path, **{"3B_full_bidirectional": gained})["claims"]["3b_stage1"]
    assert one["all"]["value"] > 10
    assert one["confirm"]["value"] == 0
    assert one["confirm"]["n"] == len(hashes("confirm"))
    assert one["word"] == "equivalent"


def test_seeds_are_averaged_and_their_spread_widens_the_interval(tmp_path):
    base(tmp_path, WRONG)
    for seed, wrong in enumerate((WRONG, better(3), worse(5))):
        arm(tmp_path, "3B-full", seed, bidirectional=wrong)
    claims = numbers(tmp_path)["claims"]
    one = claims["3b_stage1"]
    assert one["seeds"] == [0, 1, 2]
    by_seed = one["confirm"]["by_seed"]
    assert by_seed[0] == 0
    assert by_seed[1] > 5
    assert by_seed[2] < -5
    assert one["confirm"]["value"] == pytest.approx(sum(by_seed) / 3, abs=0.002)
    assert one["word"] == "undecided"
    assert re.search(r"3 seeds, -\d+\.\d to \+\d+\.\d\)", repair_words.sentence(one))
    # What lacks runs is said to lack them, by name, and nothing is made of it.
    assert claims["3b_control"]["missing"] == ["3C-full-seed0-causal"]
    assert "not run yet (lacks `3C-full-seed0-causal`)" in repair_words.sentence(
        claims["3b_control"]
    )


def test_numbers_of_more_seeds_are_not_overwritten_by_fewer(tmp_path, monkeypatch, capsys):
    old = {"claims": {"a": {"seeds": [0, 1, 2]}, "b": {"seeds": []}}}
    new = {"claims": {"a": {"seeds": [0]}, "b": {"seeds": [0]}}}
    assert lost(old, new) == ["a"]
    assert lost({}, new) == []
    twice = {"claims": {}, "runs": {"x": {"first": {}, "again": {}}, "y": {"first": {}}}}
    once = {"claims": {}, "runs": {"x": {"again": {}}, "y": {"first": {}}}}
    assert lost(twice, once) == ["x"]
    assert lost(once, twice) == []
    base(tmp_path, WRONG)
    for look in (finished, repetitions):
        monkeypatch.setattr(repair_claims, look.__name__, lambda look=look: look([tmp_path]))
    out = tmp_path / "claims.json"
    out.write_text(json.dumps({"claims": {"3b_stage1": {"seeds": [0]}}}))
    before = out.read_text()
    assert repair_claims.main(["--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "more seeds than the runs here" in said
    assert "for 3b_stage1;" in said
    assert out.read_text() == before
    assert repair_claims.main(["--out", str(out), "--fewer"]) == 0
    assert json.loads(out.read_text())["claims"]["damage"]["word"] == "different"


# --- the recipe ----------------------------------------------------------------------------------


def recipe(name: str, value: float, **more) -> dict:
    one = {"value": value, "low": value - 0.5, "high": value + 0.5, "n": 7000, "by_seed": [value]}
    half = {"seeds": [0], "bidirectional": one, "causal": one}
    return {
        "name": name, "objective": "3B", "method": "full", "steps": 50, "lr": 3e-4, "tokens": 470_000,
        "passes_a_token": 1, "seeds": [0], "seconds_alone": {}, "device": "a GPU", "explore": half,
        "confirm": half, "confirm_fresh_seeds": None,
    } | more  # fmt: skip


def test_the_recipe_is_said_with_its_cost_or_that_there_is_none():
    one = recipe("recipe-3B-full-50-0.0003", -0.2)
    found = {"rule": "r", "chosen": one["name"], "chosen_by_objective": {}, "recipes": [one]}
    text = repair_page.recipe_text(found)
    assert "50 steps, which is below 100; 470,000 useful tokens; seconds not measured alone" in text
    assert "Aim: within 1 point, or better: **reached**" in text
    slow = {**one, "steps": 100, "seconds_alone": {"1": 9.04, "2": 9.31}}
    text = repair_page.recipe_text({**found, "recipes": [slow]})
    assert "which is not below 100" in text
    assert "9.0 to 9.3 s of training, alone on one a GPU" in text
    far = recipe(one["name"], -3.0)
    text = repair_page.recipe_text({**found, "chosen": None, "recipes": [far]})
    assert "None of 1 recipes comes that close" in text
    assert "-3.0 (-3.5 to -2.5)" in text


# --- the page ------------------------------------------------------------------------------------


PAGES = {page: page.read_text(encoding="utf-8") for page in blocks.PAGES}


@pytest.mark.parametrize("name", repair_page.BLOCKS)
def test_the_pages_say_what_the_numbers_say(name):
    found = [m[0] for text in PAGES.values() for m in blocks.pattern("repair").finditer(text)]
    (block,) = (one for one in found if f"<!-- repair: {name} -->" in one)
    assert block == blocks.filled(block, "repair", repair_page.BLOCKS)


@pytest.mark.parametrize("name", repair_page.TABLES)
def test_the_tables_are_what_the_numbers_give(name):
    written = (blocks.TABLES / f"{name}.csv").read_text(encoding="utf-8")
    assert written == blocks.csv_text(repair_page.TABLES[name]())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_words_around_them_hold_no_results(page):
    """A number in prose would be held to nothing; settings and names are no results."""
    prose = re.sub(r"<!-- (\w+): \w+ -->.*?<!-- end -->", "", PAGES[page], flags=re.DOTALL)
    prose = re.sub(r"## Prior work.*?\n## ", "", prose, flags=re.DOTALL)  # others' numbers
    prose = re.sub(
        r"`[^`]*`|\]\([^)]*\)|3[BC]\b|SmolLM2(-135M)?|Gemma 3 270M|95 %|[Ss]tage\s1|b?float\d\d|"
        r"\d+ steps|\d+ bits|first 500|leaves out 0|holds 0|seed\n?0|^\d\.",
        "", prose, flags=re.MULTILINE,
    )  # fmt: skip
    assert re.findall(r"\d[\d.,]*", prose) == []


def intervals(text: str) -> set[tuple[str, ...]]:
    """Every ``+1.2 points (95 % CI +0.1 to +2.3`` and, of a table, ``+1.2,+0.1 to +2.3``."""
    return set(
        re.findall(r"([+-]\d+\.\d)(?: points)?(?: \(|,)(?:95 % CI )?([+-][\d.]+) to ([+-][\d.]+)", text)
    )  # fmt: skip


def test_the_front_page_quotes_what_was_computed():
    """Each difference in the README stands on a page of claims or in a table."""
    (section,) = re.findall(
        r"## The answer in brief.*?(?=\n## )",
        (blocks.DOCS.parent / "README.md").read_text(),
        re.DOTALL,
    )
    quoted = intervals(" ".join(section.split()))
    assert len(quoted) >= 7
    known = [intervals(path.read_text()) for path in (*PAGES, *blocks.TABLES.glob("*.csv"))]
    assert not quoted - set.union(*known)


def test_the_committed_numbers_are_those_of_the_committed_runs():
    """Accuracies of the runs whose items are committed are computed again from them."""
    found = repair_page.read("claims.json")
    assert found is not None
    checked = set()
    for name, by_id in found["runs"].items():
        here = [run for run in (Run(COMMITTED_RUNS / id) for id in by_id) if run.has_items]
        if here:
            single = by_run({STAGE1: committed(found, STAGE1), name: here}, [name])
            for run in here:
                for fold in ("confirm", "all"):
                    value = 100 * single.accuracy(run.id, FOLDS[fold])
                    assert by_id[run.id][fold] == pytest.approx(value, abs=0.001), run.id
                checked.add(name)
    assert {f"{arm}-full-seed0-{regime}" for arm in ("3B", "3C") for regime in BASE} <= checked


def committed(found, name) -> list[Run]:
    return [
        run for run in (Run(COMMITTED_RUNS / id) for id in found["runs"][name]) if run.has_items
    ]


def test_every_claim_follows_from_the_accuracies_of_its_runs():
    """By seed, and with several runs of one seed as their mean: a difference of accuracies."""
    found = repair_page.read("claims.json")
    for claim in repair_claims.CLAIMS:
        one = found["claims"][claim.key]
        assert one["word"] == repair_words.judged(one)["word"]
        for fold in ("confirm", "all"):
            for seed, value in zip(one["seeds"] or [0], one[fold]["by_seed"], strict=True):
                parts = [
                    sign * mean(r[fold] for r in found["runs"][run_name(arm, mask, seed)].values())
                    for sign, arm, mask in claim.parts
                ]
                assert value == pytest.approx(sum(parts), abs=0.003), (claim.key, seed)


def test_runs_made_again_count_as_the_mean_of_both(tmp_path):
    """One of two runs of a seed is wrong everywhere: the seed is half right, not one of the two."""
    base(tmp_path)
    for wrong in ((), hashes()):
        arm(tmp_path, "3B-full", 0, bidirectional=wrong)
    arm(tmp_path, "3B-full", 1)
    found = numbers(tmp_path)
    one = found["claims"]["3b_stage1"]
    assert one["seeds"] == [0, 1]
    assert one["confirm"]["by_seed"] == [-50, 0]
    assert found["accuracy"]["3B-full"]["bidirectional"] == {"confirm": 75, "all": 75, "n_runs": 3}
    assert len(found["runs"]["3B-full-seed0-bidirectional"]) == 2
    assert found["repeats"]["n"] == 2  # both regimes
    assert found["repeats"]["largest"] == 100


def test_estimates_survive_their_file():
    one = stats.Estimate(-0.01234, -0.02, 0.0, 70)
    assert estimate(points(one)) == pytest.approx(one)


def test_base_runs_have_no_seed():
    assert run_name("base", "causal", 2) == BASE["causal"]
    assert run_name("3B-full", "causal", 2) == "3B-full-seed2-causal"
