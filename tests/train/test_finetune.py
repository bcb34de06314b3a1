"""What a fine-tune leaves behind, and that it can be loaded and evaluated."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from bidir_core.common.errors import UserError
from bidir_core.data.items import Item
from bidir_core.models import loading
from bidir_core.models.families import VOCAB
from bidir_core.models.layout import Layout
from bidir_core.runs.curve import append_curve, cut_curve, read_curve
from bidir_core.runs.run import Run
from bidir_core.train import data as training_data
from bidir_core.train import finetune, loop
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import run_finetune
from bidir_core.train.optimizer import MasterAdamW, learning_rate
from tests.tiny_models import logits, save_tiny_model, tiny_tokenizer
from tests.train.test_resume import config, weights

ITEMS = [
    Item("piqa", i, str(i), i % 2, (f"some context {i}",), (" one", f" two {i}")) for i in range(6)
]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("code", "stage"),
    [
        ("3B", "stage3_finetune_prefill_bidir"),
        ("3C", "stage3c_finetune_causal"),
        ("3A", "stage3a_finetune_leaky"),
        ("distill", "stage3d_finetune_distil"),
    ],
)
def test_a_fine_tune_learns_and_loads(code, stage, method, tiny_folder, jsonl, tmp_path):
    settings = config(
        tiny_folder, jsonl, tmp_path, objective=code, method=method, lr=5e-3, steps=20, name="x"
    )
    path = run_finetune(settings)
    run = Run(path)
    assert (run.stage, run.name, run.state) == (stage, "x", "done")
    first, *_, last = (line["loss"] for line in read_curve(path))
    assert last < first
    assert run.metrics["objective"] == code
    assert run.metrics["tokens"] > 0
    assert run.probe["passed"]
    record = json.loads((path / "final" / "bidir.json").read_text())
    assert (record["objective"], record["leaky"]) == (code, code == "3A")
    assert record["regime"] == ("causal" if code == "3C" else "bidirectional")
    base = loading.load(str(tiny_folder), device="cpu")
    tuned = loading.load(str(tiny_folder), checkpoint=str(path), device="cpu")
    assert tuned.training_record == record
    assert record["base_fingerprint"] == base.fingerprint != tuned.fingerprint
    layout, ids = Layout.pack([(12, 20)]), torch.arange(3, 23)[None]
    for regime in ("causal", "bidirectional"):
        before, after = (logits(loaded, regime, layout, ids) for loaded in (base, tuned))
        assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_flipped_bit_in_the_trained_weights_is_refused(method, tiny_folder, jsonl, tmp_path):
    path = run_finetune(config(tiny_folder, jsonl, tmp_path, method=method, steps=1))
    (file,) = (path / "final").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"{file.name} is not what the fine-tune wrote"):
        loading.load(str(tiny_folder), checkpoint=str(path), device="cpu")


def test_auto_is_sdpa_where_an_evaluation_would_split(tiny_folder, jsonl, tmp_path, monkeypatch):
    """As on a GPU, where ``auto`` is split for evaluations."""
    monkeypatch.setattr(loading, "choose_implementation", lambda *_: "split")
    run = Run(run_finetune(config(tiny_folder, jsonl, tmp_path, objective="3B", steps=1, name="x")))
    assert run.config["attention"] == "sdpa"


def test_same_data_and_order_for_the_control(tiny_folder, jsonl, whole, tmp_path):
    runs = [whole, run_finetune(config(tiny_folder, jsonl, tmp_path, objective="3C"))]
    first, second = (read_curve(path) for path in runs)
    assert [x["tokens"] for x in first] == [x["tokens"] for x in second]
    assert [x["loss_tokens"] for x in first] == [x["loss_tokens"] for x in second]
    assert Run(runs[0]).config["data_fingerprint"] == Run(runs[1]).config["data_fingerprint"]
    assert weights(runs[0]) != weights(runs[1])


def test_the_same_seed_is_the_same_run_and_another_is_not(tiny_folder, jsonl, whole, tmp_path):
    again, other = (run_finetune(config(tiny_folder, jsonl, tmp_path, seed=n)) for n in (0, 1))
    assert weights(again) == weights(whole) != weights(other)


@pytest.mark.parametrize("changes", [{"micro_tokens": 64}, {"gradient_checkpointing": True}])
def test_saving_memory_changes_nothing_but_rounding(changes, tiny_folder, jsonl, whole, tmp_path):
    other = run_finetune(config(tiny_folder, jsonl, tmp_path, **changes))
    a, b = ([line["loss"] for line in read_curve(path)] for path in (whole, other))
    assert b == pytest.approx(a, abs=1e-4)


@pytest.mark.slow
def test_compiled_layers_change_nothing_but_rounding(tiny_folder, jsonl, tmp_path):
    """A C++ compiler is needed for this on a CPU."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    plain_run, compiled = (
        run_finetune(config(tiny_folder, jsonl, tmp_path, compile=how, steps=3))
        for how in ("none", "reduce-overhead")
    )
    a, b = ([line["loss"] for line in read_curve(path)] for path in (plain_run, compiled))
    assert b == pytest.approx(a, abs=1e-4)
    assert loading.load(str(tiny_folder), checkpoint=str(compiled), device="cpu")


def test_contaminated_samples_are_listed_in_the_run(tiny_folder, jsonl, tmp_path, monkeypatch):
    item = Item("piqa", 41, "", 0, ("Question: where is it?\nAnswer:",), (" here", " there"))
    monkeypatch.setattr(training_data, "load_items", lambda tasks: [item])
    with jsonl.open("a") as lines:
        lines.write(json.dumps({"prompt": "Where is it?", "response": "There!"}) + "\n")
    path = run_finetune(config(tiny_folder, jsonl, tmp_path, decontaminate=True))
    report = json.loads((path / "data.json").read_text())
    assert report["n_dropped_contaminated"] == 1
    assert report["n_used"] + report["n_dropped_long"] == report["n_read"] - 1
    assert report["dropped"] == [
        {
            "task": "samples.jsonl",
            "index": 40,
            "evaluation_task": "piqa",
            "evaluation_index": 41,
            "shared_words": 4,
        }
    ]


def test_the_recovery_curve_has_both_regimes_from_step_0_to_the_last(
    tiny_folder, jsonl, whole, tmp_path, monkeypatch
):
    asked = {}

    def items(tasks, **kwargs):
        asked.update(kwargs)
        return ITEMS

    monkeypatch.setattr(finetune, "load_items", items)
    settings = config(tiny_folder, jsonl, tmp_path, eval_every=6, eval_items=3, steps=14)
    path = run_finetune(settings)
    assert asked == {"limit": 3, "sample": "stratified", "fold": "explore"}
    points = [line for line in read_curve(path) if "evals" in line]
    assert [line["step"] for line in points] == [0, 6, 12, 14]
    for line in points:
        assert list(line["evals"]) == ["bidirectional", "causal"]
        assert 0 <= line["evals"]["causal"]["acc"] <= 1
        assert line["evals"]["causal"]["n"] == 6
    assert weights(path) == weights(whole)  # looking changes nothing


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_with_dropout_can_be_trained(family, method, jsonl, tmp_path):
    """The check of the output head compares two passes, which must draw the same dropout."""
    if family == "gpt2":
        folder = save_tiny_model(tmp_path / family, family)
    else:
        folder = tmp_path / family
        opt = OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
        )
        assert opt.dropout > 0
        OPTForCausalLM(opt).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    path = run_finetune(config(folder, jsonl, tmp_path, method=method, steps=1))
    assert Run(path).state == "done"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_generation_settings_that_contradict_each_other_come_through(method, jsonl, tmp_path):
    folder = save_tiny_model(tmp_path / "base")
    given = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3]}
    (folder / "generation_config.json").write_text(json.dumps(given))
    path = run_finetune(config(folder, jsonl, tmp_path, method=method, steps=2))
    assert Run(path).state == "done"
    if method == "full":
        kept = json.loads((path / "final" / "generation_config.json").read_text())
        assert {name: kept.get(name, False) for name in given} == given


def test_what_becomes_of_the_samples_is_said(tiny_folder, tmp_path, capsys):
    rows = [{"prompt": f"p{i}", "response": "r" * (99 if i > 3 else 5)} for i in range(6)]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:4]]))
    run = run_finetune(config(tiny_folder, path, tmp_path, steps=2))
    line = "4 of 10 samples used, 4 repeat another, 2 are too long for --max-tokens"
    assert line in capsys.readouterr().err
    assert line in (run / "log.txt").read_text()
    report = json.loads((run / "data.json").read_text())
    assert (report["n_read"], report["n_repeated"], report["n_dropped_long"]) == (6, 4, 2)


def test_an_image_text_model_trains_its_text_side_only(jsonl, tmp_path):
    folder = save_tiny_model(tmp_path / "mistral3", "mistral3")
    for method in ("full", "lora"):
        path = run_finetune(config(folder, jsonl, tmp_path, method=method, steps=3))
        base = loading.load(str(folder), device="cpu").model.state_dict()
        tuned = loading.load(str(folder), checkpoint=str(path), device="cpu").model.state_dict()
        changed = {name for name in base if not torch.equal(base[name], tuned[name])}
        assert changed
        assert not any("vision" in name for name in changed)


def test_tensorboard_gets_the_losses(tiny_folder, jsonl, tmp_path):
    pytest.importorskip("tensorboardX")
    path = run_finetune(config(tiny_folder, jsonl, tmp_path, tracker="tensorboard"))
    assert any(file.stat().st_size > 100 for file in path.rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_is_named(tiny_folder, jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(UserError, match="pip install trackio"):
        run_finetune(config(tiny_folder, jsonl, tmp_path, tracker="trackio"))


# --- the pieces ----------------------------------------------------------------------------------


def plain(**changes) -> FinetuneConfig:
    return FinetuneConfig(**{"model": "m", "objective": "3B", **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "3D"}, "choose one of"),
        ({"objective": "3C", "regime": "bidirectional"}, "trains causally"),
        ({"steps": 0}, "--steps 0: give a number from 1"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"lora_dropout": 1.5}, "from 0 to 1"),
        ({"dtype": "float16"}, "overflows"),
        ({"method": "qlora"}, "choose one of full, lora"),
        ({"regime": "sideways"}, "unknown regime"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(changes, words):
    with pytest.raises(UserError, match=words):
        plain(**changes)


def test_the_schedule_warms_up_and_ends_where_it_should():
    given = plain(steps=100, warmup_steps=10, lr=1.0, final_lr_fraction=0.1)
    rates = [learning_rate(given, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_run_as_short_as_its_warm_up_comes_down_again():
    for steps in (1, 2, 5, 20):
        rates = [learning_rate(plain(steps=steps, lr=1.0), step) for step in range(steps)]
        assert max(rates) == 1
        assert steps < 3 or rates[-1] < 1


def test_a_token_beyond_the_embedding_is_named(jsonl, tmp_path):
    folder = save_tiny_model(tmp_path / "small", vocab_size=100, pad_token_id=None)
    with pytest.raises(UserError, match=r"gives token \d+, and the model has embeddings for 100"):
        run_finetune(config(folder, jsonl, tmp_path))
    assert not (tmp_path / "runs").exists()


def test_master_weights_keep_what_bfloat16_would_lose():
    """A hundred updates of 1e-4 move a bfloat16 weight of 1, where each alone would vanish."""
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = MasterAdamW({"w": weight}, plain(clip=0.0))
    for _ in range(100):
        (weight.float().sum() * 1.0).backward()
        optimizer.collect()
        optimizer.step(1e-4)
    assert weight.float().mean().item() == pytest.approx(0.99, abs=0.004)
    assert optimizer.masters[0].mean().item() == pytest.approx(0.99, abs=1e-4)


def test_master_adamw_is_torchs_adamw_in_float32():
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 5), torch.randn(4, 3, 5)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = MasterAdamW({"w": ours}, plain(clip=0.5, weight_decay=0.1))
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        reference.step()
        assert optimizer.step(1e-2) == pytest.approx(float(norm))
    assert torch.equal(ours, theirs)


def test_a_curve_forgets_what_will_be_done_again(tmp_path):
    for step in (0, 3, 6):
        append_curve(tmp_path, {"step": step})
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write('{"step": 9, "los')
    cut_curve(tmp_path, 3)
    assert [line["step"] for line in read_curve(tmp_path)] == [0, 3]
    append_curve(tmp_path, {"step": 6})
    assert [line["step"] for line in read_curve(tmp_path)] == [0, 3, 6]


def test_no_room_is_said_before_training(tiny_folder, jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bidir_core.train.final.shutil.disk_usage",
        lambda _: SimpleNamespace(free=0),
    )
    with pytest.raises(UserError, match=r"needs about .* free some room"):
        run_finetune(config(tiny_folder, jsonl, tmp_path))


def test_out_of_memory_says_what_helps(tiny_folder, jsonl, tmp_path, monkeypatch):
    def out_of_memory(self, step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.Trainer, "train_step", out_of_memory)
    with pytest.raises(UserError, match="--micro-tokens"):
        run_finetune(config(tiny_folder, jsonl, tmp_path))
