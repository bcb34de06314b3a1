"""What a report says: answers come out either way, and nothing is overclaimed."""

import re

import pytest

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.judgement import Repair
from bidir_core.analyse.verdict import judge
from bidir_core.report import answers


def contrast(value, low, high, *, a=0.45, **more) -> Contrast:
    interval = None if low is None else stats.Estimate(value, low, high, 2000)
    basis = "none" if low is None else "paired"
    return Contrast("stage 1", "stage 2", a, a + value, value, interval, basis, **more)


HARM = contrast(-0.05, -0.06, -0.04)
NONE = contrast(0.001, -0.005, 0.007)
GAIN = contrast(0.05, 0.04, 0.06)
WIDE = contrast(-0.01, -0.03, 0.01)
UNKNOWN = contrast(-0.075, None, None)


def effect(value, low, high):
    return judge(stats.Estimate(value, low, high, 2000))


REAL, TUNING, UNSURE = effect(0.1, 0.08, 0.12), effect(0, -0.005, 0.005), effect(0.01, -0.02, 0.04)
MISSING = None


def attempt(**more) -> Repair:
    given = {"damage": HARM, "gain": GAIN, "gap": NONE, "control_gap": None}
    given |= {"normal": NONE, "control_normal": None, "interaction": REAL} | more
    return Repair(arm="3B", control="3C", regime="bidirectional", **given)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (HARM, "It hurts."),
        (NONE, "It makes no difference beyond 1 point."),
        (GAIN, "It does not hurt here."),
        (WIDE, "These runs do not decide it."),
        (None, "Not run"),
    ],
)
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
    assert says in answers.can_it_be_fixed(attempt(**changes))[0]


@pytest.mark.parametrize("interaction", [MISSING, TUNING, UNSURE, effect(-0.1, -0.12, -0.08)])
@pytest.mark.parametrize("gain", [GAIN, NONE, HARM, WIDE])
@pytest.mark.parametrize("gap", [GAIN, NONE, HARM, WIDE])
def test_nothing_is_called_repair_without_the_interaction(interaction, gain, gap):
    text = " ".join(answers.can_it_be_fixed(attempt(interaction=interaction, gain=gain, gap=gap)))
    assert "Yes" not in text
    assert "artially" not in text
    assert "is repair of the mask, not" not in text
    for match in re.finditer(r"repair", text):  # each mention takes it back
        around = text[max(0, match.start() - 60) : match.end() + 60]
        assert re.search(r"not |cannot|undecided|nothing", around), around


@pytest.mark.parametrize("cost", [GAIN, HARM, WIDE, UNKNOWN])
def test_no_cost_takes_equivalence(cost):
    lines = answers.can_it_be_fixed(attempt(control_gap=cost))
    lines += answers.normal_behaviour(attempt(normal=cost, control_normal=cost))
    assert "no cost" not in " ".join(lines)
    assert "unchanged" not in " ".join(lines)


def test_equivalence_may_be_called_no_cost():
    lines = answers.can_it_be_fixed(attempt(control_gap=NONE))
    assert "no cost beyond 1 point (equivalent)" in " ".join(lines)
    # The very same difference is undecided once the interval leaves the margin.
    wider = contrast(0.001, -0.011, 0.013)
    assert "no cost" not in " ".join(answers.can_it_be_fixed(attempt(control_gap=wider)))
