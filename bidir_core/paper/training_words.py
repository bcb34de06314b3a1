"""The paragraph on fine-tuning, from the configs of the fine-tunes and what they read.

What all of them share is said once, of "every fine-tune"; the rest is said arm by arm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from bidir_core.paper.ledger import Entry
from bidir_core.paper.quantities import Quantities
from bidir_core.paper.tables import shown_number
from bidir_core.reporting.run_tables import same_training
from bidir_core.store import Run
from bidir_core.training.decontaminate import SPAN

GOALS = {
    "3B": "is the leakage-safe fine-tune: its prompt is the prefix, under {regime}; the response "
    "is causal, and the loss is the cross entropy of the response alone",
    "3C": "is the control: causal throughout, with the loss on the response alone",
    "distill": "is distilled: the base model's own causal predictions are taught to it under "
    "{regime}, by the KL divergence behind the prompt or a cut in the text",
}
_OPTIMIZER = {
    "config.lr": "peak learning rate {}",
    "config.warmup_steps": "{} steps of linear warm-up before a cosine",
    "config.weight_decay": "weight decay {}",
    "config.beta2": "second-moment decay {}",
    "config.clip": "gradients clipped at norm {}",
}


def training_paragraphs(quantities: Quantities) -> list[str]:
    """Sentences; none if no fine-tune is part of the study."""
    q, study = quantities, quantities.study
    told = {arm: list(runs.values()) for arm, runs in study.finetunes.items() if arm.code in GOALS}
    lines = []
    for arm, runs in told.items():
        regime = _Recipe(q, arm.title, runs).say("config.regime", style="code")
        anchor = _Recipe(q, arm.title, runs).say("config.causal_anchor")
        goal = GOALS[arm.code].format(regime=regime or "its regime")
        if anchor is not None and anchor.value:
            goal += (
                f"; {anchor} times the KL divergence of its causal predictions from the base "
                "model's is added to the loss"
            )
        lines.append(f"{q.arm(arm)} {goal}.")
    shared: set[str] = set()
    if len(told) > 1:
        everyone = _Recipe(q, "every fine-tune", [run for runs in told.values() for run in runs])
        lines += everyone.sentences("Every fine-tune")
        shared = everyone.said
    for arm, runs in told.items():
        lines += _Recipe(q, arm.title, runs, shared).sentences(str(q.arm(arm)))
    for arm in study.trained("3B"):
        same, control = same_training(study, arm), study.control_of(arm)
        if same is not None and control is not None:
            lines.append(f"By their records, {q.arm(arm)} and {q.arm(control)} {same}.")
    for arm in study.trained("3A"):
        lines.append(
            f"{q.arm(arm)} is a leaky fine-tune, in which a response token was visible to the "
            "place that had to predict it; its numbers are no result and stand in no table of "
            "results."
        )
    unknown = [arm for arm in study.trained(*GOALS) if arm not in study.finetunes]
    if unknown:
        names = ", ".join(str(q.arm(arm)) for arm in unknown)
        lines.append(f"The records of how {names} was trained are not at hand.")
    return lines


class _Recipe:
    """What can be said of some runs: only what all of them recorded alike, each fact once."""

    def __init__(
        self, quantities: Quantities, name: str, runs: Sequence[Run], skip: Collection[str] = ()
    ):
        self.q, self.name, self.runs, self.skip = quantities, name, runs, skip
        self.said: set[str] = set()

    def say(
        self,
        field: str,
        *,
        file: str = "config.json",
        style: Literal["number", "text", "code"] = "number",
    ) -> Entry | None:
        if field in self.skip:
            return None
        key = f"{self.name}/{field}"
        found = self.q.fact(key, self.runs, file, field, shown_number, style=style)
        if found is not None:
            self.said.add(field)
        return found

    def sentences(self, subject: str) -> list[str]:
        found = (self._optimizer(subject), self._data(subject), self._amount(subject))
        return [line for line in found if line]

    def _optimizer(self, subject: str) -> str:
        method = self.say("config.method", style="text")
        details = []
        for field, text in _OPTIMIZER.items():
            value = self.say(field)
            if value is not None and not (field == "config.clip" and value.value == 0):
                details.append(text.format(value))
        what = self._method(method)
        how = f" ({', '.join(details)})" if details else ""
        if "config.beta2" in self.said:
            return (
                f"{subject} {what or 'uses'}{' with' if what else ''} AdamW~\\cite{{adamw}}{how}."
            )
        if what:
            return f"{subject} {what}{how}."
        return f"{subject} has {', '.join(details)}." if details else ""

    def _method(self, method: Entry | None) -> str:
        if method is None:
            return ""
        if method.value != "lora":
            return "trains all weights"
        rank, alpha = self.say("config.lora_rank"), self.say("config.lora_alpha")
        sizes = ([f"rank {rank}"] if rank else []) + ([f"alpha {alpha}"] if alpha else [])
        return "trains a LoRA adapter~\\cite{lora}" + (f" of {', '.join(sizes)}" if sizes else "")

    def _data(self, subject: str) -> str:
        data = self.say("config.data", style="code")
        if data is None:
            return ""
        text = f"{subject} is trained on {data}{self._mixture()}"
        read, used = self.say("training_data.n_read"), self.say("training_data.n_used")
        if read and used:
            text += f"; of its {read} samples {used} were usable"
        reasons = []
        shared = self.say("training_data.n_dropped_contaminated")
        if shared and all(_training_data(run).get("decontaminated") for run in self.runs):
            span = self.q.constant("span", SPAN, str(SPAN))
            reasons.append(
                f"{shared} were left out for sharing {span} words in a row, or a whole shorter "
                "text, with an evaluation item"
            )
        longest, long = self.say("config.max_tokens"), self.say("training_data.n_dropped_long")
        if longest and long and long.value:
            reasons.append(f"{long} for exceeding {longest} tokens")
        cut = self.say("training_data.n_truncated")
        if cut and cut.value:
            reasons.append(f"{cut} of the usable ones lost the beginning of their prompt")
        return text + (f" ({', '.join(reasons)})" if reasons else "") + "."

    def _mixture(self) -> str:
        """What an embedded mixture is made of."""
        tasks = [_training_data(run).get("tasks") for run in self.runs]
        embedded = all(_training_data(run).get("embedded") is True for run in self.runs)
        if not embedded or not isinstance(tasks[0], dict) or any(t != tasks[0] for t in tasks):
            return ""
        n = self.q.ledger.add(
            f"{self.name}/n-data-tasks", len(tasks[0]), shown_number(len(tasks[0])),
            [run.id for run in self.runs], statistic="count", file="config.json",
            field="training_data.tasks",
        )  # fmt: skip
        return f", prompts and right answers of {n} tasks other than the evaluated ones"

    def _amount(self, subject: str) -> str:
        steps, batch = self.say("config.steps"), self.say("config.batch_samples")
        tokens = self.say("tokens", file="metrics.json")
        scored = self.say("loss_tokens", file="metrics.json")
        counts = []
        if steps:
            counts.append(f"{steps} steps" + (f" of {batch} samples" if batch else ""))
        if tokens:
            counts.append(f"{tokens} tokens without padding")
        if scored:
            counts.append(f"{scored} tokens that carry the loss")
        dtype = self.say("dtype", style="text")
        device = self.say("cost.device", file="metrics.json", style="text")
        how = [f"in {dtype}"] if dtype else []
        how += [f"on {device}"] if device else []
        if "config.seed" not in self.skip:
            seeds = self.q.facts(
                f"{self.name}/seed", self.runs, "config.json", "config.seed", shown_number
            )
            if len(seeds) == 1 or (seeds and self.name != "every fine-tune"):
                self.said.add("config.seed")
                names = ", ".join(map(str, seeds))
                how.append(f"with {'seed' if len(seeds) == 1 else 'seeds'} {names}")
        if not counts and not how:
            return ""
        if scored and len(counts) == 1 and not how:
            return f"The loss of {subject} is taken over {scored} tokens."
        return f"{subject} {'took' if counts else 'ran'} {', '.join([*counts, *how])}."


def _training_data(run: Run) -> dict[str, object]:
    value = run.config.get("training_data")
    return value if isinstance(value, dict) else {}
