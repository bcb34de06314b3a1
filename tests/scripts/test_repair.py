"""Claims and recipes: either way sayable, chosen on the explore half, claimed on the confirm half."""

from __future__ import annotations

import json
import re
from statistics import mean

import pytest

from bidir_core.analyse import stats
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts import findings_repair, repair
from scripts.repair import choose, lost
from scripts.study_runs import FOLDS, REGIMES, Names, each_run
from tests.repair_study import arm, base, hashes

WRONG = hashes()[::3]  # what every model gets wrong, so that there is room on both sides
ARMS = [(o, m) for o in ("3B", "3C", "distill") for m in ("full", "lora")]


def numbers(root) -> dict:
    return repair.claims(Names.of("", [root]))


def study(root, *, seeds=(0,), **wrong):
    """All arms as good as stage 1, but for what ``wrong`` says of `objective_method_regime`."""
    base(root, WRONG)
    for seed in seeds:
        for objective, method in ARMS:
            regimes = {
                regime: wrong.get(f"{objective}_{method}_{regime}", WRONG) for regime in REGIMES
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
    assert "different, higher. Aim: 0 or above: **reached**." in findings_repair.sentence(
        claims["3b_stage1"]
    )
    assert "different, lower. Aim: within 1 point: **not reached**" in findings_repair.sentence(
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
        findings_repair.summary_lines(claims, {"chosen": tried["name"], "recipes": [tried]})
    )
    for sentence in says:
        assert sentence in text
    assert f"Shown in {int(value == 0)} of 1 comparisons" in text
    assert ("does not hold" if value == -3.0 else "that holds") in text


def test_what_cannot_be_told_is_undecided():
    low = stats.Estimate(-0.008, -0.02, 0.004, 700)
    claim = {"what": "x", "aim": "within", "margin": 1.0, "seeds": [0], "confirm": points(low)}
    assert repair.judged(claim) == {"word": "undecided", "reached": "undecided"}
    assert findings_repair.sentence(claim) == (
        "X: -0.8 points (95 % CI -2.0 to +0.4; n = 700; 1 seed): undecided. "
        "Aim: within 1 point: **undecided**."
    )
    high = stats.Estimate(0.008, -0.004, 0.02, 700)
    claim |= {"aim": "within or better", "confirm": points(high)}
    assert repair.judged(claim) == {"word": "undecided", "reached": "yes"}


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
    assert re.search(r"3 seeds, -\d+\.\d to \+\d+\.\d\)", findings_repair.sentence(one))
    # What lacks runs is said to lack them, by name, and nothing is made of it.
    assert claims["3b_control"]["missing"] == ["3C-full-seed0-causal"]


def test_numbers_of_more_seeds_are_not_overwritten_by_fewer(tmp_path, monkeypatch, capsys):
    old = {"claims": {"a": {"seeds": [0, 1, 2]}, "b": {"seeds": []}}}
    new = {"claims": {"a": {"seeds": [0]}, "b": {"seeds": [0]}}}
    assert (lost(old, new), lost({}, new)) == (["a"], [])
    twice = {"runs": {"x": {"first": {}, "again": {}}, "y": {"first": {}}}}
    once = {"runs": {"x": {"again": {}}, "y": {"first": {}}}}
    assert (lost(twice, once), lost(once, twice)) == (["x"], [])
    recipe = {"name": "r", "seeds": [0, 1]}
    assert lost({"recipes": [recipe]}, {"recipes": [recipe | {"seeds": [1]}]}) == ["r"]
    base(tmp_path, WRONG)
    names = Names.of("", [tmp_path])
    monkeypatch.setattr(repair, "Names", type("Here", (), {"of": lambda study: names}))
    out = tmp_path / "claims.json"
    out.write_text(json.dumps({"claims": {"3b_stage1": {"seeds": [0]}}}))
    before = out.read_text()
    assert repair.main(["--docs", str(tmp_path)]) == 2
    assert "more seeds or runs than are here, of 3b_stage1;" in capsys.readouterr().err
    assert out.read_text() == before
    assert repair.main(["--docs", str(tmp_path), "--fewer"]) == 0
    assert json.loads(out.read_text())["claims"]["damage"]["word"] == "different"


# Recipes


def recipe(name: str, value: float, **more) -> dict:
    one = {"value": value, "low": value - 0.5, "high": value + 0.5, "n": 7000, "by_seed": [value]}
    half = {"seeds": [0], "bidirectional": one, "causal": one}
    settings = {"objective": "3B", "method": "full", "steps": 50, "lr": 3e-4, "device": "a GPU"}
    costs = {"tokens": 470_000, "passes_a_token": 1, "seeds": [0], "seconds_alone": {}}
    found = {"explore": half, "confirm": half, "confirm_fresh_seeds": None}
    return {"name": name, **settings, **costs, **found, **more}


def test_the_recipe_is_said_with_its_cost_or_that_there_is_none():
    one = recipe("recipe-3B-full-50-0.0003", -0.2)
    found = {"rule": "r", "chosen": one["name"], "recipes": [one]}
    text = findings_repair.recipe_text(found)
    assert "50 steps, which is below 100; 470,000 useful tokens; seconds not measured alone" in text
    assert "Aim: within 1 point, or better: **reached**" in text
    slow = {**one, "steps": 100, "seconds_alone": {"1": 9.04, "2": 9.31}}
    text = findings_repair.recipe_text({**found, "recipes": [slow]})
    assert "which is not below 100" in text
    assert "9.0 to 9.3 s of training, alone on one a GPU" in text
    far = recipe(one["name"], -3.0)
    text = findings_repair.recipe_text({**found, "chosen": None, "recipes": [far]})
    assert "None of 1 recipes comes that close" in text
    assert "-3.0 (-3.5 to -2.5)" in text


def entry(name: str, tokens: int, points: float, passes: int = 1) -> dict:
    return {
        "name": name,
        "tokens": tokens,
        "passes_a_token": passes,
        "explore": {"bidirectional": {"value": points}},
    }


def test_the_cheapest_within_a_point_is_chosen_and_not_a_cheaper_one_outside_it():
    rows = [entry("a", 25, -1.1), entry("b", 50, -1.0), entry("c", 100, 2.0)]
    assert choose(rows) == "b"
    assert choose(rows[:1]) is None
    assert choose([]) is None


def test_the_choice_looks_at_explore_alone(tmp_path):
    """One recipe is bad on explore only, another on confirm only: each half tells its own."""
    base(tmp_path)
    first, second = "recipe-3B-full-25-0.0001", "recipe-3B-full-50-0.0001"
    arm(tmp_path, first, steps=25, bidirectional=hashes("explore")[::5])
    arm(tmp_path, second, steps=50, bidirectional=hashes("confirm")[::5])
    found = repair.recipes(Names.of("", [tmp_path]))
    bad_explore, bad_confirm = found["recipes"]
    assert [one["name"] for one in found["recipes"]] == [first, second]
    assert bad_explore["explore"]["bidirectional"]["value"] < -10
    assert bad_explore["confirm"]["bidirectional"]["value"] == 0
    assert bad_confirm["explore"]["bidirectional"]["value"] == 0
    assert bad_confirm["confirm"]["bidirectional"]["value"] < -10
    assert bad_confirm["confirm"]["causal"]["value"] == 0
    assert found["chosen"] == second
    assert bad_confirm["confirm_fresh_seeds"] is None
    assert bad_confirm["seconds_alone"] == {}


# The committed numbers


def test_the_committed_numbers_are_those_of_the_committed_runs():
    """Accuracies of the runs whose items are committed are computed again from them."""
    found = findings_repair.read("claims")
    runs = {name: committed(ids) for name, ids in found["runs"].items()}
    runs = {name: here for name, here in runs.items() if here}
    single = each_run(Names(runs), runs)
    for name, here in runs.items():
        for run in here:
            for fold in ("confirm", "all"):
                value = 100 * single.accuracy(run.id, FOLDS[fold])
                assert found["runs"][name][run.id][fold] == pytest.approx(value, abs=0.001), run.id
    assert {f"{arm}-full-seed0-{regime}" for arm in ("3B", "3C") for regime in REGIMES} <= set(runs)


def committed(ids) -> list[Run]:
    return [run for run in (Run(COMMITTED_RUNS / id) for id in ids) if run.has_items]


def test_every_claim_follows_from_the_accuracies_of_its_runs():
    """By seed, and with several runs of one seed as their mean: a difference of accuracies."""
    found = findings_repair.read("claims")
    names = Names({})
    known = {claim.key: claim for claim in repair.CLAIMS}
    for key, one in found["claims"].items():
        claim = known[key]
        assert one["word"] == repair.judged(one)["word"]
        for fold in ("confirm", "all"):
            for seed, value in zip(one["seeds"] or [0], one[fold]["by_seed"], strict=True):
                parts = [
                    sign * mean(run[fold] for run in found["runs"][names.cell(cell, seed)].values())
                    for sign, cell in claim.cells
                ]
                assert value == pytest.approx(sum(parts), abs=0.003), (key, seed)


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


def test_the_committed_choice_follows_from_what_was_tried():
    found = findings_repair.read("recipes")
    assert choose(found["recipes"]) == found["chosen"]
    assert found["rule"] == repair.RULE
