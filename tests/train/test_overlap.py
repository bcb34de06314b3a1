"""A checkpoint is not evaluated on what it was trained on."""

import pytest

from bidir_core.common.errors import UserError
from bidir_core.data.builtin_tasks import ORDER_TASKS
from bidir_core.data.tasks import PUBLISHED_TASKS
from bidir_core.evaluate.run_scoring import refuse_trained_tasks, same_name_sentences
from bidir_core.runs.run import Run

# By what each task is refused: its name, or for an order task the documents that it asks about.
ASKS = {task: task for task in PUBLISHED_TASKS} | {
    name: task.data.folder for name, task in ORDER_TASKS.items()
}


@pytest.mark.parametrize(
    ("sources", "refused"),
    [
        (["hub:ybisk/piqa"], {"piqa"}),
        (["hub:Rowan/hellaswag@x:train"], {"hellaswag"}),
        (["winogrande_train.jsonl"], {"winogrande"}),
        (["hub:allenai/ai2_arc@ARC-Easy"], {"arc_easy"}),
        (["hub:allenai/ai2_arc@ARC-Challenge:train"], {"arc_challenge"}),
        (["hub:allenai/ai2_arc"], {"arc_easy", "arc_challenge"}),
        (["search_qa", "my_samples.jsonl"], set()),
        (["boolq", "coqa", "sciq"], {"sciq", "boolq"}),  # near
        (["boolq", "coqa", "sciriff_yesno"], {"boolq"}),  # far
        (["coqa", "sciriff_yesno"], set()),  # farther
        (["hub:allenai/sciq:train"], {"sciq"}),
        (["hub:google/boolq"], {"boolq"}),
    ],
)
def test_built_in_tasks_under_all_their_names(sources, refused):
    for name, asked in ASKS.items():
        record = {"trained_tasks": sources}
        if asked in refused:
            with pytest.raises(UserError, match=f"was trained on.*'{name}' would say nothing"):
                refuse_trained_tasks([name], record)
        else:
            refuse_trained_tasks([name], record)


def test_a_users_own_task_file_by_its_name():
    with pytest.raises(UserError, match="my_samples"):
        refuse_trained_tasks(
            ["piqa", "data/my_samples.jsonl"], {"trained_tasks": ["my_samples.jsonl"]}
        )
    refuse_trained_tasks(["data/other.jsonl"], {"trained_tasks": ["my_samples.jsonl"]})
    refuse_trained_tasks(["piqa"], None)
    refuse_trained_tasks(["piqa"], {})


def test_evaluate_refuses_what_was_trained_on_and_says_what_has_its_name(
    tiny_folder, jsonl, own_items, tmp_path
):
    from bidir_core.evaluate.config import EvalConfig
    from bidir_core.evaluate.evaluate import evaluate
    from bidir_core.train.finetune import run_finetune
    from tests.train.test_resume import config

    jsonl = jsonl.rename(jsonl.with_name("piqa_train.jsonl"))
    run = run_finetune(config(tiny_folder, jsonl, tmp_path, steps=2))

    with pytest.raises(UserError, match=r"trained on .piqa_train\.jsonl"):
        evaluate(EvalConfig(model=str(tiny_folder), checkpoint=str(run), tasks=("piqa",)))

    another = tmp_path / "mine" / jsonl.name
    another.parent.mkdir()
    another.write_bytes(own_items.read_bytes())
    path = evaluate(
        EvalConfig(
            model=str(tiny_folder),
            checkpoint=str(run),
            tasks=(str(another),),
            runs_dir=str(tmp_path),
        )
    )
    assert any("another file of the name" in one for one in Run(path).config["warnings"])


def test_another_file_of_the_same_name_is_evaluated_and_said():
    """A training file and a task, both called train.jsonl, in two folders."""
    record = {"trained_tasks": ["train.jsonl"], "data": "/there/train.jsonl"}
    refuse_trained_tasks(["/here/train.jsonl"], record)
    (sentence,) = same_name_sentences(["/here/train.jsonl", "piqa"], record)
    assert "/there/train.jsonl" in sentence
    with pytest.raises(UserError, match="was trained on"):
        refuse_trained_tasks(["/there/train.jsonl"], record)
    assert same_name_sentences(["/there/train.jsonl"], record) == []
