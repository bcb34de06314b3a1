"""The training loop: steps, reports, checkpoints, and a clean stop."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bidir_core.common.errors import UserError
from bidir_core.common.progress import LOG, Progress
from bidir_core.runs.curve import append_curve, cut_curve
from bidir_core.train.checkpoints import (
    load_newest,
    random_states,
    save_checkpoint,
    set_random_states,
)
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.losses import Pass, loss_terms
from bidir_core.train.optimizer import MasterAdamW, learning_rate
from bidir_core.train.packing import Packer, Step, TrainBatch
from bidir_core.train.replay import Replay, fill
from bidir_core.train.student import Student

_AHEAD = 4  # steps that are packed before the model asks for them


@dataclass
class Counters:
    """What has been done so far; part of every checkpoint."""

    step: int = 0
    tokens: int = 0
    slots: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0  # of training alone: without evaluations and checkpoints
    last: dict[str, float] = field(default_factory=dict)  # the newest line's losses


class Stopped(KeyboardInterrupt):
    """Asked to stop by a signal; the run was checkpointed and can be resumed."""


class Trainer:
    """Runs the steps of one fine-tune. Build it, maybe :meth:`restore`, then :meth:`run`."""

    def __init__(
        self,
        config: FinetuneConfig,
        student: Student,
        packer: Packer,
        plan: list[Pass],
        *,
        base: Student | None = None,
        sharded: bool = False,
        accelerator: Any = None,
        folder: Path | None = None,
        heartbeat: Callable[..., None] | None = None,
        quick_eval: Callable[[], dict[str, Any]] | None = None,
    ):
        """``folder``: the run's, None in all processes but the main one. ``quick_eval`` returns
        scores by regime. ``sharded``: the weights are spread over the processes (FSDP)."""
        self.config, self.student, self.packer, self.plan = config, student, packer, plan
        self.base, self.accelerator, self.folder = base, accelerator, folder
        self.heartbeat, self.quick_eval, self.sharded = heartbeat, quick_eval, sharded
        self.device = next(student.model.parameters()).device
        trained = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        self.optimizer = MasterAdamW(trained, config)
        self.counters = Counters()
        # Sums since the last report stay on the device: reading one would wait for the GPU.
        self.sums = torch.zeros(len(plan) + 1, device=self.device)
        self.n_summed = 0
        self.replay = None
        if config.compile == "reduce-overhead":
            self.optimizer.keep_gradients()
            self.replay = Replay(self._backward, self.device)

    # --- one step ---------------------------------------------------------------------------

    def train_step(self, step: Step) -> None:
        """Forward, backward and update for one step; changes nothing but weights and counters."""
        for batch in step.batches:
            if self.replay is not None:
                self.replay(batch, step.n_loss)
            else:
                self._backward(batch.to(self.device), step.n_loss)
        if not self._alone and not self.sharded:
            for gradient in self.optimizer.gradients():
                torch.distributed.all_reduce(gradient)
        norm = self.optimizer.step(learning_rate(self.config, self.counters.step))
        self.sums[-1] += norm
        self.n_summed += 1
        self.counters.step += 1
        self.counters.tokens += step.n_tokens
        self.counters.slots += step.n_slots
        self.counters.loss_tokens += step.n_loss

    def _backward(self, batch: TrainBatch, n_loss: int | torch.Tensor) -> None:
        """Add one micro-batch's gradients and losses to the step's. Waits for nothing."""
        for index, (pass_, losses) in enumerate(
            loss_terms(self.student, batch, self.plan, self.base)
        ):
            loss = losses.sum() / n_loss
            (loss * pass_.weight).backward()
            self.sums[index] += loss.detach()
        self.optimizer.collect()

    # --- the run ----------------------------------------------------------------------------

    def run(self) -> Counters:
        """Train to the last step. Raises Stopped after a signal, with a checkpoint on disk."""
        config, counters = self.config, self.counters
        self.student.model.train()
        progress = Progress(
            config.steps,
            done=counters.step,
            unit="step",
            title=f"{config.objective} {config.regime}",
            report=self._heartbeat,
            shown=self.folder is not None,
        )
        if counters.step == 0:
            self._evaluate()
        with stop_signals() as signals, self._packed(counters.step) as steps:
            mark = self._now()
            for step in steps:
                self.train_step(step)
                n_done = counters.step
                is_last = n_done == config.steps
                report = is_last or n_done % config.log_every == 0
                save = bool(config.checkpoint_every) and n_done % config.checkpoint_every == 0
                evaluate = bool(config.eval_every) and (is_last or n_done % config.eval_every == 0)
                stop = self._stop_requested(signals) if report or self._alone else False
                if report or save or evaluate or stop:
                    counters.seconds, mark = counters.seconds + self._now() - mark, self._now()
                    if report:
                        self._report()
                    if evaluate:
                        self._evaluate()
                    if (save and not is_last) or stop:
                        self.save()
                    mark = self._now()
                progress.advance(1)
                if stop and not is_last:
                    progress.close()
                    raise Stopped(f"stopped by {signals[0].name} after step {n_done}")
        progress.close()
        return counters

    @contextmanager
    def _packed(self, first_step: int) -> Iterator[Iterator[Step]]:
        """Steps from ``first_step`` on, packed ahead by one thread into pinned memory."""

        def pack(step: int) -> Step:
            packed = self.packer.step(step)
            if self.config.compile != "none":  # few shapes
                packed = packed._replace(batches=[fill(batch) for batch in packed.batches])
            if self.device.type != "cuda":
                return packed
            # From page-locked memory, copies to a GPU run beside the work.
            return packed._replace(
                batches=[batch.map(torch.Tensor.pin_memory) for batch in packed.batches]
            )

        with ThreadPoolExecutor(1) as pool:
            numbers = iter(range(first_step, self.config.steps))
            waiting: list[Future[Step]] = [
                pool.submit(pack, n) for n in itertools.islice(numbers, _AHEAD)
            ]

            def steps() -> Iterator[Step]:
                while waiting:
                    packed = waiting.pop(0).result()
                    for n in itertools.islice(numbers, 1):
                        waiting.append(pool.submit(pack, n))
                    yield packed

            try:
                yield steps()
            finally:
                pool.shutdown(cancel_futures=True)

    # --- reports ----------------------------------------------------------------------------

    def _report(self) -> None:
        sums = self.sums
        if not self._alone:
            sums = sums.clone()
            torch.distributed.all_reduce(sums[:-1])  # each process summed its own tokens
        values = (sums / max(1, self.n_summed)).tolist()
        self.sums.zero_()
        self.n_summed = 0
        counters = self.counters
        names = [*(pass_.name for pass_ in self.plan), "grad_norm"]
        counters.last = {name: round(value, 6) for name, value in zip(names, values)}
        self._check_finite(values)
        rate = counters.tokens / counters.seconds if counters.seconds else 0.0
        line = {
            "step": counters.step,
            "tokens": counters.tokens,
            "loss_tokens": counters.loss_tokens,
            "seconds": round(counters.seconds, 3),
            **counters.last,
            "lr": learning_rate(self.config, counters.step - 1),
            "tokens_per_second": round(rate, 1),
        }
        if self.folder is not None:
            append_curve(self.folder, line)
            text = "  ".join(f"{name} {value:.4f}" for name, value in counters.last.items())
            LOG.info("step %d/%d  %s  %.0f tokens/s", counters.step, self.config.steps, text, rate)
        if self.accelerator is not None:
            self.accelerator.log({k: v for k, v in line.items() if k != "step"}, counters.step)

    def _check_finite(self, values: list[float]) -> None:
        if not all(math.isfinite(value) for value in values):
            raise UserError(
                f"the loss or its gradient is not finite at step {self.counters.step}; start again "
                f"with a lower --lr than {self.config.lr} or with --dtype float32"
            )

    def _evaluate(self) -> None:
        if self.quick_eval is None:
            return
        scores = self.quick_eval()
        if self.folder is None:
            return
        counters = self.counters
        line = {"step": counters.step, "tokens": counters.tokens}
        append_curve(self.folder, {**line, "seconds": round(counters.seconds, 3), "evals": scores})
        for regime, row in scores.items():
            LOG.info("step %d  %s: macro acc %.4f", counters.step, regime, row["acc"])
            if self.accelerator is not None:
                named = {f"{regime}/{key}": row[key] for key in ("acc", "acc_norm", "gold_prob")}
                self.accelerator.log(named, counters.step)

    def _heartbeat(self, done: int, total: int, **extra: Any) -> None:
        if self.heartbeat is not None:
            rate = self.counters.tokens / self.counters.seconds if self.counters.seconds else None
            self.heartbeat(done, total, **extra, **self.counters.last, tokens_per_second=rate)

    # --- checkpoints ------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this moment (in the main process)."""
        main = self.folder is not None
        if main:
            self._check_finite(self.sums.tolist())  # never over a good checkpoint
        elif not self.sharded:
            return
        optimizer_tensors = self.optimizer.tensors(keep=main)
        if self.folder is None:
            return
        tensors = {
            **optimizer_tensors,
            **random_states(self.device),
            "sums": self.sums,
        }
        state = {**vars(self.counters), "n_summed": self.n_summed}
        save_checkpoint(self.folder, self.counters.step, tensors, state)

    def restore(self, folder: Path) -> int:
        """Go back to the newest complete checkpoint of a run; returns its step, 0 if none."""
        checkpoint = load_newest(folder)
        if checkpoint is None:
            if self.folder is not None:
                cut_curve(folder, -1)
            return 0
        self.optimizer.load_tensors(checkpoint.tensors)
        set_random_states(checkpoint.tensors, self.device)
        self.sums.copy_(checkpoint.tensors["sums"])
        state = dict(checkpoint.state)
        self.n_summed = state.pop("n_summed")
        self.counters = Counters(**state)
        if self.folder is not None:
            cut_curve(folder, checkpoint.step)
        return checkpoint.step

    # --- processes --------------------------------------------------------------------------

    @property
    def _alone(self) -> bool:
        return self.accelerator is None or self.accelerator.num_processes == 1

    def _stop_requested(self, signals: list[signal.Signals]) -> bool:
        """Whether any process was asked to stop: all must stop at the same step."""
        if self._alone:
            return bool(signals)
        flag = torch.tensor([float(bool(signals))], device=self.device)
        torch.distributed.all_reduce(flag)
        if flag.item() and not signals:
            signals.append(signal.SIGTERM)
        return bool(flag.item())

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGTERM and SIGINT instead of dying in the middle of a step.

    The second signal of a kind acts at once, as it would have without this.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handled = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in handled}

    def receive(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, previous[signal.Signals(number)])

    for number in handled:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, previous[number])
