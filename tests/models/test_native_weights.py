"""``--weights native``: 8-bit weights multiplied as they are, by torch's own kernel.

A CPU has that kernel too, slowly; so these tests say that this machine can, and ask the rest.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.finegrained_fp8 import FP8Linear
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from benchmarks.eight_bits import last_hidden, save_model
from benchmarks.full_shape import apart
from bidir_core.analyse.compare import compare
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.models import loading, quantised
from bidir_core.models.probe import run_probe
from bidir_core.models.quantised import multiply, multiply_exactly, to_eight_bits
from bidir_core.runs.run import Run
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("native") / "eight")


@pytest.fixture
def able(monkeypatch) -> None:
    """As on a GPU that multiplies 8-bit numbers, where transformers' own kernel is not installed."""
    monkeypatch.setattr(quantised, "can_multiply", lambda device: True)
    monkeypatch.setattr(quantised, "_has_kernels", lambda: False)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)


def load(folder: Path, weights: str = "native", dtype: str = "float32", **more):
    return loading.load(str(folder), device="cpu", dtype=dtype, weights=weights, **more)


def described(folder: Path, to: Path, **quantisation) -> Path:
    """A copy whose configuration says something else of its quantisation."""
    copied = shutil.copytree(folder, to)
    config = json.loads((copied / "config.json").read_text())
    config["quantization_config"] |= quantisation
    (copied / "config.json").write_text(json.dumps(config))
    return copied


# --- one layer ------------------------------------------------------------------------------


def test_numbers_are_rounded_once_and_stay_in_range():
    scale = torch.tensor(0.5)
    numbers = torch.tensor([0.0, 0.5, -1.0, 0.53, 224.0, 225.0, 1e6, -1e6, 8e-4])
    rounded = to_eight_bits(numbers, scale).float() * scale
    # Three bits behind the point: between 1 and 2 the steps are 1/8; the least number is 2**-9.
    assert rounded.tolist() == [0, 0.5, -1, 0.5, 224, 224, 224, -224, 2**-10]
    assert to_eight_bits(torch.tensor([float("nan")]), scale).isnan().all()
    # Just under the middle of 1.125 and 1.25: bfloat16 in between would round it up twice.
    assert to_eight_bits(torch.tensor(1.1874), torch.tensor(1.0)).float() == 1.125


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_multiplies_what_it_means(dtype, bias):
    torch.manual_seed(0)
    layer = FP8Linear(64, 48, None, "static", has_bias=bias).requires_grad_(False)
    layer.weight.data = (40 * torch.randn(48, 64)).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.data, layer.activation_scale.data = torch.tensor([0.003, 0.02])
    if bias:
        layer.bias.data = torch.randn(48)
    exact = 1e-6 if dtype == torch.float32 else 0.004
    for inputs in (
        torch.randn(1, 64),
        torch.randn(2, 7, 64) * 9,  # some lie outside
        torch.randn(64, 5).t(),
        torch.randn(0, 64),
    ):
        product = multiply(layer, inputs.to(dtype))
        stated = multiply_exactly(layer, inputs.to(dtype))
        assert product.dtype == dtype
        assert product.shape == stated.shape
        assert not len(inputs) or apart(product, stated) < exact
        # And the reference is what a plain layer gives, but for the rounding of its inputs.
        inside = inputs.clamp(-8.96, 8.96)
        plain = inside @ (layer.weight.float() * layer.weight_scale_inv).t()
        plain = plain + layer.bias if bias else plain
        assert not len(inputs) or 0.002 < apart(stated, plain) < 0.06


# --- a model --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_runs_in_eight_bits_and_attends_as_it_should(able, folder, dtype):
    native, plain = load(folder, dtype=dtype), load(folder, "dequantise", dtype)
    kinds = {weight.dtype for weight in native.model.parameters()}
    assert kinds == {torch.float8_e4m3fn, torch.float32, getattr(torch, dtype)}
    assert native.model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    for regime in ("causal", "bidirectional"):
        report = run_probe(native, regime)
        assert report.passed, report.failures
        assert report.dtype == dtype
        hidden = last_hidden(native, regime)
        assert hidden.dtype == getattr(torch, dtype)
        assert 0 < apart(hidden, last_hidden(plain, regime)) < 0.2
    copied = copy.deepcopy(native.model)
    layers = [m for m in copied.modules() if isinstance(m, FP8Linear)]
    assert layers
    assert all(vars(layer)["forward"].__self__ is layer for layer in layers)


def test_an_evaluation_in_eight_bits_is_near_the_dequantised_one(able, folder, own_items, runs_dir):
    runs = {}
    for weights in ("native", "dequantise"):
        command = f"eval --model {folder} --device cpu --weights {weights} --tasks {own_items}"
        command += f" --limit 40 --prefill-bidirectional --name {weights}"
        assert main(command.split()) == 0
        runs[weights] = Run(next(runs_dir.glob(f"*/*_{weights}")))
        assert runs[weights].settings["weights"] == weights
    native, plain = (
        np.concatenate(run.items_table(("ll",)).column("ll").to_pylist()) for run in runs.values()
    )
    assert np.isfinite(native).all()
    assert not np.array_equal(native, plain)
    assert np.abs(native - plain).mean() < 0.1 * np.abs(plain).mean()
    assert np.corrcoef(native, plain)[0, 1] > 0.98
    notes = compare(*runs.values()).notes
    assert "the runs differ in weights: native and dequantise" in notes


def test_an_adapter_stays_beside_weights_in_eight_bits(able, folder, tmp_path):
    settings = LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False)
    torch.manual_seed(0)
    base = load(folder, "dequantise")
    get_peft_model(base.model, settings).save_pretrained(tmp_path)
    native = load(folder, checkpoint=str(tmp_path))
    plain = load(folder, "dequantise", checkpoint=str(tmp_path))
    assert any("lora" in name for name, _ in native.model.named_parameters())
    assert not any("lora" in name for name, _ in plain.model.named_parameters())
    outputs = [last_hidden(loaded, "bidirectional") for loaded in (native, plain, load(folder))]
    assert apart(outputs[0], outputs[1]) < 0.2 < 0.4 < apart(outputs[0], outputs[2])


# --- where it cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantisation", "why"),
    [
        ({"weight_block_size": [128, 128]}, "a scale for each block"),
        ({"activation_scheme": "dynamic"}, "no static activation scales"),
    ],
)
def test_other_scales_need_other_kernels(
    able, folder, tmp_path, runs_dir, own_items, capsys, quantisation, why
):
    other = described(folder, tmp_path / "other", **quantisation)
    words = ["eval", "--model", str(other), "--device", "cpu", "--tasks", str(own_items)]
    assert main([*words, "--weights", "native"]) == 2
    message = capsys.readouterr().err
    assert why in message
    assert "'kernels'" in message
    assert "--weights dequantise" in message
    assert not runs_dir.exists() or not list(runs_dir.rglob("config.json"))


def test_a_size_that_the_kernel_does_not_take_is_named(able, tmp_path, monkeypatch):
    odd = save_model(tmp_path / "odd", intermediate_size=40)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate_proj and 8 more, .*'kernels'"):
        load(odd)
    monkeypatch.setattr(quantised, "_has_kernels", lambda: True)
    ours = {
        name.rpartition(".")[2]: "forward" in vars(layer)
        for name, layer in load(odd).model.named_modules()
        if isinstance(layer, FP8Linear)
    }
    assert ours == dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), True) | dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj"), False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="transformers finds a GPU")
def test_what_transformers_dequantised_by_itself_is_not_called_native(folder, monkeypatch):
    monkeypatch.setattr(quantised, "can_multiply", lambda device: True)
    with pytest.raises(UserError, match=r"read no layer of .* in 8 bits"):
        load(folder)


def test_a_checkpoint_without_eight_bits_is_not_native(able, folder, tmp_path):
    trained = save_tiny_model(tmp_path / "trained", "mistral3")
    with pytest.raises(UserError, match="trained' has no 8-bit weights"):
        loading.preflight(str(folder), checkpoint=str(trained), device="cpu", weights="native")
