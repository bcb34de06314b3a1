"""Models: what is refused before any weight is read, what is loaded, and what identifies it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bidir_core.common.errors import UserError
from bidir_core.data import assets
from bidir_core.models import devices, loading
from bidir_core.models.families import tiny_config, tiny_model
from bidir_core.models.layout import Layout
from bidir_core.models.weight_files import check_weights, fingerprint, weight_files
from bidir_core.regimes import CAUSAL
from tests.tiny_models import logits, save_adapter, save_tiny_model

IDS = torch.tensor([[72, 101, 108, 108, 111, 32, 119]])


def _native_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS.to(model.device)).logits


def _causal_logits(loaded: loading.LoadedModel) -> torch.Tensor:
    return logits(loaded, "causal", Layout.pack([(3, IDS.shape[1])]), IDS)


def _fingerprint(folder: Path) -> str:
    return fingerprint(transformers.AutoConfig.from_pretrained(folder), weight_files(folder))


@pytest.fixture
def own_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def _edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- loading ------------------------------------------------------------------------------------


def test_a_local_folder_loads_as_transformers_loads_it(tiny_folder: Path) -> None:
    loaded = loading.load(str(tiny_folder), device="cpu", regime="bidirectional:layers=0-3")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    torch.testing.assert_close(_causal_logits(loaded), _native_logits(reference))
    assert (loaded.n_layers, loaded.max_length, loaded.dtype) == (4, 512, "float32")
    assert (loaded.name, loaded.device, loaded.checkpoint) == (
        *(str(tiny_folder), torch.device("cpu"), None),
    )
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with pytest.raises(RuntimeError, match="no regime is in force"):
        loaded.model(IDS)


def test_a_vision_language_model_loads_for_its_text(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "mistral3", "mistral3")
    loaded = loading.load(str(folder), device="cpu")
    assert type(loaded.model).__name__ == "Mistral3ForConditionalGeneration"
    assert loaded.n_layers == 3
    reference = tiny_model("mistral3")
    torch.testing.assert_close(_causal_logits(loaded), _native_logits(reference))


def test_a_hub_cache_folder_stands_for_its_snapshot(tiny_folder: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "models--org--tiny" / "snapshots"
    shutil.copytree(tiny_folder, snapshots / "abc123")
    assert loading.preflight(str(snapshots.parents[0])).source.endswith("abc123")
    shutil.copytree(tiny_folder, snapshots / "def456")
    with pytest.raises(UserError, match=r"holds 2 snapshots; give one, such as .*def456"):
        loading.preflight(str(snapshots.parents[0]))


def test_a_hub_id_loads_from_the_hubs_own_cache(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    snapshot = shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = loading.load("org/tiny", device="cpu")
    known = (loaded.name, loaded.revision, loaded.fingerprint)
    assert known == ("org/tiny", commit, _fingerprint(tiny_folder))
    with pytest.raises(UserError, match="'org/other' is not an embedded model"):
        loading.load("org/other", device="cpu")
    for lost, message in (
        ("model.safetensors", "the hub's cache holds only a part of 'org/tiny'"),
        ("tokenizer.json", "no tokenizer that can be read in the hub's cache"),
    ):
        (snapshot / lost).unlink()
        with pytest.raises(UserError, match=message):
            loading.load("org/tiny", device="cpu")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        {"rope_parameters": None, "rope_scaling": {"type": "spiral", "factor": 2.0}},
    ],
)
def test_an_unknown_rotary_embedding_is_not_blamed_on_the_weights(rope, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | rope))
    with pytest.raises(UserError, match=r"config\.json names the rotary .* 'spiral'"):
        loading.load(str(folder), device="cpu")


@pytest.mark.assets
def test_the_embedded_model_loads_fast_and_knows_english() -> None:
    loaded = loading.load(assets.EMBEDDED_MODEL, device="cpu")
    assert (loaded.n_layers, loaded.max_length) == (30, 8192)
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    layout = Layout.pack([(ids.shape[1], ids.shape[1])])
    with torch.no_grad(), loaded.handle.use(CAUSAL, layout):
        logits = loaded.model(ids, position_ids=layout.position, use_cache=False).logits
    assert loaded.tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    files = weight_files(assets.find(assets.EMBEDDED_MODEL).folder)
    assert fingerprint(loaded.model.config, files) == loaded.fingerprint


# -- what is refused before weights are read ----------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"model": "smollm2-135m-instrct"}, "did you mean smollm2-135m-instruct"),
    "misspelt second": ({"model": "gemma-270m"}, "did you mean gemma3-270m"),
    "no folder": ({"model": "/no/such/model"}, "'/no/such/model' is neither a folder"),
    "no hub id": ({"model": "a b"}, "'a b' is neither a folder"),
    "a file": ({"model": __file__}, "is a file; give the folder .* or a .gguf file"),
    "revision of a folder": ({"revision": "v2"}, "revision 'v2': only models on the hub"),
    "device": ({"device": "cuda:77"}, "device 'cuda:77' is not there; this machine has cpu"),
    "device kind": ({"device": "tpu"}, "device 'tpu' is not there"),
    "dtype": ({"dtype": "int8"}, "unknown dtype 'int8'; use auto, float32"),
    "attention": ({"attn": "flash_attention_2"}, "--attn flash_attention_2: choose one of auto"),
    "regime": ({"regime": "sideways"}, "unknown regime 'sideways'"),
    "layers": ({"regime": "bidirectional:layers=2-4"}, "layer 4 does not exist; .* layers 0-3"),
    "checkpoint": ({"checkpoint": "/no/such"}, "checkpoint '/no/such' is not a folder"),
    "long model": ({"model": "a" * 300}, "is too long for a path or a hub id"),
    "long checkpoint": ({"checkpoint": "/x/" + "a" * 300}, "is too long for a path"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: False)
    arguments, message = BAD_ARGUMENTS[name]
    with pytest.raises(UserError, match=message) as caught:
        loading.preflight(**({"model": str(tiny_folder)} | arguments))
    assert "\n" not in str(caught.value)


def test_a_dtype_that_the_device_cannot_compute_in(tiny_folder, monkeypatch):
    monkeypatch.setattr(devices, "can_compute", lambda device, dtype: dtype is torch.float32)
    with pytest.raises(UserError, match="'cpu' cannot compute in bfloat16; use --dtype float32"):
        loading.preflight(str(tiny_folder), device="cpu", dtype="bfloat16")
    loading.preflight(str(tiny_folder), device="cpu", dtype="float32")


def test_whether_a_device_computes_in_a_dtype_is_tried() -> None:
    cpu = torch.device("cpu")
    assert devices.can_compute(cpu, torch.float32)
    assert devices.can_compute(cpu, torch.bfloat16)
    assert not devices.can_compute(cpu, torch.float8_e4m3fn)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "encoder-decoder": ({"model_type": "t5"}, "'t5' is an encoder-decoder"),
    "linear attention": ({"model_type": "qwen3_next"}, "linear_attention layers"),
    "unknown": ({"model_type": "gpt_9"}, "architecture 'gpt_9', which this version"),
    "own code": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "code.MyConfig"}},
        "needs code from its own repository, which is never run",
    ),
    "nonsense": ({"nothing": "here"}, "its config.json cannot be used"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_unusable_architectures_are_refused_by_their_config(name: str, tmp_path: Path) -> None:
    config, message = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))  # and there are no weights
    (tmp_path / "code.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(UserError, match=message):
        loading.preflight(str(tmp_path))


def _truncate(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "torn config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be used"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "truncated weights": (
        lambda f: _truncate(f / "model.safetensors"),
        "model.safetensors is damaged or incomplete",
    ),
    "text as weights": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com"),
        "model.safetensors is damaged or incomplete",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        "has no tokenizer that can be read",
    ),
    "slow tokenizer": (
        lambda f: (
            (f / "tokenizer.json").unlink(),
            (f / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}'),
        ),
        "gives no character offsets",
    ),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "is a LoRA adapter; give its base model",
    ),
}


@pytest.mark.parametrize("name", SPOILS)
def test_spoilt_folders_are_refused(name: str, own_folder: Path) -> None:
    spoil, message = SPOILS[name]
    spoil(own_folder)
    with pytest.raises(UserError, match=message) as caught:
        loading.preflight(str(own_folder))
    assert str(own_folder) in str(caught.value)


def test_weights_that_do_not_fill_the_model_are_refused(own_folder: Path) -> None:
    """transformers itself would put random numbers there and go on."""
    file = own_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing.*layers\.2\.mlp\.up_proj"):
        loading.load(str(own_folder), device="cpu")


# -- checkpoints --------------------------------------------------------------------------------


def test_a_full_checkpoint_replaces_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    record = {"regime": "bidirectional", "objective": "prompt_bidir_response_causal"}
    run = tmp_path / "run"
    trained = tiny_model("llama", seed=1)
    trained.save_pretrained(run / "final")
    (run / "final" / "bidir.json").write_text(json.dumps(record))
    loaded = loading.load(str(tiny_folder), checkpoint=str(run), device="cpu")
    torch.testing.assert_close(_causal_logits(loaded), _native_logits(trained))
    assert loaded.training_record == record
    assert loaded.checkpoint == str(run / "final")
    assert loaded.fingerprint != loading.load(str(tiny_folder), device="cpu").fingerprint


def test_checkpoints_of_another_architecture(tiny_folder: Path, tmp_path: Path) -> None:
    tiny_model("llama", num_hidden_layers=3).save_pretrained(tmp_path / "shallow")
    tiny_model("qwen3").save_pretrained(tmp_path / "qwen")
    wide = save_tiny_model(tmp_path / "wide")
    tiny_model("llama", hidden_size=64).save_pretrained(wide)
    save_adapter(tmp_path / "wide-adapter", wide)
    save_tiny_model(tmp_path / "gpt2", "gpt2")
    for checkpoint, message in {
        "shallow": "another architecture than .*: its num_hidden_layers is 3, the model's 4",
        "qwen": "its model_type is qwen3, the model's llama",
        "wide-adapter": r"another architecture than .*: it adapts model\.layers\.0.*\(4, 64\)",
    }.items():
        with pytest.raises(UserError, match=message):
            loading.preflight(str(tiny_folder), checkpoint=str(tmp_path / checkpoint))
    adapter = save_adapter(tmp_path / "adapter", tiny_folder)
    with pytest.raises(UserError, match=r"another architecture than .* not found"):
        loading.preflight(str(tmp_path / "gpt2"), checkpoint=str(adapter))
    loading.preflight(str(tiny_folder), checkpoint=str(adapter))


def test_unreadable_checkpoints(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny_folder)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            loading.preflight(str(tiny_folder), checkpoint=str(adapter))

    (adapter / "bidir.json").write_text("{")
    refused(r"training record .*bidir\.json cannot be read")
    (adapter / "bidir.json").unlink()
    _truncate(adapter / "adapter_model.safetensors")
    refused("adapter_model.safetensors is damaged or incomplete")
    deep = b'{"a":' + b"[" * 200_000
    (adapter / "adapter_model.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    refused("adapter_model.safetensors is damaged or incomplete")
    (adapter / "adapter_model.safetensors").unlink()
    refused("has no adapter_model.safetensors")
    _edit_json(adapter / "adapter_config.json", peft_type="PREFIX_TUNING")
    refused("is a PREFIX_TUNING adapter; only LoRA")
    (adapter / "adapter_config.json").write_bytes(deep)
    refused(r"adapter .*adapter_config\.json cannot be read")
    (adapter / "adapter_config.json").unlink()
    refused("holds neither config.json nor adapter_config.json")


def test_an_adapter_goes_on_the_weights_it_was_trained_from(tiny_folder, tmp_path):
    own = loading.load(str(tiny_folder), device="cpu").fingerprint
    right = save_adapter(
        tmp_path / "right", tiny_folder, record={"base_fingerprint": own, "base_model": "mine"}
    )
    loading.load(str(tiny_folder), checkpoint=str(right), device="cpu")
    other = save_tiny_model(tmp_path / "other", seed=5)  # same shape, other weights
    with pytest.raises(UserError, match=r"trained from other weights than .*\(mine\)"):
        loading.load(str(other), checkpoint=str(right), device="cpu")


# -- fingerprints -------------------------------------------------------------------------------


def test_a_fingerprint_does_not_depend_on_place_shards_or_version(
    tiny_folder: Path, own_folder: Path, tmp_path: Path
) -> None:
    _edit_json(own_folder / "config.json", transformers_version="4.0.0", use_cache=False)
    assert _fingerprint(own_folder) == _fingerprint(tiny_folder)
    tiny_model("llama").save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert _fingerprint(tmp_path / "shards") == _fingerprint(tiny_folder)


def test_a_fingerprint_changes_with_every_tensor_and_with_the_shape(own_folder: Path) -> None:
    file = own_folder / "model.safetensors"
    tensors = load_file(file)
    seen = {_fingerprint(own_folder)}
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor * 1.001}, file, metadata={"format": "pt"})
        seen.add(_fingerprint(own_folder))
    _edit_json(own_folder / "config.json", rms_norm_eps=1e-3)
    seen.add(_fingerprint(own_folder))
    assert len(seen) == len(tensors) + 2


def test_a_large_tensor_is_sampled_all_over(tmp_path: Path) -> None:
    weights = torch.zeros(1 << 20, dtype=torch.uint8)
    config, file = tiny_config("llama"), tmp_path / "model.safetensors"

    def of(changed: slice) -> str:
        tensor = weights.clone()
        tensor[changed] = 1
        save_file({"w": tensor}, file)
        return fingerprint(config, [file])

    quarter = len(weights) // 4
    parts = [slice(0, quarter), slice(quarter, 3 * quarter), slice(3 * quarter, None)]
    assert len({of(slice(0, 0)), *map(of, parts)}) == 4


def test_the_tokenizer_has_a_fingerprint_of_its_own(tiny_folder: Path, own_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(own_folder)
    tokenizer.add_tokens(["surprise"])
    tokenizer.save_pretrained(own_folder)
    one, two = (loading.load(str(f), device="cpu") for f in (tiny_folder, own_folder))
    assert one.fingerprint == two.fingerprint
    assert one.tokenizer_fingerprint != two.tokenizer_fingerprint


WHOLE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 200_000,
        *(
            json.dumps(value).encode()
            for value in (
                [1],
                {"a": WHOLE | {"data_offsets": [8, 0]}, "b": WHOLE},
                {"a": WHOLE | {"shape": [True, None]}},
                {"a\ud800": WHOLE},
            )
        ),
    ],
)
def test_a_safetensors_header_of_another_kind_is_refused(header, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(UserError, match="damaged or incomplete"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "[" * 200_000,
        *(json.dumps({"weight_map": {"a": name}}) for name in (3, None, ["x"], "x" * 300)),
    ],
)
def test_a_shard_list_of_another_kind_is_refused(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="get it again"):
        check_weights(tmp_path)
