"""The Lab page in its states, without a browser; curves and their places."""

import json
from types import SimpleNamespace
from typing import cast

import pytest

from bidir_core.analyse.compare import macro_judgement
from bidir_core.explain.sweep_points import Condition, Point
from bidir_core.explain.sweep_summary import summarise_sweep
from bidir_core.report.plots_lab import curve_lines, layer_ranges, symlog
from bidir_core.runs.run import Run
from bidir_ui.lab import lab_data
from bidir_ui.reading import data
from bidir_ui.reading.data import RunInfo
from tests.app import open_page, words
from tests.attend_factory import make_summary
from tests.factory import unsealed
from tests.lab_factory import LAMBDAS, SINKS, USUAL, accuracy, make_sweep

PAGE = "pages/lab.py"
FEW = (
    "bidirectional:sink=1",
    "bidirectional:lambda=0.1",
    "bidirectional:layers=0-4",
    "bidirectional:layers=20-24",
)


def usual() -> dict:
    return USUAL._asdict()


def points(*regimes: str) -> list[dict]:
    swept = [Point(r, USUAL, part="reference") for r in ("causal", "bidirectional")]
    swept += [Point(regime, USUAL) for regime in regimes]
    return [point.to_json(USUAL) for point in swept]


def test_each_dial_makes_a_curve_with_the_references_on_it() -> None:
    curves = {curve.dial: curve for curve in curve_lines(points(*SINKS, *LAMBDAS), usual())}
    assert set(curves) == {"sink", "lambda"}
    slugs = [slug.removeprefix("bidirectional") for slug, _ in curves["sink"].places]
    assert slugs == ["", "_sink-1", "_sink-2", "_sink-4"]
    labels = " ".join(label for _, label in curves["lambda"].ticks)
    assert labels == "0 0.001 0.01 0.03 0.1 0.3 1"
    assert curves["lambda"].places[0][0] == "causal"
    assert curves["lambda"].places[-1] == ("bidirectional", 0.0)


def test_open_layer_ranges_make_a_curve_that_begins_with_all_layers() -> None:
    opened = [f"bidirectional:layers={a}-" for a in (1, 2, 8)]
    swept = points(*opened, "bidirectional:layers=0-0", "bidirectional:sink=1")
    (curve,) = [c for c in curve_lines(swept, usual()) if c.dial == "layers"]
    assert [label for _, label in curve.ticks] == ["0", "1", "2", "8"]
    assert curve.places[0][0] == "bidirectional"
    assert layer_ranges(swept, usual()) == {"": [("bidirectional_layers-0-0", 0, 1)]}


def test_curves_of_a_product_share_their_axis() -> None:
    products = [f"bidirectional:sink={k},lambda={x}" for k in (1, 2) for x in ("0.01", "0.1")]
    curves = [c for c in curve_lines(points(*LAMBDAS, *products), usual()) if c.dial == "lambda"]
    assert [curve.name for curve in curves] == ["", "sink=1", "sink=2"]
    places = [dict(zip((label for _, label in c.ticks), (x for x, _ in c.ticks))) for c in curves]
    for place in places[1:]:
        assert all(place[label] == places[0][label] for label in place)


def test_patches_and_other_prompts_make_no_curve() -> None:
    others = [
        Point("bidirectional:sink=1", Condition(bos="add")),
        Point("bidirectional", USUAL, "keys=0"),
    ]
    swept = points() + [point.to_json(USUAL) for point in others]
    assert curve_lines(swept, usual()) == []
    assert layer_ranges(points(*FEW), usual()) == {
        "": [("bidirectional_layers-0-4", 0, 5), ("bidirectional_layers-20-24", 20, 5)]
    }
    assert symlog([0, 0.001, 1]) == [-4, -3, 0]


def test_ready(root) -> None:
    sweep = make_sweep(root, FEW, n_items=200)
    app = open_page(PAGE)
    text = words(app)
    assert "Chosen as the best of 4 on the explore half" in text
    assert "The damage: bidirectional prefill moves macro accuracy" in text
    assert "Dose and response" in text
    assert "Which layers" in text
    assert "Not run yet" in text  # the controls
    assert "bidirectional:layers=20-24" in set(app.dataframe[-1].value["point"])
    shown = open_page(PAGE, sweep=sweep.id, point="bidirectional_sink-1", show="removed")
    assert "in words sink=1 " in " ".join(words(shown).split())


def test_a_point_of_one_task_is_judged_by_its_exact_test_too(root) -> None:
    sweep = make_sweep(root, FEW, tasks=["piqa"], n_items=60)
    lab = lab_data.Lab(data.by_id(data.list_infos(), sweep.id), sweep.metrics, "acc")
    sink = "bidirectional_sink-1"
    runs = [Run(sweep.path / "points" / slug) for slug in ("causal", sink)]
    delta = lab.numbers(sink)["delta"]
    assert delta["p_value"] == macro_judgement(*runs).p_values[0]
    delta |= {"value": -0.01, "low": -0.023, "high": -0.002, "p_value": 0.0625}
    assert lab_data.judged(lab, sink).reason == "exact test"
    del delta["p_value"]  # of several tasks, and in earlier versions
    assert lab_data.judged(lab, sink).verdict == "worse"


def test_every_point_opens_in_compare_and_flips(root) -> None:
    sweep = make_sweep(root, FEW, n_items=60)
    a, b = f"{sweep.id}/points/causal", f"{sweep.id}/points/bidirectional_sink-1"
    for page in ("pages/compare.py", "pages/flips.py"):
        app = open_page(page, a=a, b=b)
        assert "not found" not in words(app)
        assert "could not be read" not in words(app)
    item = open_page("pages/item.py", a=a, b=b, item="piqa/3")
    assert "Question:" in words(item)


def test_a_sweep_kept_for_its_numbers_says_so(root) -> None:
    sweep = make_sweep(root, FEW, n_items=60)
    (sweep.path / "texts.parquet").unlink()
    for items in sweep.path.glob("points/*/items.parquet"):
        items.unlink()
    app = open_page(PAGE)
    text = words(app)
    assert "kept for its numbers" in text
    assert "Dose and response" in text
    assert "Flips against causal" not in text
    for page in ("pages/compare.py", "pages/flips.py"):
        a, b = (f"{sweep.id}/points/{slug}" for slug in ("causal", "bidirectional"))
        app = open_page(page, a=a, b=b)
        assert "has no items" in words(app)


def test_of_one_sittings_sweeps_the_largest_is_shown_first() -> None:
    def info(ident: str, created: str, n_points: int) -> RunInfo:
        return cast(
            RunInfo,
            SimpleNamespace(
                id=ident, created=created, is_done=True, n_items=100, n_total=100 * n_points
            ),
        )

    late = info("late", "2026-11-23 08:45", 4)
    large = info("large", "2026-11-23 08:41", 41)
    older = info("older", "2026-11-22 08:41", 60)
    assert lab_data.first_shown([late, large, older]) is large
    newest = info("mine", "2026-12-01 10:00", 3)
    assert lab_data.first_shown([newest, late, large, older]) is newest
    assert lab_data.first_shown([info("odd", "–", 1), large]).id == "odd"


def test_it_opens_on_the_sweep_that_the_overview_speaks_of(root) -> None:
    told = make_sweep(root, SINKS[:2], n_items=60, name="told")
    newest = make_sweep(root, LAMBDAS, n_items=60, name="newest")
    assert open_page(PAGE).selectbox(key="url:sweep").value == told.id
    assert open_page(PAGE, sweep=newest.id).selectbox(key="url:sweep").value == newest.id


def test_a_partial_sweep_shows_what_is_there(root) -> None:
    sweep = make_sweep(root, (*SINKS, *FEW[1:]), n_items=60, state="cancelled")
    app = open_page(PAGE)
    text = words(app)
    assert "Partial: cancelled" in text
    assert "4 of 8 points are finished" in text
    assert f"lab --resume {sweep.id}" in text
    assert "bidirectional:sink=1" in text


def test_unknown_and_broken_ones_are_said_to_be(root) -> None:
    sweep = make_sweep(root, FEW[:1], n_items=60)
    assert "Point not found" in words(open_page(PAGE, sweep=sweep.id, point="none"))
    (sweep.path / "metrics.json").write_text('{"points": [{"slug": 3}]}')
    app = open_page(PAGE, sweep=sweep.id)
    (sweep.path / "metrics.json").write_text('{"points": ')
    app = open_page(PAGE, sweep=sweep.id)
    assert "cannot be read" in words(app)


CONTROLS = [
    *(
        Point(r, USUAL, part="control")
        for r in (
            "bidirectional:sink=1",
            "bidirectional:rows=0-0",
            "bidirectional:skip=8",
            "bidirectional:self=8",
            "bidirectional:tail=1",
        )
    ),
    *(Point("bidirectional", USUAL, p, "control") for p in ("keys=0", "values=0")),
]


def test_controls_are_judged_by_their_intervals(root) -> None:
    """With pretended answers in which only the first token's keys matter."""
    sweep = make_sweep(
        root, (), extra=CONTROLS, n_items=600, world=lambda point: accuracy(point, harm=0.3)
    )
    attention = {
        name: {"future": [value + 0.001 * i for i in range(10)]}
        for name, value in (("causal", 0.0), ("bidirectional", 0.4), ("bidirectional:sink=1", 0.2))
    }
    (sweep.path / "attention.json").write_text(json.dumps({"schema": 1, "regimes": attention}))
    by_name = {c["name"]: c for c in summarise_sweep(Run(sweep.path))["controls"]}
    assert by_name["necessity"]["outcome"] == "supports"
    assert by_name["sufficiency"]["outcome"] == "supports"
    assert by_name["placebo"]["outcome"] == "supports"
    assert by_name["relocated"]["outcome"] == "supports"
    assert by_name["tail"]["outcome"] == "supports"
    assert by_name["keys-values"]["finding"].endswith(
        "It is how the others find the token that matters."
    )
    assert by_name["triviality"]["outcome"] == "supports"
    assert "20.4 %" in by_name["triviality"]["finding"]
    assert "95 % CI" in by_name["placebo"]["finding"]
    app = open_page(PAGE)
    assert "Sufficiency (rows=0-0)" in words(app)
    assert "● supports" in words(app)


def test_a_refuted_story_is_called_refuted(root) -> None:
    """A world in which any one causal token rescues, and nothing is left for looking ahead."""

    def world(point: Point) -> float:
        return 0.2 if point.regime == "bidirectional" and not point.patch else 0.5

    sweep = make_sweep(root, (), extra=CONTROLS, n_items=600, world=world)
    attention = {
        name: {"future": [0.001] * 9 + [0.002]}
        for name in ("bidirectional", "bidirectional:sink=1")
    }
    (sweep.path / "attention.json").write_text(json.dumps({"schema": 1, "regimes": attention}))
    outcomes = {c["name"]: c["outcome"] for c in summarise_sweep(Run(sweep.path))["controls"]}
    for name in ("sufficiency", "placebo", "relocated", "tail", "triviality"):
        assert outcomes[name] == "refutes", name


def test_the_controls_token_is_the_one_fixed_beforehand(root) -> None:
    """A sweep over the same dials must not lend the controls a point of its own."""

    def world(point: Point) -> float:
        rescued = point.regime in ("bidirectional:skip=3", "bidirectional:self=3", "causal")
        return 0.5 if rescued else 0.2

    swept = ("bidirectional:skip=3", "bidirectional:self=3")
    for facts in ({"middle_token": 8}, {}):
        sweep = make_sweep(root, swept, extra=CONTROLS[2:4], n_items=300, world=world, facts=facts)
        by_name = {c["name"]: c for c in summarise_sweep(Run(sweep.path))["controls"]}
        assert by_name["placebo"]["finding"].startswith("Keeping token 8 causal")
        assert by_name["placebo"]["outcome"] == by_name["relocated"]["outcome"] == "supports"
    # Where the sweep had the very point, it stands for both.
    sweep = make_sweep(
        root,
        ("bidirectional:skip=2", "bidirectional:skip=8"),
        extra=CONTROLS[4:5],
        n_items=100,
        facts={"middle_token": 8},
    )
    by_name = {c["name"]: c for c in summarise_sweep(Run(sweep.path))["controls"]}
    assert by_name["placebo"]["finding"].startswith("Keeping token 8 causal")


REGIMES = ("causal", "bidirectional", "bidirectional:sink=1")
EMBEDDED = "smollm2-135m-instruct"


def triviality(text: str) -> str:
    """What stands between that control's name and the next row."""
    return " ".join(text.partition("Triviality (attention ahead)")[2].split())


def test_an_attention_summary_answers_triviality(root) -> None:
    sweep = make_sweep(root, FEW[:1], n_items=60)
    text = words(open_page(PAGE, sweep=sweep.id))
    assert "Not run yet" in text
    assert f"attend --model {EMBEDDED} --task " in text
    assert "--limit 20 --regime causal --regime bidirectional --regime bidirectional:sink=1" in text
    assert "Triviality" not in text
    # Summaries of another model, of other prompts and of fewer items do not answer.
    common = {"names": REGIMES, "tasks": ("piqa", "arc_easy")}
    make_summary(root, **common, n_items=90, future=(0, 0.4, 0.001))
    make_summary(
        root,
        **common,
        n_items=80,
        future=(0, 0.4, 0.001),
        model=EMBEDDED,
        config={"chat_template": True},
    )
    make_summary(root, **common, n_items=3, future=(0, 0.4, 0.001), model=EMBEDDED)
    kept = make_summary(root, **common, n_items=50, future=(0, 0.4, 0.25), model=EMBEDDED)
    app = open_page(PAGE, sweep=sweep.id)
    assert "Not run yet" in words(app)  # the other controls
    assert "bidir_core attend" not in words(app)
    row = triviality(words(app))
    assert "● supports" in row
    assert "25.0 % (95 % CI 25.0 to 25.0 %)" in row.replace("\xa0", " ")
    assert "100 items" in row.replace("\xa0", " ")
    assert f"Seen in {kept.id}" in row


def test_a_sweep_without_its_own_measurement_says_how_to_get_one(root) -> None:
    sweep = make_sweep(root, (), extra=CONTROLS[:1], n_items=60)
    text = words(open_page(PAGE, sweep=sweep.id))
    assert "Not run yet" not in text
    assert "– not run" in triviality(text)
    assert f"python -m bidir_core attend --model {EMBEDDED}" in triviality(text)
    make_summary(root, REGIMES, n_items=50, future=(0, 0.4, 0.001), model=EMBEDDED)
    assert "✕ refutes" in triviality(words(open_page(PAGE, sweep=sweep.id)))


def test_two_measurements_of_attention_stand_beside_each_other(root) -> None:
    sweep = unsealed(make_sweep(root, (), extra=CONTROLS[:1], n_items=60))
    attention = {name: {"future": [0.2, 0.21, 0.22]} for name in REGIMES}
    (sweep.path / "attention.json").write_text(json.dumps({"schema": 1, "regimes": attention}))
    (sweep.path / "metrics.json").write_text(
        json.dumps(sweep.metrics | {"controls": summarise_sweep(Run(sweep.path))["controls"]})
    )
    make_summary(root, REGIMES, n_items=50, future=(0, 0.4, 0.25), model=EMBEDDED)
    row = triviality(words(open_page(PAGE, sweep=sweep.id)))
    assert "● supports" in row
    assert "21.0 %" in row.replace("\xa0", " ")
    assert "On more items: under sink=1 prompt tokens send 25.0 %" in row.replace("\xa0", " ")
    make_summary(root, REGIMES, n_items=60, future=(0, 0.4, 0.001), model=EMBEDDED)
    assert "◐ partly" in triviality(words(open_page(PAGE, sweep=sweep.id)))


def test_a_sweep_without_controls_names_the_one_that_has_them(root) -> None:
    sweep = make_sweep(root, FEW[:1], n_items=60)
    controls = make_sweep(root, (), extra=CONTROLS[:1], n_items=60, name="controls")
    text = words(open_page(PAGE, sweep=sweep.id))
    assert "Not run yet" not in text
    assert f"They were run for this model in {controls.id}" in " ".join(text.split())


@pytest.mark.parametrize("fold", ["explore", "confirm"])
def test_one_half_alone_is_exploratory(root, fold) -> None:
    sweep = make_sweep(root, FEW, n_items=120, config={"fold": fold})
    best = sweep.metrics["best"]["acc"]
    assert best["exploratory"] is True
    assert "Exploratory: the best of 4 on these same items." in best["sentence"]
