"""Claims: either way sayable, claimed on the confirm half; the committed files follow from the runs."""

import json
from statistics import mean

import pytest

from bidir_core.analyse import stats
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts import findings_repair, repair
from scripts.repair import FOLDS, REGIMES, Names, each_run
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
    return [doc_hash for i, doc_hash in enumerate(WRONG) if i % share]


def worse(step: int) -> list[str]:
    return sorted({*WRONG, *hashes()[::step]})


def test_no_difference_is_equivalent_and_no_gain_is_not_called_one(tmp_path):
    claims = study(tmp_path)["claims"]
    for key, claim in claims.items():
        if key != "damage":
            assert claim["word"] == "equivalent", key
            assert claim["confirm"]["value"] == 0
    assert claims["damage"]["word"] == "different"
    reached = {key: claim["reached"] for key, claim in claims.items()}
    assert reached["3b_stage1"] == reached["interaction"] == "undecided"
    assert reached["3b_control"] == reached["distil_causal"] == reached["lora_3b_causal"] == "yes"


def test_gain_and_loss_are_told_apart(tmp_path):
    """3B gains under its mask, its control loses there, distillation harms the causal mode."""
    data = study(
        tmp_path,
        **{
            "3B_full_bidirectional": better(3),
            "3C_full_bidirectional": worse(5),
            "distill_full_causal": worse(5),
            "3B_lora_bidirectional": worse(5),
        },
    )
    claims = data["claims"]
    verdicts = {key: (claim["word"], claim["reached"]) for key, claim in claims.items()}
    assert verdicts["3b_stage1"] == ("different", "yes")
    assert verdicts["3b_control"] == ("different", "no")  # better than its control: not equivalent
    assert verdicts["interaction"] == ("different", "yes")
    assert verdicts["distil_causal"] == ("different", "no")
    assert verdicts["distil_stage1"] == ("equivalent", "yes")
    assert verdicts["lora_3b_bidirectional"] == ("different", "no")


def test_what_cannot_be_told_is_undecided():
    low = stats.Estimate(-0.008, -0.02, 0.004, 700)
    claim = {"what": "x", "aim": "within", "margin": 1.0, "seeds": [0], "confirm": points(low)}
    assert repair.judged(claim) == {"word": "undecided", "reached": "undecided"}
    high = stats.Estimate(0.008, -0.004, 0.02, 700)
    claim |= {"aim": "within or better", "confirm": points(high)}
    assert repair.judged(claim) == {"word": "undecided", "reached": "yes"}


def points(effect: stats.Estimate) -> dict:
    return {
        **{end: 100 * getattr(effect, end) for end in ("value", "low", "high")},
        "n": effect.n,
        "by_seed": [100 * effect.value],
    }


def test_an_effect_on_explore_alone_does_not_reach_the_claims(tmp_path):
    explore = set(hashes("explore"))
    gained = [doc_hash for doc_hash in WRONG if doc_hash not in explore]
    claim = study(tmp_path, **{"3B_full_bidirectional": gained})["claims"]["3b_stage1"]
    assert claim["all"]["value"] > 10
    assert claim["confirm"]["value"] == 0
    assert claim["confirm"]["n"] == len(hashes("confirm"))
    assert claim["word"] == "equivalent"


def test_seeds_are_averaged_and_their_spread_widens_the_interval(tmp_path):
    base(tmp_path, WRONG)
    for seed, wrong in enumerate((WRONG, better(3), worse(5))):
        arm(tmp_path, "3B-full", seed, bidirectional=wrong)
    claims = numbers(tmp_path)["claims"]
    claim = claims["3b_stage1"]
    assert claim["seeds"] == [0, 1, 2]
    by_seed = claim["confirm"]["by_seed"]
    assert by_seed[0] == 0
    assert by_seed[1] > 5
    assert by_seed[2] < -5
    assert claim["confirm"]["value"] == pytest.approx(sum(by_seed) / 3, abs=0.002)
    assert claim["word"] == "undecided"
    # What lacks runs is said to lack them, by name, and nothing is made of it.
    assert claims["3b_control"]["missing"] == ["3C-full-seed0-causal"]


# The committed numbers


def test_the_committed_numbers_are_those_of_the_committed_runs():
    """Accuracies of the runs whose items are committed are computed again from them."""
    data = findings_repair.read("claims")
    runs = {name: committed(ids) for name, ids in data["runs"].items()}
    runs = {name: with_items for name, with_items in runs.items() if with_items}
    single = each_run(Names(runs), runs)
    for name, with_items in runs.items():
        for run in with_items:
            for fold in ("confirm", "all"):
                value = 100 * single.accuracy(run.id, FOLDS[fold])
                assert data["runs"][name][run.id][fold] == pytest.approx(value, abs=0.001), run.id
    assert {f"{arm}-full-seed0-{regime}" for arm in ("3B", "3C") for regime in REGIMES} <= set(runs)


def committed(ids) -> list[Run]:
    return [run for run in (Run(COMMITTED_RUNS / id) for id in ids) if run.has_items]


def test_every_claim_follows_from_the_accuracies_of_its_runs():
    """By seed, and with several runs of one seed as their mean: a difference of accuracies."""
    data = findings_repair.read("claims")
    names = Names({})
    known = {claim.key: claim for claim in repair.CLAIMS}
    for key, entry in data["claims"].items():
        claim = known[key]
        assert entry["word"] == repair.judged(entry)["word"]
        for fold in ("confirm", "all"):
            for seed, value in zip(entry["seeds"] or [0], entry[fold]["by_seed"], strict=True):
                parts = [
                    sign * mean(run[fold] for run in data["runs"][names.cell(cell, seed)].values())
                    for sign, cell in claim.cells
                ]
                assert value == pytest.approx(sum(parts), abs=0.003), (key, seed)


def test_runs_made_again_count_as_the_mean_of_both(tmp_path):
    """One of two runs of a seed is wrong everywhere: the seed is half right, not one of the two."""
    base(tmp_path)
    for wrong in ((), hashes()):
        arm(tmp_path, "3B-full", 0, bidirectional=wrong)
    arm(tmp_path, "3B-full", 1)
    data = numbers(tmp_path)
    claim = data["claims"]["3b_stage1"]
    assert claim["seeds"] == [0, 1]
    assert claim["confirm"]["by_seed"] == [-50, 0]
    assert data["accuracy"]["3B-full"]["bidirectional"] == {"confirm": 75, "all": 75, "n_runs": 3}
    assert len(data["runs"]["3B-full-seed0-bidirectional"]) == 2
    assert data["repeats"]["n"] == 2  # both regimes
    assert data["repeats"]["largest"] == 100


def test_the_committed_choice_follows_from_what_was_tried():
    """Of those within a point of stage 1 on explore, the one with the fewest tokens."""
    data = findings_repair.read("recipes")
    near = [
        entry
        for entry in data["recipes"]
        if entry["explore"] and entry["explore"]["bidirectional"]["value"] >= -1
    ]
    assert data["chosen"] == min(near, key=lambda entry: entry["tokens"])["name"]


def test_the_second_models_claims_are_those_of_its_committed_runs():
    names = Names.of("qwen-1.5b", [COMMITTED_RUNS])
    assert json.loads(json.dumps(repair.claims(names))) == findings_repair.read("claims-qwen-1.5b")
