"""What pages say of how weights were trained: under which mask, and whether it leaked."""

from pathlib import Path

import pytest

from bidir_core.runs.run import Run
from tests.app import open_page, words
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


# --- masks and leaks -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["pages/compare.py", "pages/flips.py"])
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
    "page", ["pages/compare.py", "pages/flips.py", "pages/item.py", "pages/runs.py"]
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
