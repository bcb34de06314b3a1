"""What the doctor finds, and the table of families in docs/MODELS.md."""

import functools
import json
from pathlib import Path

import pytest
import torch

from bidir_core.cli import main
from bidir_core.jobs import doctor
from bidir_core.models import families
from bidir_core.models.attention import choose_implementation
from bidir_core.models.families import ALL_FAMILIES, FAMILIES, tiny_loaded, tiny_model
from bidir_core.models.layout import Layout
from tests.tiny_models import logits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"


def test_the_page_has_the_table_that_the_command_prints(monkeypatch):
    once = functools.lru_cache(1)(families.tiny_loaded)  # a model for its three regimes
    monkeypatch.setattr(families, "tiny_loaded", once)
    results = list(families.probe_families())
    written = PAGE.read_text(encoding="utf-8").split("<!-- families -->")[1]
    assert written.split("<!-- /families -->")[0].strip() == families.to_markdown(results)
    assert all(result.passed and result.example for result in results)
    assert f"{len(results)} families" in PAGE.read_text(encoding="utf-8")


def test_a_family_that_drops_its_mask_fails(monkeypatch):
    from bidir_core.models import attention

    dropped = lambda self, *args, **kwargs: torch.zeros(1, 1, 1, 1)  # noqa: E731
    monkeypatch.setattr(attention.Plan, "mask", dropped)
    assert not families.probe_family("llama", "sdpa", "causal").passed


@pytest.mark.parametrize("family", sorted(set(ALL_FAMILIES) - set(FAMILIES)))
def test_sdpa_and_eager_agree_where_both_are_offered(family):
    if choose_implementation(tiny_model(family).config) == "eager":
        pytest.skip("sdpa is refused")
    layout = Layout.pack([(12, 17), (3, 9)])
    ids = torch.randint(0, 256, layout.item.shape, generator=torch.Generator().manual_seed(0))
    sdpa, eager = (
        logits(tiny_loaded(family, implementation=attn), "bidirectional:sink=1", layout, ids)
        for attn in ("sdpa", "eager")
    )
    assert torch.allclose(sdpa, eager, atol=2e-4)
    assert sdpa.std() > 0.05  # a constant would agree with itself


def test_kinds_of_model_that_no_mask_opens_are_refused():
    names = "mamba jamba qwen3_next falcon_h1 llama4_text bloom mpt gptj t5 bert"
    assert [name for name, _ in families.refusals()] == names.split()


def test_doctor_reports_this_machine(capsys):
    assert main(["doctor", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    (cpu,) = [device for device in diagnosis["devices"] if device["name"] == "cpu"]
    assert cpu["dtypes"]["float32"] > 0
    assert cpu["attention"]["sdpa float32"] == "passes"
    assert cpu["total_bytes"] >= cpu["free_bytes"] > 0
    stages = {fit["stage"] for fit in diagnosis["fits"]}
    assert stages == {"evaluate", "fine-tune, LoRA", "fine-tune, full"}
    assert diagnosis["packages"]["torch"] == torch.__version__


def test_doctor_names_a_folder_that_cannot_hold_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(doctor, "_devices", lambda: iter(()))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != tmp_path)
    assert main(["doctor"]) == 1
    assert f"problem: runs: {tmp_path / 'runs'} cannot be written" in capsys.readouterr().out
