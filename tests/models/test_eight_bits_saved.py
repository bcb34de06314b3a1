"""What was read from 8 bits is saved as the numbers that it means; 8 bits that mean none are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.eight_bits import quantise
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.models import loading, quantised
from bidir_core.models.weight_files import read_tensors, weight_files
from bidir_core.runs.run import Run
from bidir_core.train import student
from tests.eight_bit_models import (
    configure,
    in_eight_bits,
    in_shards,
    scaled_by_blocks,
    stored_kinds,
    whole,
)
from tests.factory import training_file
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory) -> tuple[Path, Path]:
    return in_eight_bits(tmp_path_factory.mktemp("fp8"))


@pytest.mark.parametrize(
    ("family", "scales"), [("mistral3", "tensor"), ("mistral3", "block"), ("qwen3_moe", "block")]
)
def test_eight_bits_saved_unchanged_are_the_numbers_they_mean(tmp_path, family, scales):
    """As an ordinary model, under the names that the repository has."""
    plain = save_tiny_model(tmp_path / "plain", family)
    folder = tmp_path / "eight"
    if scales == "block":
        meant = scaled_by_blocks(plain, folder)
    else:
        meant = quantise(shutil.copytree(plain, folder))
    assert "F8_E4M3" in stored_kinds(folder).values()
    model = whole(folder).model
    gathered = student.gathered(model, keep=True)  # as of several processes
    for weights in (None, gathered):
        model.save_pretrained(tmp_path / "saved", state_dict=weights)
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert set(saved) == set(meant)
        for name, weight in meant.items():
            assert torch.equal(saved[name], weight), name
        assert set(stored_kinds(tmp_path / "saved").values()) == {"F32"}


STEPS, RATE = 2, 1e-4
MOST = 10 * STEPS * RATE  # what training can move a weight by, amply


def tune(folder: Path, tmp_path: Path, method: str) -> int:
    data = training_file(tmp_path / "data.jsonl", 12)
    command = f"finetune --model {folder} --prompt-bidir-response-causal-train --data {data}"
    command += f" --no-decontaminate --steps {STEPS} --batch-samples 4 --max-tokens 64"
    command += f" --eval-every 0 --device cpu --method {method} --lr {RATE}"
    return main(command.split())


@pytest.mark.parametrize(
    ("method", "scales", "files"),
    [
        ("full", "tensor", "shards"),
        ("full", "block", "one"),
        ("lora", "tensor", "one"),
        ("lora", "block", "shards"),
    ],
)
def test_a_fine_tune_of_eight_bits_is_read_back(
    eight_bits, own_items, runs_dir, tmp_path, method, scales, files
):
    """Near the base's numbers, by --checkpoint and by plain transformers, and as float32."""
    folder, plain = eight_bits
    if scales == "block":
        folder = tmp_path / "blocks"
        scaled_by_blocks(plain, folder)
    if files == "shards":
        folder, _ = in_shards(folder, tmp_path / "sharded")
    base = whole(folder)
    assert tune(folder, tmp_path, method) == 0
    (made,) = (runs_dir / "stage3_finetune_prefill_bidir").iterdir()
    final = made / "final"
    tuned = whole(folder, checkpoint=str(made))
    change = {
        name: float((weight - base.model.state_dict()[name]).abs().max())
        for name, weight in tuned.model.state_dict().items()
    }
    assert 0 < max(change.values()) < MOST, max(change, key=lambda name: change[name])
    assert not max(moved for name, moved in change.items() if "vision" in name)
    if method == "lora":
        kinds = {t.dtype for t in read_tensors(final / "adapter_model.safetensors")}
        assert kinds == {"F32"}
    else:
        assert set(stored_kinds(final).values()) == {"F32"}
        assert not [name for name in stored_kinds(final) if "scale" in name]
        assert set(stored_kinds(final)) == set(stored_kinds(plain))
        assert "quantization_config" not in json.loads((final / "config.json").read_text())
        from transformers import AutoModelForImageTextToText

        loading: Any = AutoModelForImageTextToText.from_pretrained
        read, info = loading(final, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert not info["missing_keys"]
        for name, weight in tuned.model.state_dict().items():
            assert torch.equal(read.state_dict()[name], weight), name
    if files == "one":
        command = f"eval --model {folder} --checkpoint {made} --device cpu --tasks {own_items}"
        assert main([*command.split(), "--limit", "4", "--prefill-bidirectional"]) == 0
        (evaluated,) = (runs_dir / "stage4_postft_eval").iterdir()
        assert Run(evaluated).settings["weights"] == "dequantise"


def test_weights_that_would_be_written_in_eight_bits_are_not_kept(
    eight_bits, runs_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(quantised, "without_eight_bits", lambda conversion: conversion)
    assert tune(eight_bits[0], tmp_path, "full") == 2
    message = capsys.readouterr().err
    assert "the final weights were not kept: transformers wrote" in message
    assert "weight_scale_inv as F32" in message
    (made,) = (runs_dir / "stage3_finetune_prefill_bidir").iterdir()
    assert not list(made.rglob("*final*"))
    assert Run(made).state != "done"


@pytest.mark.parametrize("files", ["one", "shards"])
def test_eight_bits_without_their_scale_are_refused(eight_bits, tmp_path, files):
    folder = shutil.copytree(eight_bits[0], tmp_path / "one")
    lost = "language_model.model.layers.1.mlp.up_proj.weight"
    holds = "model.safetensors"
    if files == "shards":
        folder, weight_map = in_shards(folder, tmp_path / "shards")
        holds = weight_map[lost]
    loading.preflight(str(folder), device="cpu")
    for file in weight_files(folder):
        tensors = load_file(file)
        tensors.pop(f"{lost}_scale_inv", None)
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as refused:
        loading.preflight(str(folder), device="cpu")
    message = str(refused.value)
    assert f"{holds} holds {lost} in 8 bits, but its scale {lost}_scale_inv" in message


def test_eight_bits_that_no_configuration_tells_of_are_refused(eight_bits, tmp_path):
    """As an older version of this program wrote them after a full fine-tune."""
    folder = shutil.copytree(eight_bits[0], tmp_path / "silent")
    configure(folder, quantization_config=None)
    for words in ({"model": str(folder)}, {"model": str(eight_bits[1]), "checkpoint": str(folder)}):
        with pytest.raises(UserError, match=r"in 8 bits with a scale, but .* no quantization_conf"):
            loading.preflight(device="cpu", **words)
