"""The search for a cheap recipe: what it trains, how it chooses, and what it keeps apart."""

from __future__ import annotations

import json

import pytest

from bidir_core.runs.find import list_runs
from scripts import recipe_search
from scripts.recipes import Recipe, choose, grid, summary
from scripts.repair_pairs import finished, repetitions
from tests.repair_study import arm, base, hashes


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


def test_of_equally_many_tokens_fewer_passes_count_then_the_higher_difference():
    rows = [entry("a", 50, 3.0, passes=3), entry("b", 50, -0.5), entry("c", 50, 0.5)]
    assert choose(rows) == "c"


def test_what_is_not_scored_on_explore_is_never_chosen():
    assert choose([entry("a", 25, 0.0) | {"explore": None}]) is None


def test_the_grid_has_no_recipe_twice_and_warms_up_for_a_part_of_it_only():
    recipes = grid()
    assert len({one.name for one in recipes}) == len(recipes) == 20
    assert all(0 < one.warmup_steps <= one.steps / 5 for one in recipes)
    assert Recipe("3B", "full", 25, 1e-4).run_name(0) == "recipe-3B-full-25-0.0001-seed0"


def test_the_choice_looks_at_explore_alone(tmp_path):
    """One recipe is bad on explore only, another on confirm only: each half tells its own."""
    base(tmp_path)
    first, second = "recipe-3B-full-25-0.001", "recipe-3B-full-50-0.001"
    arm(tmp_path, first, steps=25, bidirectional=hashes("explore")[::5])
    arm(tmp_path, second, steps=50, bidirectional=hashes("confirm")[::5])
    found = summary(finished([tmp_path]), repetitions([tmp_path]))
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


def test_later_seeds_enter_what_is_confirmed_and_not_the_choice(tmp_path):
    base(tmp_path)
    name = "recipe-3B-full-25-0.001"
    for seed in range(3):
        arm(tmp_path, name, seed, steps=25, bidirectional=hashes()[::2] if seed else ())
    found = summary(finished([tmp_path]), repetitions([tmp_path]))
    (one,) = found["recipes"]
    assert found["chosen"] == name
    assert one["explore"]["seeds"] == [0]
    assert one["explore"]["bidirectional"]["value"] == 0
    assert one["confirm"]["seeds"] == [0, 1, 2]
    first, *later = one["confirm"]["bidirectional"]["by_seed"]
    assert first == 0
    assert max(later) < -40
    fresh = one["confirm_fresh_seeds"]
    assert fresh["seeds"] == [1, 2]
    assert fresh["bidirectional"]["by_seed"] == later


def test_a_known_recipe_keeps_its_choice_and_is_confirmed_by_the_new_seeds_alone(tmp_path):
    """Its seed 0 is elsewhere: what it was chosen by stays, what older seeds confirmed goes."""
    first, then = tmp_path / "first", tmp_path / "then"
    name, other = "recipe-3B-full-25-0.001", "recipe-3B-full-50-0.001"
    for root in (first, then):
        base(root)
    for seed in range(2):
        arm(first, name, seed, steps=25)
    arm(first, other, steps=50)
    known = summary(finished([first]), repetitions([first]))["recipes"]
    for seed in (1, 2, 3):
        arm(then, name, seed, steps=25, bidirectional=hashes()[::2])
    found = summary(finished([then]), repetitions([then]), known)
    assert found["chosen"] == name
    one, untouched = found["recipes"]
    assert untouched == known[1]
    assert one["explore"] == known[0]["explore"]
    assert one["confirm"] is None
    assert one["seeds"] == [0, 1, 2, 3]
    for fold in ("explore", "confirm"):
        fresh = one[f"{fold}_fresh_seeds"]
        assert fresh["seeds"] == [1, 2, 3]
        assert max(fresh["bidirectional"]["by_seed"]) < -40
        assert fresh["causal"]["by_seed"] == [0, 0, 0]


def test_what_more_seeds_confirmed_is_not_overwritten_by_fewer(tmp_path, monkeypatch, capsys):
    base(tmp_path)
    arm(tmp_path, "recipe-3B-full-25-0.001", 1, steps=25)
    found = summary(finished([tmp_path]), repetitions([tmp_path]))
    (one,) = found["recipes"]
    monkeypatch.setattr(recipe_search, "finished", lambda: finished([tmp_path]))
    monkeypatch.setattr(recipe_search, "repetitions", lambda: repetitions([tmp_path]))
    out = tmp_path / "recipes.json"
    for seeds, code in ([0, 1, 2], 2), ([0, 1], 0):
        out.write_text(json.dumps(found | {"recipes": [one | {"seeds": seeds}]}))
        before = out.read_text()
        assert recipe_search.main(["--choose", "--out", str(out)]) == code
        assert (out.read_text() == before) == (code == 2)
    assert "more seeds of recipe-3B-full-25-0.001" in capsys.readouterr().err


def test_a_recipe_to_confirm_that_was_not_tried_is_named(tmp_path, capsys):
    base(tmp_path)
    arm(tmp_path, "recipe-3B-full-25-0.001", steps=25)
    out = tmp_path / "recipes.json"
    out.write_text(json.dumps(summary(finished([tmp_path]), repetitions([tmp_path]))))
    assert recipe_search.main(["--confirm", "--recipes", "nonsense", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "--recipes nonsense" in said
    assert "recipe-3B-full-25-0.001" in said


@pytest.mark.parametrize(
    "words", [["--share", "4/4"], ["--share", "x"], ["--alone", "--share", "0/2"]]
)
def test_bad_shares_are_refused(words, capsys):
    assert recipe_search.main(words) == 2
    assert capsys.readouterr().err.startswith(words[0])


def test_confirming_before_choosing_says_so(tmp_path, capsys):
    assert recipe_search.main(["--confirm", "--out", str(tmp_path / "none.json")]) == 2
    assert "run --choose first" in capsys.readouterr().err


def test_search_choose_confirm_on_a_tiny_model(
    tiny_folder, own_items, runs_dir, tmp_path, monkeypatch
):
    data = tmp_path / "samples.jsonl"
    lines = [{"prompt": f"say {i} then", "response": f" {i} it is"} for i in range(30)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "recipes.json"
    words = [
        "--device", "cpu", "--model", str(tiny_folder), "--data", str(data), "--limit", "40",
        "--tasks", str(own_items), "--no-decontaminate", "--batch-samples", "4",
        "--max-tokens", "64", "--objectives", "3B", "--steps", "2,3", "--out", str(out),
    ]  # fmt: skip
    wanted = [one.run_name(0) for one in grid(("3B",), (2, 3))]
    # A random model may lose more than a point by training; that is not what is asked here.
    monkeypatch.setattr("scripts.recipes.WITHIN", 100.0)
    assert recipe_search.main([*words, "--base-only"]) == 0
    assert recipe_search.main([*words, "--share", "0/3"]) == 0
    assert set(finished([runs_dir])) & set(wanted) == set(wanted[0::3])
    before = len(list_runs([runs_dir]))
    assert recipe_search.main([*words, "--share", "0/3"]) == 0
    assert len(list_runs([runs_dir])) == before, "nothing is done twice"
    assert recipe_search.main([*words, "--choose"]) == 0
    first = json.loads(out.read_text())
    assert len(first["recipes"]) == 2
    assert first["chosen"]
    assert recipe_search.main([*words, "--confirm", "--alone", "--seeds", "1,2"]) == 0
    found = json.loads(out.read_text())
    assert found["chosen"] == first["chosen"]
    (one,) = [r for r in found["recipes"] if r["name"] == found["chosen"]]
    assert one["seeds"] == [0, 1, 2]
    assert set(one["seconds_alone"]) == {"1", "2"}
    assert one["warmup_steps"] == 1
