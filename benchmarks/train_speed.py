"""Training speed beside HF Trainer's, on the same samples in the same order of size, in one run.

    python -m benchmarks.train_speed --device cuda              # the embedded model, mixture far
    python -m benchmarks.train_speed --device cpu --steps 4 --batch-samples 16

Useful tokens a second: tokens of samples, padding not counted, over the time of the steps after a
warm-up. HF Trainer runs the ordinary way: bfloat16 autocast over float32 weights on a GPU, one
sample a row, padded to the longest of the batch, loss on responses only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bidir_core import models
from bidir_core.config import EMBEDDED_MODEL
from bidir_core.regimes import parse_regime
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.data import prepare_data
from bidir_core.training.encode import EncodedSamples
from bidir_core.training.finetune import MICRO_TOKENS, make_trainable
from bidir_core.training.loop import Trainer
from bidir_core.training.losses import passes
from bidir_core.training.packing import Packer
from bidir_core.training.student import compile_layers, frozen_copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="far")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--batch-samples", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument(
        "--kinds", default="3B,3B compile,3C,3B lora,distill,trainer", help="what to time"
    )
    parser.add_argument("--profile", action="store_true", help="where the time of 3B goes")
    parser.add_argument("--out", help="also write the table as JSON")
    options = parser.parse_args()

    config = settings(options)
    loaded = models.load(config.model, device=config.device)
    samples = prepare_data(config, loaded.tokenizer, loaded.max_length).encoded
    on = loaded.device
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else f"{on}"
    print(
        f"{len(samples)} samples, {options.batch_samples} a step, {loaded.dtype} on {name}, "
        f"torch {torch.__version__}"
    )
    rows = []
    for kind in options.kinds.split(","):
        clear(on)
        row = hf_trainer(options, samples) if kind == "trainer" else ours(options, kind, samples)
        row["peak_gb"] = (
            round(torch.cuda.max_memory_allocated() / 1e9, 1) if on.type == "cuda" else None
        )
        rows.append({"kind": kind, **row})
        print(json.dumps(rows[-1]), flush=True)
    speed = {row["kind"]: row["tokens_per_second"] for row in rows}
    best = max((v for k, v in speed.items() if k.startswith("3B")), default=None)
    if best and "trainer" in speed:
        print(f"3B at its best is {best / speed['trainer']:.2f} times HF Trainer")
    if options.out:
        Path(options.out).write_text(json.dumps({"device": name, "rows": rows}, indent=1) + "\n")


def settings(options: argparse.Namespace, kind: str = "3B") -> FinetuneConfig:
    words = kind.split()
    return FinetuneConfig(
        model=options.model,
        device=options.device,
        data=options.data,
        objective=words[0],
        method="lora" if "lora" in words else "full",
        compile="compile" in words,
        steps=options.steps,
        batch_samples=options.batch_samples,
        max_tokens=options.max_tokens,
        decontaminate=False,
    )


def ours(options: argparse.Namespace, kind: str, samples: EncodedSamples) -> dict[str, Any]:
    """Steps of our own loop, without its reports and checkpoints."""
    config = settings(options, kind)
    loaded = models.load(config.model, device=config.device)
    regime = parse_regime(config.regime or "causal")
    student = make_trainable(config, loaded)
    base = frozen_copy(student) if config.needs_base else None
    student.model.train()
    if config.compile:
        compile_layers(student)
    packer = Packer(
        samples,
        batch_samples=config.batch_samples,
        row_tokens=min(config.max_tokens, 512),
        micro_tokens=config.micro_tokens or MICRO_TOKENS[loaded.device.type],
        seed=0,
        prefix=config.goal.prefix,
    )
    trainer = Trainer(config, student, packer, passes(config.goal, regime, 0.0), base=base)
    tokens = slots = 0
    started = clock = time.monotonic()
    with trainer._packed(0) as steps:
        for number, step in enumerate(steps):
            if number == options.warm_up:
                clock = synchronized(loaded.device)
                tokens = slots = 0
            trainer.train_step(step)
            tokens, slots = tokens + step.n_tokens, slots + step.n_slots
        seconds = synchronized(loaded.device) - clock
    if options.profile and kind == "3B":
        profile(trainer)
    return {
        "tokens_per_second": round(tokens / seconds),
        "ms_per_step": round(1e3 * seconds / (options.steps - options.warm_up), 1),
        "padding": round(1 - tokens / slots, 3),
        "warm_up_seconds": round(clock - started, 1),
        "loss": round(float(trainer.sums[0]) / options.steps, 4),
    }


def profile(trainer: Trainer) -> None:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if trainer.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    made = [trainer.packer.step(n) for n in range(3)]
    with torch.profiler.profile(activities=kinds) as seen:
        for step in made:
            trainer.train_step(step)
        synchronized(trainer.device)
    by = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


def hf_trainer(options: argparse.Namespace, samples: EncodedSamples) -> dict[str, Any]:
    """The same samples through transformers' Trainer."""
    from transformers import Trainer as HfTrainer
    from transformers import TrainerCallback, TrainingArguments

    loaded = models.load(options.model, device=options.device, dtype="float32")
    with loaded.handle.native():
        model = loaded.model.requires_grad_(True)
        packer = Packer(
            samples,
            batch_samples=options.batch_samples,
            row_tokens=options.max_tokens,
            micro_tokens=1 << 30,
            seed=0,
        )
        rows = [int(i) for step in range(options.steps) for i in packer.chosen(step)]
        data = [
            {"input_ids": samples.sample(i).tolist(), "n_prompt": int(samples.n_prompt[i])}
            for i in rows
        ]

        def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            longest = max(len(one["input_ids"]) for one in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for row, one in enumerate(batch):
                tokens = torch.tensor(one["input_ids"])
                n = len(tokens)
                ids[row, :n], mask[row, :n] = tokens, 1
                labels[row, one["n_prompt"] : n] = tokens[one["n_prompt"] :]
            return {"input_ids": ids, "attention_mask": mask, "labels": labels}

        class Clock(TrainerCallback):
            at = 0.0

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == options.warm_up:
                    self.at = synchronized(loaded.device)

        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=options.batch_samples,
                max_steps=options.steps,
                bf16=loaded.device.type == "cuda",
                use_cpu=loaded.device.type == "cpu",
                learning_rate=1e-4,
                logging_steps=10_000,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                dataloader_num_workers=2 if loaded.device.type == "cuda" else 0,
                disable_tqdm=True,
            )
            trainer = HfTrainer(
                model=model,
                args=arguments,
                train_dataset=data,  # type: ignore[arg-type]
                data_collator=collate,
                callbacks=[clock],
            )
            trainer.train()
            seconds = synchronized(loaded.device) - clock.at
    timed = rows[options.warm_up * options.batch_samples :]
    tokens = sum(int(samples.n_total[i]) for i in timed)
    return {
        "tokens_per_second": round(tokens / seconds),
        "ms_per_step": round(1e3 * seconds / (options.steps - options.warm_up), 1),
    }


def clear(device: torch.device) -> None:
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronized(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


if __name__ == "__main__":
    main()
