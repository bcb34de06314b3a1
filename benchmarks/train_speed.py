"""Training speed beside HF Trainer's, on the same samples in the same order of size, in one run.

    python -m benchmarks.train_speed --device cuda              # the embedded model, mixture far
    python -m benchmarks.train_speed --device cpu --steps 4 --batch-samples 16

Useful tokens a second: tokens of samples, padding not counted, over the time of the steps after a
warm-up. HF Trainer runs in bfloat16 autocast over float32 weights on a GPU, loss on responses only:
``trainer`` pads each sample to the longest of its batch; words behind it change that: ``grouped``
(samples of like lengths together), ``packed`` (a batch as one row without padding, FlexAttention),
``liger`` (Liger's kernels, where it has them for the model) and ``compiled``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.full_shape import clear, now, peak_gb, trouble
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.models import fused, loading
from bidir_core.models.devices import device_name
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import parse_regime
from bidir_core.train.config import MICRO_TOKENS, OBJECTIVES, FinetuneConfig
from bidir_core.train.data import prepare_data
from bidir_core.train.finetune import make_trainable
from bidir_core.train.loop import Trainer
from bidir_core.train.losses import passes
from bidir_core.train.packing import EncodedSamples, Packer
from bidir_core.train.student import compile_layers, frozen_copy

TRAINER = "trainer"
WAYS = {objective: {"lora", "default", "reduce-overhead"} for objective in OBJECTIVES}
WAYS[TRAINER] = {"grouped", "packed", "liger", "compiled"}


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
        "--micro-tokens", type=int, help="tokens at once, ours (default: by device)"
    )
    parser.add_argument(
        "--peer-micro-samples", type=int, default=64, help="samples at once, HF Trainer's"
    )
    parser.add_argument(
        "--kinds",
        default="3B,3B default,3B reduce-overhead,3C,3B lora,distill,trainer,trainer grouped liger",
        help="what to time: an objective, and any of lora, default, reduce-overhead behind it; "
        "or trainer, and any of grouped, packed, liger, compiled",
    )
    parser.add_argument("--out", help="also write the table as JSON")
    options = parser.parse_args()

    kinds = options.kinds.split(",")
    for kind in kinds:
        first, *others = kind.split()
        if first not in WAYS or set(others) - WAYS[first]:
            parser.error(
                f"--kinds {kind}: give one of {', '.join(WAYS)}, and of their words behind it"
            )
    config = settings(options)
    loaded = loading.load(config.model, device=config.device)
    samples = prepare_data(config, loaded.tokenizer, loaded.max_length).encoded
    on = loaded.device
    name = device_name(on)
    print(
        f"{len(samples)} samples, {options.batch_samples} a step, {loaded.dtype} on {name}, "
        f"torch {torch.__version__}"
    )
    rows = []
    for kind in kinds:
        clear(on)
        time_kind = hf_trainer if kind.startswith(TRAINER) else ours
        try:
            row = time_kind(options, kind, samples)
        except Exception as error:  # the other kinds are worth having
            row = trouble(error, on)
        row["peak_gb"] = peak_gb(on)
        rows.append({"kind": kind, **row})
        print(json.dumps(rows[-1]), flush=True)
    best, theirs = (
        max(
            (
                row.get("tokens_per_second", 0)
                for row in rows
                if row["kind"].startswith(start) and "lora" not in row["kind"]
            ),
            default=0,
        )
        for start in ("3B", TRAINER)
    )
    if best and theirs:
        print(f"3B at its best is {best / theirs:.2f} times HF Trainer at its best")
    if options.out:
        Path(options.out).write_text(json.dumps({"device": name, "rows": rows}, indent=1) + "\n")


def settings(options: argparse.Namespace, kind: str = "3B") -> FinetuneConfig:
    parts = kind.split()
    return FinetuneConfig(
        model=options.model,
        device=options.device,
        data=options.data,
        objective=parts[0],
        method="lora" if "lora" in parts else "full",
        compile=next((p for p in parts if p in ("default", "reduce-overhead")), "none"),
        steps=options.steps,
        batch_samples=options.batch_samples,
        max_tokens=options.max_tokens,
        micro_tokens=options.micro_tokens,
        decontaminate=False,
    )


def ours(options: argparse.Namespace, kind: str, samples: EncodedSamples) -> dict[str, Any]:
    """Steps of our own loop."""
    config = settings(options, kind)
    loaded = loading.load(config.model, device=config.device, attn=config.attn)
    trainer = trainer_of(config, loaded, samples)
    row = time_steps(trainer, options.steps, options.warm_up)
    row.pop("loss_share")
    return row


def trainer_of(config: FinetuneConfig, loaded: LoadedModel, samples: EncodedSamples) -> Trainer:
    """The real loop, without its reports and checkpoints."""
    student = make_trainable(config, loaded)
    base = frozen_copy(student) if config.needs_base else None
    student.model.train()
    if config.compile != "none":
        compile_layers(student)
    packer = Packer(
        samples,
        batch_samples=config.batch_samples,
        row_tokens=min(config.max_tokens, 512),
        micro_tokens=config.micro_tokens or MICRO_TOKENS[loaded.device.type],
        seed=0,
        prefix=config.goal.prefix,
    )
    regime = parse_regime(config.regime or "causal")
    return Trainer(config, student, packer, passes(config.goal, regime, 0.0), base=base)


def time_steps(
    trainer: Trainer, steps: int, warm_up: int, time_left: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Time the steps behind the warm-up, one at least, until no time is ``time_left``."""
    tokens = slots = loss_tokens = timed = 0
    started = clock = now(trainer.device)
    with trainer._packed(0) as planned:
        for number, step in enumerate(planned):
            if number == warm_up:
                clock = now(trainer.device)
                tokens = slots = loss_tokens = 0
            trainer.train_step(step)
            tokens, slots = tokens + step.n_tokens, slots + step.n_slots
            loss_tokens, timed = loss_tokens + step.n_loss, number + 1 - warm_up
            if timed >= min(1, steps - warm_up) and not time_left():
                break
        seconds = now(trainer.device) - clock
    return {
        "tokens_per_second": round(tokens / seconds),
        "ms_per_step": round(1e3 * seconds / timed, 1),
        "timed_steps": timed,
        "padding": round(1 - tokens / slots, 3),
        "warm_up_seconds": round(clock - started, 1),
        "loss": round(float(trainer.sums[0]) / trainer.n_summed, 4),
        "loss_share": loss_tokens / tokens,
    }


def hf_trainer(options: argparse.Namespace, kind: str, samples: EncodedSamples) -> dict[str, Any]:
    """The same samples through transformers' Trainer, in the way that ``kind`` says."""
    loaded = loading.load(options.model, device=options.device, dtype="float32")
    fused.restore(loaded.model)
    with loaded.handle.native():
        row = time_hf_trainer(options, loaded.model.requires_grad_(True), samples, kind)
    row.pop("loss_share")
    return row


def time_hf_trainer(
    options: argparse.Namespace,
    model: Any,
    samples: EncodedSamples,
    kind: str = TRAINER,
    checkpointing: bool = False,
    time_left: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Time HF Trainer's steps behind the warm-up, one at least, until no time is ``time_left``."""
    from transformers import DataCollatorWithFlattening, TrainerCallback, TrainingArguments
    from transformers import Trainer as HfTrainer

    device, steps, warm_up = model.device, options.steps, options.warm_up
    ways = kind.split()
    batch_samples = options.batch_samples
    micro_samples = min(options.peer_micro_samples, batch_samples)
    if "packed" in ways and device.type == "cuda":
        model.set_attn_implementation("flex_attention")  # no dense mask of a long row by itself
    packer = Packer(
        samples, batch_samples=batch_samples, row_tokens=1, micro_tokens=1 << 30, seed=0
    )
    rows = [int(i) for step in range(steps) for i in packer.chosen(step)]
    data = []
    for i in rows:
        ids, n_prompt = samples.sample(i).tolist(), int(samples.n_prompt[i])
        data.append({"input_ids": ids, "labels": [-100] * n_prompt + ids[n_prompt:]})
    pack = DataCollatorWithFlattening()

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "packed" in ways:
            packed = pack(batch)
            return {**packed, "n_tokens": torch.tensor(packed["input_ids"].numel())}
        ids, labels = ([torch.tensor(s[name]) for s in batch] for name in ("input_ids", "labels"))
        mask = pad_sequence([torch.ones_like(tokens) for tokens in ids], batch_first=True)
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": mask,
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "n_tokens": mask.sum(),
        }

    class Counting(HfTrainer):
        """Which samples a step holds is the sampler's choice: their tokens are counted."""

        n_tokens: Any = 0

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
            self.n_tokens = self.n_tokens + inputs.pop("n_tokens")
            return super().training_step(model, inputs, *rest, **named)

    class Clock(TrainerCallback):
        at = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == warm_up:
                self.at, trainer.n_tokens = now(device), 0
            elif state.global_step > warm_up and not time_left():
                control.should_training_stop = True

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.at = now(device)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro_samples,
            gradient_accumulation_steps=max(1, batch_samples // micro_samples),
            gradient_checkpointing=checkpointing,
            max_steps=steps,
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            learning_rate=1e-4,
            logging_steps=10_000,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            dataloader_num_workers=2 if device.type == "cuda" else 0,
            disable_tqdm=True,
            train_sampling_strategy="group_by_length" if "grouped" in ways else "random",
            use_liger_kernel="liger" in ways,
            torch_compile="compiled" in ways,
        )
        trainer = Counting(
            model=model,
            args=arguments,
            train_dataset=data,  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
        seconds = now(device) - clock.at
    timed = trainer.state.global_step - warm_up
    return {
        "tokens_per_second": round(int(trainer.n_tokens) / seconds),
        "ms_per_step": round(1e3 * seconds / timed, 1),
        "timed_steps": timed,
        "loss_share": float(1 - samples.n_prompt[rows].sum() / samples.n_total[rows].sum()),
    }


if __name__ == "__main__":
    main()
