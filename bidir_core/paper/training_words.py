"""The paragraph on fine-tuning, from the configs of the fine-tunes and what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bidir_core.paper.ledger import Entry
from bidir_core.paper.quantities import Quantities
from bidir_core.paper.tables import shown_number
from bidir_core.reporting.arms import Arm
from bidir_core.reporting.tables import same_training
from bidir_core.store import Run
from bidir_core.training.decontaminate import SPAN

GOALS = {
    "3B": "its prompt is the prefix, under {regime}; the response is causal, and the loss is the "
    "cross entropy of the response alone",
    "3C": "the control, causal throughout, with the same loss on the response alone",
    "3A": "a leaky exhibit, in which a response token is visible to the place that predicts it; "
    "its numbers are no result and stand in no table",
    "distill": "distillation: the base model's own causal predictions are taught to it under "
    "{regime}, by the KL divergence behind the prompt or a cut in the text",
}


def training_paragraphs(quantities: Quantities) -> list[str]:
    """Sentences, arm by arm; none if no fine-tune is part of the study."""
    lines: list[str] = []
    q, study = quantities, quantities.study
    for arm, by_seed in study.finetunes.items():
        maker = _Training(q, arm, list(by_seed.values()))
        lines += maker.sentences()
    for arm in study.trained("3B"):
        shared, control = same_training(study, arm), study.control_of(arm)
        if shared is not None and control is not None:
            lines.append(f"By their records, {q.arm(arm)} and {q.arm(control)} {shared}.")
    evaluated = [arm for arm in study.arms if arm.code in GOALS and arm not in study.finetunes]
    if evaluated:
        names = ", ".join(str(q.arm(arm)) for arm in evaluated)
        lines.append(f"The training runs of {names} are not at hand, so nothing is said of them.")
    return lines


class _Training:
    """What can be said of one arm: only what all its seeds recorded alike."""

    def __init__(self, quantities: Quantities, arm: Arm, runs: Sequence[Run]):
        self.q, self.arm, self.runs = quantities, arm, runs

    def say(
        self, field: str, *, file: str = "config.json", style: Literal["number", "text", "code"] = "number"
    ) -> Entry | None:  # fmt: skip
        key = f"{self.arm.title}/{field}"
        return self.q.fact(key, self.runs, file, field, shown_number, style=style)

    def sentences(self) -> list[str]:
        goal = GOALS.get(self.arm.code)
        if goal is None:
            return []
        regime = self.say("config.regime", style="code")
        lines = [f"{self.q.arm(self.arm)} is {self._kind()}{goal.format(regime=regime)}."]
        if self.arm.leaky:
            return lines
        lines += [line for line in (self._optimizer(), self._data(), self._amount()) if line]
        return lines

    def _kind(self) -> str:
        return {"3B": "the leakage-safe fine-tune: ", "distill": ""}.get(self.arm.code, "")

    def _optimizer(self) -> str:
        method = self.say("config.method", style="text")
        parts = []
        if method is not None and method.value == "lora":
            rank, alpha = self.say("config.lora_rank"), self.say("config.lora_alpha")
            sizes = [f"rank {rank}"] if rank else []
            sizes += [f"alpha {alpha}"] if alpha else []
            parts.append(f"a LoRA adapter~\\cite{{lora}} ({', '.join(sizes)})")
        elif method is not None:
            parts.append("all weights")
        what = "It trains " + (parts[0] if parts else "the model")
        details = []
        for field, text in (
            ("config.lr", "peak learning rate {}"),
            ("config.warmup_steps", "{} steps of linear warm-up before a cosine"),
            ("config.weight_decay", "weight decay {}"),
            ("config.beta2", "second-moment decay {}"),
            ("config.clip", "gradients clipped at norm {}"),
        ):
            value = self.say(field)
            if value is not None and not (field == "config.clip" and value.value == 0):
                details.append(text.format(value))
        with_ = f" with AdamW~\\cite{{adamw}} ({', '.join(details)})" if details else ""
        return f"{what}{with_}{self._anchor()}."

    def _anchor(self) -> str:
        anchor = self.say("config.causal_anchor")
        if anchor is None or not anchor.value:
            return ""
        return (
            f", with {anchor} times the KL divergence between the base model and itself, both "
            "causal, added to the loss"
        )

    def _data(self) -> str:
        q, data = self.q, self.say("config.data", style="code")
        if data is None:
            return ""
        text = f"Its data are {data}"
        tasks = [run.config.get("training_data", {}).get("tasks") for run in self.runs]
        embedded = all(r.config.get("training_data", {}).get("embedded") is True for r in self.runs)
        if embedded and isinstance(tasks[0], dict) and all(t == tasks[0] for t in tasks):
            n = q.ledger.add(
                f"{self.arm.title}/n-data-tasks", len(tasks[0]), shown_number(len(tasks[0])),
                [r.id for r in self.runs], statistic="count", file="config.json",
                field="training_data.tasks",
            )  # fmt: skip
            text += f", prompts and right answers of {n} tasks other than the evaluated ones"
        read, used = self.say("training_data.n_read"), self.say("training_data.n_used")
        if read and used:
            text += f": of {read} samples {used} were usable"
        reasons = []
        shared = self.say("training_data.n_dropped_contaminated")
        if shared and all(
            r.config.get("training_data", {}).get("decontaminated") for r in self.runs
        ):
            span = q.constant("span", SPAN, str(SPAN))
            reasons.append(
                f"{shared} left out for sharing {span} words in a row, or a whole shorter text, "
                "with an evaluation item"
            )
        longest, long = self.say("config.max_tokens"), self.say("training_data.n_dropped_long")
        if longest and long and long.value:
            reasons.append(f"{long} for exceeding {longest} tokens")
        cut = self.say("training_data.n_truncated")
        if cut and cut.value:
            reasons.append(f"{cut} others lost the beginning of their prompt")
        return text + (f" ({', '.join(reasons)})" if reasons else "") + "."

    def _amount(self) -> str:
        steps, batch = self.say("config.steps"), self.say("config.batch_samples")
        tokens = self.say("tokens", file="metrics.json")
        scored = self.say("loss_tokens", file="metrics.json")
        dtype = self.say("dtype", style="text")
        device = self.say("cost.device", file="metrics.json", style="text")
        if steps is None:
            return ""
        text = f"It ran for {steps} steps"
        text += f" of {batch} samples" if batch else ""
        text += f", {tokens} tokens without padding" if tokens else ""
        text += f", of which {scored} carry the loss" if tokens and scored else ""
        text += f", computed in {dtype}" if dtype else ""
        text += f" on {device}" if device else ""
        seeds = self.q.facts(
            f"{self.arm.title}/seed", self.runs, "config.json", "config.seed", shown_number
        )
        if seeds:
            names = ", ".join(map(str, seeds))
            text += f", with {'seed' if len(seeds) == 1 else 'seeds'} {names}"
        return text + "."
