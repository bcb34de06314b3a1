"""lm-eval's own task objects on documents we hand them: the reference for prompts and scores."""

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from bidir_core.data.items import Item

_YAML = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
}


def lm_eval_task(
    name: str, validation: Dataset, train: Dataset | None = None, num_fewshot: int = 0
) -> Any:
    """lm-eval's task of this name, scoring `validation` and drawing examples from `train`.

    ARC's own yaml scores the test split; here, as in the product, it is the validation split.
    """
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / _YAML[name])
    data = DatasetDict({"validation": validation, "train": train or validation})
    task = ConfigurableTask(
        config=config
        | {"test_split": None, "num_fewshot": num_fewshot, "custom_dataset": lambda **_: data}
    )
    task.set_fewshot_seed(1234)  # what lm-eval's evaluator does by default
    return task


def lm_eval_items(task: Any, limit: int | None = None) -> list[Item]:
    """What lm-eval would score and log, as our items (without the prompt group)."""
    from lm_eval.utils import handle_non_serializable, hash_string

    task.build_all_requests(limit=limit)
    by_doc: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    items = []
    for doc_id, instances in by_doc.items():
        doc = instances[0].doc
        contexts = tuple(i.args[0] for i in instances)
        # A task that puts the choices into the context names the right one there.
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        items.append(
            Item(
                task=task.config.task,
                doc_id=doc_id,
                doc_hash=hash_string(_dump(doc, handle_non_serializable)),
                gold=int(gold),
                contexts=contexts if task.multiple_input else contexts[:1],
                continuations=tuple(i.args[1] for i in instances),
            )
        )
    return items


def _dump(doc: dict, default: Any) -> str:
    """As lm-eval's evaluator writes a document before it hashes it."""
    return json.dumps(doc, indent=2, default=default, ensure_ascii=False)
