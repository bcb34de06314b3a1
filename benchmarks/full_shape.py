"""A model of the published experiment's shape with random weights, and what is measured with it.

:class:`Book` writes the rows, the whole JSON file anew after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bidir_core.common.files import write_json
from bidir_core.common.process import git_commit, package_versions
from bidir_core.data.tasks import PUBLISHED_TASKS
from bidir_core.models import fused
from bidir_core.models.attention import Implementation, choose_implementation, install
from bidir_core.models.devices import choose_device, choose_dtype, device_name
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import parse_regime

Add = Callable[..., None]  # takes a part, a title and the row's values

# Ministral 3 3B's text side; what is left out is the configuration's default. ``tiny`` is for tests.
SHAPES: dict[str, dict[str, Any]] = {
    "ministral3-3b": {
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "vocab_size": 131072,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    },
}


def words(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [word for word in text.split(",") if word]


def parser_of(doc: str, parts: Iterable[str], **defaults: Any) -> argparse.ArgumentParser:
    """The options of every measurement of the shape; ``defaults``: this one's."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    add = parser.add_argument
    add("--shape", default="ministral3-3b", choices=list(SHAPES))
    add("--parts", type=words, default=list(parts), help=",".join(parts))
    add("--part-seconds", type=float, default=300, help="when a part's time is over")
    add("--out", help="path of the file, without .json")
    add("--device", default="auto")
    add("--dtype", default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU")
    add("--tokenizer", help="a folder with a tokenizer (default: the embedded model's)")
    add("--tasks", type=lambda text: tuple(words(text)), default=PUBLISHED_TASKS)
    add("--limit", type=int, help="items per task")
    add("--repeats", type=int, help="of each evaluation; the median counts")
    add("--batch-tokens", type=int, help="of an evaluation (default: by device)")
    add("--data", default="far", help="what to train on")
    add("--steps", type=int)
    add("--warm-up", type=int, help="of the steps, not timed")
    add("--batch-samples", type=int)
    add("--micro-tokens", type=int, default=8192, help="tokens at once, ours")
    parser.set_defaults(**defaults)
    return parser


def parse(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    parts: Iterable[str],
    least_warm_up: int = 0,
) -> argparse.Namespace:
    """The command line, with device, dtype and the measured matrix rate filled in."""
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"--parts {unknown[0]}: choose from {', '.join(parts)}")
    if not least_warm_up <= options.warm_up < options.steps:
        parser.error(
            f"--warm-up {options.warm_up}: give {least_warm_up} to {options.steps - 1}, less than "
            "--steps"
        )
    options.on = choose_device(options.device)
    options.dtype = choose_dtype(options.dtype, options.on)
    options.tflops = matmul_tflops(options.on, options.dtype)
    return options


def build(
    shape: str,
    tokenizer: Any,
    device: torch.device,
    dtype: torch.dtype,
    attn: str = "sdpa",
    **changes: Any,
) -> LoadedModel:
    """A causal LM with random weights, made on the device, with regimes installed.

    ``changes``: settings of the configuration in place of the shape's.
    """
    import transformers

    settings = {**SHAPES[shape], **changes}
    settings["vocab_size"] = max(settings["vocab_size"], len(tokenizer))
    config = transformers.Ministral3Config(tie_word_embeddings=True, **settings)
    torch.manual_seed(0)
    with device:
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    if device.type == "cuda":
        fused.fuse(model)  # as a model that is loaded
    chosen = choose_implementation(config, attn)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        handle=install(model, chosen),
        name=f"random-{shape}",
        fingerprint=f"random-{shape}",
        tokenizer_fingerprint="benchmark",
        n_layers=config.num_hidden_layers,
        max_length=config.max_position_embeddings,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        implementation=chosen,
    )


def attending(loaded: LoadedModel, attn: Implementation) -> LoadedModel:
    """The same weights under another attention implementation."""
    return replace(loaded, handle=install(loaded.model, attn), implementation=attn)


@torch.no_grad()
def hidden(loaded: LoadedModel, layout: Layout, ids: torch.Tensor, regime: str) -> torch.Tensor:
    """Last hidden states ``[batch, time, width]`` of ``ids`` under a regime."""
    layout = layout.to(loaded.device)
    with loaded.handle.use(parse_regime(regime), layout):
        return loaded.handle.decoder(
            input_ids=ids.to(loaded.device), position_ids=layout.position, use_cache=False
        ).last_hidden_state


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference, relative to theirs."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def read_tokenizer(folder: str | None) -> Any:
    """The tokenizer of a folder, or the embedded model's."""
    from transformers import AutoTokenizer

    if folder is None:
        from bidir_core.data.assets import EMBEDDED_MODEL
        from bidir_core.data.fetch import ensure

        folder = str(ensure(EMBEDDED_MODEL))
    return AutoTokenizer.from_pretrained(Path(folder), local_files_only=True)


def layer_parameters(model: Any) -> int:
    """Weights that every token is multiplied with: all but the embedding, which is also the head."""
    embedding = model.get_input_embeddings().weight
    return sum(p.numel() for p in model.parameters() if p is not embedding)


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The rate of a large matrix product, best of five."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device) for _ in range(8)][3:]
    return 2 * n**3 / min(seconds) / 1e12


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of ``work()``, the device's work included."""
    started = now(device)
    work()
    return now(device) - started


def median_seconds(
    work: Callable[[], Any],
    device: torch.device,
    clock: Clock,
    *,
    warm_up: int = 2,
    repeats: int = 5,
) -> float:
    """Median of some repeats; fewer when the part's time is over, but always one."""
    for _ in range(warm_up):
        work()
    seconds = [timed(work, device)]
    while len(seconds) < repeats and clock.left():
        seconds.append(timed(work, device))
    return statistics.median(seconds)


class Clock:
    """How much of a part's time is left."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> bool:
        """Whether there is any."""
        return time.monotonic() < self.end


def now(device: torch.device) -> float:
    """The time when all work given to the device so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def trouble(error: Exception, device: torch.device) -> dict[str, Any]:
    """The row of a measurement that failed, so that the others go on."""
    if isinstance(error, torch.OutOfMemoryError):
        return {"skipped": f"out of memory (peak {peak_gb(device)} GB)"}
    traceback.print_exception(error)
    message = " ".join(str(error).split())
    return {"skipped": f"failed: {type(error).__name__}: {message[:300]}".replace("|", "/")}


def attempt(
    add: Add,
    part: str,
    title: str,
    clock: Clock,
    device: torch.device,
    work: Callable[[], dict[str, Any]],
) -> dict[str, Any] | None:
    """Add the row that ``work()`` gives, or why there is none; None then. The others go on."""
    if not clock.left():
        add(part, title, skipped="the part's time was over")
        return None
    clear(device)
    try:
        row = work()
    except Exception as error:
        add(part, title, **trouble(error, device))
        return None
    add(part, title, **row)
    return row


def clear(device: torch.device) -> None:
    """Give a GPU's memory back, and begin a new peak."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.init()  # counters can be reset only once a context is there
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """The most GPU memory since :func:`clear`; None on a CPU."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)


class Book:
    """The rows so far, on disk after each."""

    def __init__(self, out: Path, options: argparse.Namespace):
        self.json = out.with_suffix(".json")
        self.rows: list[dict[str, Any]] = []
        if self.json.is_file():
            self.rows = json.loads(self.json.read_text())["rows"]
        model = build(options.shape, [], torch.device("meta"), options.dtype).model
        self.facts = {
            "shape": options.shape,
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": device_name(options.on),
            "dtype": str(options.dtype).removeprefix("torch."),
            "matmul_tflops": round(options.tflops, 3),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "commit": git_commit(),
            "versions": package_versions(),
            "settings": {
                name: value
                for name, value in vars(options).items()
                if isinstance(value, int | float | str | list | tuple)
            },
        }
        self.json.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, part: str) -> None:
        """Forget what an earlier run measured of this part."""
        self.rows = [row for row in self.rows if row["part"] != part]

    def add(self, part: str, title: str, **values: Any) -> None:
        """One more row, written at once."""
        row = {"part": part, "what": title, **{k: v for k, v in values.items() if v is not None}}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        write_json(self.json, {**self.facts, "rows": self.rows})
