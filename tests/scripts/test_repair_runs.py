"""The committed fine-tunes' script: what it trains, and on how much it evaluates that."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scripts import repair_runs
from scripts.repair_pairs import finished


@pytest.fixture
def tiny(tiny_folder, own_items, runs_dir, tmp_path, monkeypatch):
    """The script on a tiny model, with four items as its limit; calls it with some options."""
    data = tmp_path / "samples.jsonl"
    lines = [{"prompt": f"say {i} then", "response": f" {i} it is"} for i in range(20)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    finetune, settings = repair_runs.finetune, repair_runs.settings
    monkeypatch.setattr(repair_runs, "EMBEDDED_MODEL", str(tiny_folder))
    monkeypatch.setattr(
        repair_runs, "settings", lambda *a, **k: replace(settings(*a, **k), tasks=(str(own_items),))
    )
    monkeypatch.setattr(
        repair_runs,
        "finetune",
        lambda *a: replace(
            finetune(*a), data=str(data), decontaminate=False, batch_samples=4, eval_every=0
        ),
    )
    monkeypatch.setattr(repair_runs, "BASE", [])
    monkeypatch.setattr(repair_runs, "LIMIT", 4)

    def run(*words: str):
        monkeypatch.setattr("sys.argv", ["repair_runs", "--device", "cpu", "--steps", "1", *words])
        repair_runs.main()
        return finished([runs_dir])

    return run


def test_first_seeds_are_evaluated_twice_and_later_ones_on_whole_sets_only(tiny):
    runs = tiny("--seeds", "2,3", "--objectives", "3C", "--share", "0/2")
    first, later = "3C-full-seed2", "3C-full-seed3"
    regimes = repair_runs.REGIMES
    assert set(runs) == {
        *(f"{name}{end}" for name in (first, later) for end in ("", *(f"-{r}" for r in regimes))),
        *(f"{first}-limit4-{regime}" for regime in regimes),
    }
    for regime in regimes:
        whole, limited = runs[f"{first}-{regime}"], runs[f"{first}-limit4-{regime}"]
        assert (whole.settings["limit"], whole.settings["dtype"]) == (None, "bfloat16")
        assert (limited.settings["limit"], limited.settings["dtype"]) == (4, "float32")
        assert len(limited.items_table(("doc_id",))) == 4 < len(whole.items_table(("doc_id",)))
        assert limited.settings["checkpoint"] == whole.settings["checkpoint"]
        assert limited.settings["regime"] == whole.settings["regime"] == regime
    again = tiny("--seeds", "2,3", "--objectives", "3C", "--share", "0/2")
    assert {n: run.id for n, run in again.items()} == {n: run.id for n, run in runs.items()}
