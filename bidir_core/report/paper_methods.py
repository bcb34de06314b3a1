"""A methods text written from what the runs recorded. What they did not record is not said."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.study import CAUSAL, ordered_cells
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.regimes import Regime, parse_regime
from bidir_core.report.paper_latex import TASKS
from bidir_core.report.paper_numbers import Entry, Quantities, lookup
from bidir_core.report.paper_tables import shown_number
from bidir_core.report.tables import same_training
from bidir_core.runs.run import Run
from bidir_core.train.mixtures import SPAN

PACKAGES = {
    "python": "Python", "torch": "PyTorch", "transformers": "transformers",
    "tokenizers": "tokenizers", "accelerate": "accelerate", "peft": "PEFT",
}  # fmt: skip


def methods_text(quantities: Quantities) -> str:
    """Paragraphs of LaTeX."""
    maker = _Methods(quantities)
    found = {
        "Model and tasks": maker.model_and_tasks(),
        "Regimes": maker.regimes(),
        "Computation": maker.computation(),
        "Fine-tuning": training_paragraphs(quantities),
        "Statistics": maker.statistics(),
    }
    return "\n\n".join(
        f"\\paragraph{{{heading}.}} {' '.join(sentences)}"
        for heading, sentences in found.items()
        if sentences
    )


class _Methods:
    def __init__(self, quantities: Quantities):
        self.q, self.study = quantities, quantities.study
        by_seed = list(self.study.cells.values())
        self.runs: list[Run] = [run for by in by_seed for run in by.values()]
        # What this program scored itself; prompts of imported or published numbers are not known.
        self.own = all(
            r.config.get("kind") == "eval" and not r.config.get("source") for r in self.runs
        )

    # --- what was evaluated -----------------------------------------------------------------

    def model_and_tasks(self) -> list[str]:
        q, runs = self.q, self.runs
        model = q.fact("model", runs, "config.json", "config.model", style="code")
        lines = [f"The base model is {model}{self._model_details()}."]
        if self.study.model == EMBEDDED_MODEL and self.own:
            lines.append(
                f"It is {self._name('SmolLM2')}~\\cite{{smollm2}} as the program embeds it: its "
                "weights were de-quantised from a four-bit file, so the numbers are of that model "
                "and not of the original weights."
            )
        lines.append(self._items())
        lines += self._prompts()
        errors = q.total("errors", runs, "metrics.json", "n_errors")
        if errors is not None:
            lines.append(
                f"Over all evaluations {errors} items could not be scored; such an item counts as "
                "wrong in an accuracy and is in no pair."
                if errors.value
                else "Every item could be scored in every evaluation."
            )
        if self.study.floor is not None:
            lines.append(self._floor(self.study.floor))
        return lines

    def _model_details(self) -> str:
        base = list(self.study.runs(self.study.base, CAUSAL).values())
        base = base or [run for run in self.runs if run.settings.get("checkpoint") is None]
        revision = self.q.fact("revision", base, "config.json", "config.revision", style="code")
        print_ = self.q.fact(
            "model-fingerprint", base, "config.json", "model_fingerprint", short, style="code"
        )
        known = [f"revision {revision}"] if revision else []
        known += [f"fingerprint of the weights {print_}"] if print_ else []
        return f" ({', '.join(known)})" if known else ""

    def _items(self) -> str:
        q, run = self.q, self.runs[0]
        named = []
        for task in run.tasks:
            title, key = TASKS.get(task, ("", ""))
            n = q.fact(f"n/{task}", self.runs, "metrics.json", f"tasks.{task}.n", shown_number)
            cite = f"~\\cite{{{key}}}" if key else ""
            many = f" ({n} items)" if n else ""
            named.append(f"{title or q.task(task)}{cite}{many}")
        total = q.fact("n-items", self.runs, "metrics.json", "n_items", shown_number)
        split = q.fact("split", self.runs, "config.json", "config.split", style="code")
        text = f"It was evaluated on {listed(named)}"
        text += f", {total} items in all" if total else ""
        text += f", of the split {split}" if split else ""
        return f"{text}{self._selection()}."

    def _selection(self) -> str:
        settings = self.runs[0].settings
        if "limit" not in settings:
            return ""
        limit = self.q.fact("limit", self.runs, "config.json", "config.limit", shown_number)
        fold = settings.get("fold", "all")
        half = {
            "explore": "the explore half of it, which is meant for choosing recipes",
            "confirm": "the confirm half of it",
        }.get(fold)
        if limit is None:
            return f": {half}, all items" if half else ", all of its items"
        how = {
            "first": f"the first {limit} items a task",
            "stratified": f"{limit} items a task, spread evenly over the kinds of documents",
            "random": f"{limit} items a task, drawn at random{self._seed()}",
        }.get(settings.get("sample", "first"), f"{limit} items a task")
        return f": {how}" + (f", of {half}" if half else "")

    def _seed(self) -> str:
        seed = self.q.fact("item-seed", self.runs, "config.json", "config.seed", shown_number)
        return f" (seed {seed})" if seed else ""

    def _prompts(self) -> list[str]:
        settings = self.runs[0].settings
        lines = []
        built_in = [task for task in self.runs[0].tasks if task in TASKS]
        if self.own and built_in:
            where = "" if len(built_in) == len(self.runs[0].tasks) else " of the named benchmarks"
            lines.append(
                f"Prompts, choices and scoring{where} are those of the LM Evaluation Harness's "
                "tasks~\\cite{lmeval}: each choice's log-likelihood is summed over its tokens, and "
                "the choice with the highest one is the prediction"
                + (
                    "; length-normalised accuracy divides by the choice's characters first."
                    if self.q.metric == "acc_norm"
                    else "."
                )
            )
        elif self.own:
            lines.append(
                "Each choice's log-likelihood is summed over its tokens, and the choice with the "
                "highest one is the prediction."
            )
        said = []
        shots = self.q.fact("shots", self.runs, "config.json", "config.num_fewshot", shown_number)
        if shots is not None:
            said.append("no solved examples" if not shots.value else f"{shots} solved examples")
        template = self._same("config.chat_template")
        if template is not None:
            said.append("the model's chat template" if template else "no chat template")
        bos = self._same("bos_added")
        if bos is not None:
            said.append("a BOS token" if bos else "no BOS token")
        if said:
            lines.append(f"Prompts have {listed(said)}.")
        repeated = self.q.fact(
            "repeats", self.runs, "config.json", "config.repeat_prompt", shown_number
        )
        if repeated is not None and repeated.value != 1:
            lines.append(f"Each prompt is given {repeated} times, joined by blank lines.")
        if settings.get("context") == "shuffled":
            lines.append("Each item was given another item's context.")
        return lines

    def _floor(self, run: Run) -> str:
        dtype = self.q.fact("floor/dtype", [run], "config.json", "dtype", style="text")
        ours = {lookup(one, "config.json", "dtype") for one in self.runs}
        also = f" (computed in {dtype})" if dtype and ours != {dtype.value} else ""
        name = self.q.title("no-context floor", [run.id])
        return (
            f"The {name} is the base model's score on the same items with their contexts "
            f"removed{also}."
        )

    def _same(self, field: str) -> Any:
        values = [lookup(run, "config.json", field) for run in self.runs]
        return values[0] if all(value == values[0] for value in values) else None

    # --- the regimes ------------------------------------------------------------------------

    def regimes(self) -> list[str]:
        q, study = self.q, self.study
        found = dict.fromkeys([CAUSAL, *(regime for _, regime in study.cells)])
        lines = [
            "The prefix is a request's context, all of it; the continuation is what is scored and "
            "is causal in every regime."
        ]
        for regime in found:
            if any(run.regime == regime for run in study.all_runs):
                lines.append(f"Under {q.regime(regime)} {regime_words(q, regime)}.")
        for cell in ordered_cells(study):
            if cell[0] == study.base:
                lines.append(f"The base model under {q.regime(cell[1])} is {q.cell(cell)}.")
        probes = [run for run in study.all_runs if run.probe is not None]
        if probes and all((run.probe or {}).get("passed") is True for run in probes):
            n = q.ledger.add(
                "probes", len(probes), shown_number(len(probes)), [run.id for run in probes],
                statistic="count", file="probe.json", field="passed",
            )  # fmt: skip
            which = f"All {n} runs" if len(probes) == len(study.all_runs) else f"{n} of the runs"
            lines.append(
                f"{which} recorded that a probe of the model's attention, made before scoring or "
                "training, found each layer to attend as the regime says."
            )
        return lines

    # --- with what --------------------------------------------------------------------------

    def computation(self) -> list[str]:
        q, runs = self.q, self.runs
        lines = []
        dtypes = q.facts("dtype", runs, "config.json", "dtype", style="text")
        attention = q.facts("attention", runs, "config.json", "attention", style="code")
        devices = q.facts("device", runs, "metrics.json", "cost.device", style="text")
        how = [f"in {listed(dtypes)}"] if dtypes else []
        how += [f"with the attention implementation {listed(attention)}"] if attention else []
        how += [f"on {listed(devices)}"] if devices else []
        if how:
            lines.append(f"Evaluations were computed {', '.join(how)}.")
        everyone = self.study.all_runs
        versions = []
        for package, title in PACKAGES.items():
            if package == "peft" and not any(r.settings.get("method") == "lora" for r in everyone):
                continue
            found = q.facts(
                f"version/{package}", everyone, "config.json", f"packages.{package}", style="text"
            )
            cite = "~\\cite{transformers}" if package == "transformers" else ""
            versions += [f"{title}{cite} {listed(found)}"] if found else []
        if versions:
            lines.append(f"Software: {', '.join(versions)}.")
        commits = q.facts("commit", everyone, "config.json", "git_commit", short, style="code")
        unknown = [run for run in everyone if not run.config.get("git_commit")]
        if commits:
            rest = "; the other runs did not record theirs" if unknown else ""
            lines.append(f"Commit of the code: {listed(commits)}{rest}.")
        return lines

    # --- statistics -------------------------------------------------------------------------

    def statistics(self) -> list[str]:
        q = self.q
        level = q.constant("confidence", 0.95, "95 %")
        found = q.numbers.contrasts(leaky=False)
        paired = [one for one in found if one.basis == "paired"]
        lines = [
            f"Macro {_metric(q)} is the unweighted mean over tasks. Intervals are {level} intervals."
        ]
        lines.append(
            "A single stage's macro interval is normal, from the tasks' binomial variances"
            + (", with the variance between seeds added." if self._several_seeds() else ".")
        )
        lines += self._paired_words(paired)
        if any(one.basis == "unpaired" for one in found):
            lines.append(
                "Runs without item records are compared by their accuracies alone, with an "
                "unpaired normal interval, which is wider; it is marked where it stands."
            )
        if any(one.above_chance or one.above_floor for one in paired):
            resamples = q.constant("resamples", 10_000, "10,000")
            lines.append(
                "What is kept above a floor is (accuracy minus floor) over (base accuracy minus "
                f"floor), with a percentile bootstrap over items ({resamples} resamples); it is "
                "suppressed where the base model's own interval reaches the floor."
            )
        if any(
            not isinstance(q.interaction(arm), str) for arm in self.study.trained("3B", "distill")
        ):
            lines.append(
                "The interaction is the mean over tasks of a per-item difference of differences, "
                "with a normal interval whose variance by task includes one pseudo-item on either "
                "side."
            )
        margin = q.constant("margin", q.margin, f"{100 * q.margin:g}")
        lines.append(
            f"Two results are called equivalent (``no difference'') only if the whole interval lies "
            f"within {margin} point{'' if q.margin == 0.01 else 's'} of zero, different if it leaves "
            "out zero, and undecided otherwise."
        )
        return lines

    def _paired_words(self, paired: Sequence[Contrast]) -> list[str]:
        if not paired:
            return []
        lines = [
            "Differences are paired item by item: by task with Tango's score "
            "interval~\\cite{tango}, for the macro mean with these intervals combined by the "
            "method of variance estimates recovery~\\cite{mover}."
        ]
        if any(one.n_seeds > 1 for one in paired):
            lines.append(
                "Where an arm has several seeds, differences are means over seeds, with a normal "
                "interval over items to which the variance between seeds is added."
            )
        alpha = self.q.constant("significance", 0.05, "0.05")
        lines.append(
            "By task the discordant items are also tested by McNemar's test~\\cite{mcnemar} in its "
            "exact form, adjusted over the tasks of a contrast by Holm's method~\\cite{holm}; a "
            f"task is called higher or lower only if the adjusted p value is below {alpha}."
        )
        return lines

    def _several_seeds(self) -> bool:
        return any(len(by_seed) > 1 for by_seed in self.study.cells.values())

    def _name(self, text: str) -> str:
        return str(self.q.title(text, self.q.evaluations))


def _metric(q: Quantities) -> str:
    return "accuracy" if q.metric == "acc" else "length-normalised accuracy"


def listed(parts: Iterable[object]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    found = [str(part) for part in parts]
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + " and " + found[-1]


def short(fingerprint: Mapping[str, Any] | str) -> str:
    """The first twelve characters of a hash."""
    return str(fingerprint)[:12]


# A regime in words, with its dials' numbers from the ledger.


def regime_words(quantities: Quantities, text: str) -> str:
    """The end of the sentence "Under <regime> ..."."""
    regime = parse_regime(text)
    if regime.is_causal:
        return "every token sees itself and what precedes it"
    words = "every token sees itself and what precedes it"
    if regime.bidirectional:
        words = (
            "every prefix token sees the whole prefix, and a continuation token sees the prefix "
            "and the continuation up to itself"
        )
    exceptions = [phrase for phrase in _exceptions(quantities, text, regime) if phrase]
    return f"{words}, except that {'; '.join(exceptions)}" if exceptions else words


def _exceptions(quantities: Quantities, text: str, regime: Regime) -> list[str]:
    runs = [run.id for run in quantities.study.all_runs if run.regime == text]

    def dial(name: str, value: float) -> Entry:
        return quantities.ledger.add(
            f"regime/{text}/{name}", value, f"{value:g}", runs,
            statistic="dial", file="config.json", field="config.regime", dial=name,
        )  # fmt: skip

    found = []
    if regime.sink == 1:
        found.append(f"the first {dial('sink', 1)} prefix token stays causal")
    elif regime.sink:
        found.append(f"the first {dial('sink', regime.sink)} prefix tokens stay causal")
    if regime.rows is not None:
        first, last = dial("rows-first", regime.rows[0]), dial("rows-last", regime.rows[1])
        found.append(f"only prefix tokens at positions {first} to {last}, from zero, look ahead")
    if regime.skip is not None:
        found.append(
            f"the prefix token at position {dial('skip', regime.skip)}, from zero, stays causal"
        )
    if regime.self_token is not None:
        found.append(
            f"the prefix token at position {dial('self', regime.self_token)}, from zero, sees only "
            "itself"
        )
    if regime.hide is not None:
        found.append(
            f"no other token sees the prefix token at position {dial('hide', regime.hide)}, from zero"
        )
    if regime.tail:
        found.append(
            f"the last {dial('tail', regime.tail)} prefix tokens are causal and no earlier token "
            "sees them"
        )
    if regime.layers is not None:
        start, end = regime.layers
        upto = f"to {dial('layers-last', end)}" if end is not None else "and up"
        found.append(
            f"layers other than {dial('layers-first', start)} {upto}, from zero, are causal"
        )
    if regime.lam != 1:
        found.append(f"look-ahead scores get the logarithm of {dial('lambda', regime.lam)} added")
    return found


# The paragraph on fine-tuning, from the configs of the fine-tunes and what they read.

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
