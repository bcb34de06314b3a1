"""The real assets, where they are in the cache or can be fetched: whole, rightly converted, quick."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bidir_core.common.errors import UserError
from bidir_core.data import assets, fetch, gguf
from bidir_core.data.gguf import SMOLLM2

pytestmark = pytest.mark.assets


def test_the_real_assets_are_whole() -> None:
    fetch.ensure("eval-data")
    tasks = {path.name for path in assets.mixture_dir().iterdir()}
    assert {"boolq", "coqa", "squad", "sciq", "openbookqa", "gsm8k"} <= tasks
    assert not tasks & {"hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"}
    variants = {path.name for path in assets.mixture_dir().glob("*/*")}
    assert not [name for name in variants if "mc" in name.split("_")]

    folder = fetch.ensure("smollm2-135m-instruct")
    gguf.check(folder, SMOLLM2)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["n_bytes"] == 269_060_552


def test_a_wrong_conversion_does_not_pass_its_check(tmp_path: Path) -> None:
    """Each fault here is one that converters have really had."""
    from safetensors.torch import load_file, save_file

    folder = fetch.ensure("smollm2-135m-instruct")
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)

    @contextmanager
    def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
        value = json.loads((folder / name).read_text())
        change(value)
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(value))
        yield
        (tmp_path / name).write_text((folder / name).read_text())

    def without_digits(tokenizer: dict[str, Any]) -> None:
        assert tokenizer["pre_tokenizer"]["pretokenizers"].pop(0)["type"] == "Digits"

    def heads_in_gguf_order(weights: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = "model.layers.15.self_attn.q_proj.weight"
        shuffled = tensors[name].reshape(9, 2, 32, 576).transpose(1, 2).reshape(576, 576)
        save_file(tensors | {name: shuffled.contiguous()}, weights, metadata={"format": "pt"})

    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match):
            gguf.check(tmp_path, SMOLLM2)

    with changed("tokenizer.json", without_digits):
        fails("became the tokens")
    with changed("tokenizer_config.json", lambda value: value.update(eos_token="<|im_start|>")):
        fails("special tokens")
    gguf.check(tmp_path, SMOLLM2)
    # Here every shape stays right, and only what the model makes of English shows it.
    (tmp_path / "model.safetensors").unlink()
    heads_in_gguf_order(tmp_path / "model.safetensors")
    fails("nats per token")


@pytest.mark.alone
def test_from_cache_in_three_seconds_without_anything_heavy() -> None:
    for name in assets.default_names():
        fetch.ensure(name)
    program = (
        "import sys; from bidir_core.data import assets, fetch\n"
        "assert assets.missing() == []\n"
        "for name in assets.default_names(): fetch.ensure(name)\n"
        "print({'torch', 'transformers', 'streamlit'} & set(sys.modules))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - started < 9
    assert done.stdout.strip() == "set()"
