"""Chat templates: no message loses its text, and no prompt changes with the day."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from bidir_core.analyse.pairing import pair
from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.data import encoding as chat
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item
from bidir_core.evaluate import scoring
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.models.families import tiny_tokenizer
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.data import Columns, prepare_data, read_samples
from tests.tiny_models import save_tiny_model

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }};{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %};{% endfor %}"
)
PARTS_ONLY = "{% for m in messages %}{% if m.content is string %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }}\n" + PLAIN
LOSING = "{% for m in messages %}<{{ m.role }}>{% endfor %}"
WITHOUT_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def prompt_of(template: str, text: str) -> str:
    item = Item("mine", 0, "hash", 0, (text,), (" yes", " no"))
    (encoded,) = Encoder(with_template(template), chat_template=True).encode([item])
    return encoded.contexts[0]


def conversation(folder: Path, *turns: tuple[str, str]) -> str:
    path = folder / "chat.jsonl"
    messages = [{"role": role, "content": content} for role, content in turns]
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("template", [PLAIN, PARTS, PARTS_ONLY + PARTS])
def test_the_question_is_in_the_prompt_whatever_form_the_template_wants(template: str) -> None:
    # "user" is also in what the template writes by itself.
    for text in ("What is two plus two?", "user", "several\n\nlines "):
        assert prompt_of(template, text) == f"<user>{text.strip()};"


@pytest.mark.parametrize("template", [PLAIN, PARTS])
def test_training_prompts_hold_the_messages(template: str, tmp_path: Path) -> None:
    data = conversation(tmp_path, ("system", "Be brief."), ("user", "Why?"), ("assistant", "So."))
    (sample,) = read_samples(data, Columns(), with_template(template), True)
    assert sample.prompt == "<system>Be brief.;<user>Why?;"
    assert sample.response == "<assistant>So.;"


def test_training_prompts_have_the_recorded_date(tmp_path: Path) -> None:
    data = conversation(tmp_path, ("user", "Why?"), ("assistant", "So."))
    tokenizer = with_template(DATED)
    (sample,) = read_samples(data, Columns(), tokenizer, True)
    assert sample.prompt == "26 Jul 2024\n<user>Why?;"
    config = FinetuneConfig(
        model="m", objective="3B", data=data, chat_template=True, decontaminate=False
    )
    assert prepare_data(config, tokenizer, 2048).report["chat_date"] == "2024-07-26"


def test_a_template_that_loses_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leaves out the text of message 1 of 1 \(user's\)"):
        prompt_of(LOSING, "What is two plus two?")
    data = conversation(tmp_path, ("user", "Why?"), ("assistant", "So."))
    with pytest.raises(UserError, match="leaves out the text"):
        read_samples(data, Columns(), with_template(LOSING), True)
    data = conversation(tmp_path, ("system", "Be brief."), ("user", "Why?"), ("assistant", "So."))
    with pytest.raises(UserError, match=r"line 1: .*message 1 of 2 \(system's\)"):
        read_samples(data, Columns(), with_template(WITHOUT_SYSTEM), True)


def test_a_template_that_never_ends_is_given_up(tmp_path: Path, monkeypatch) -> None:
    """With the question that every template is tried with, or with a longer text only."""
    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    later = f"{PLAIN}{{% if messages[0].content|length > 900 %}}{endless}{{% endif %}}"
    for template, text in ((endless, "Why?"), (later, "why " * 300)):
        with pytest.raises(UserError, match="took longer than"):
            prompt_of(template, text)
        data = conversation(tmp_path, ("user", text), ("assistant", "So."))
        with pytest.raises(UserError, match="took longer than"):
            read_samples(data, Columns(), with_template(template), True)


def test_reasoning_that_a_template_leaves_out_of_earlier_answers_is_not_missed(tmp_path):
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{% endfor %}"
    )
    data = conversation(
        tmp_path,
        ("user", "One?"),
        ("assistant", "<think>hm</think>Two."),
        ("user", "And?"),
        ("assistant", "Three."),
    )
    (sample,) = read_samples(data, Columns(), with_template(template), True)
    assert sample.prompt == "<user>One?<assistant>Two.<user>And?"


def on_day(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Set the clock that templates read."""

    class Clock:
        @staticmethod
        def now() -> Any:
            return SimpleNamespace(strftime=lambda _: day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    chat_template_utils._compile_jinja_template.cache_clear()


@pytest.fixture
def dated_model(tmp_path: Path) -> str:
    folder = save_tiny_model(tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_prompts_of_a_template_with_a_date_are_the_same_on_any_day(
    dated_model: str, own_items: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of two days pair, and a run that goes on the next day keeps one prompt."""
    config = EvalConfig(
        model=dated_model, tasks=(str(own_items),), chat_template=True, device="cpu"
    )
    on_day(monkeypatch, "the first day")
    first = Run(evaluate(config))
    assert first.config["chat_date"] == "2024-07-26"

    begin, done = scoring.Scorer.begin, []

    def stop(self: Any, items: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(items)
        return begin(self, items)

    words = ["eval", "--model", dated_model, "--tasks", str(own_items), "--chat-template"]
    words += ["--device", "cpu", "--batch-tokens", "300", "--prefill-bidirectional"]
    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scorer, "begin", stop)
        assert main(words) == 130
    on_day(monkeypatch, "the second day")
    (folder,) = (runs_dir / "stage2_prefill_bidir_eval").iterdir()
    assert 0 < len(Run(folder).items()) < 60
    assert main(["eval", "--resume", str(folder)]) == 0
    second = Run(folder)
    contexts = [run.items(["contexts"])["contexts"].map(tuple).tolist() for run in (first, second)]
    assert contexts[0] == contexts[1]
    assert all(text.startswith("26 Jul 2024\n<user>") for (text,) in contexts[0])
    assert pair(first, second).n == 60


def test_a_run_that_did_not_record_its_date_goes_on_with_the_day_it_began(
    dated_model: str, own_items: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, items: Any) -> Any:
        raise KeyboardInterrupt

    words = ["eval", "--model", dated_model, "--tasks", str(own_items), "--chat-template"]
    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scorer, "begin", stop)
        assert main([*words, "--device", "cpu"]) == 130
    (folder,) = (runs_dir / "stage1_vanilla_eval").iterdir()
    config = json.loads((folder / "config.json").read_text())
    del config["chat_date"]
    (folder / "config.json").write_text(json.dumps(config))
    older = folder.rename(folder.with_name("20260301-120000"))
    assert main(["eval", "--resume", str(older)]) == 0
    assert Run(older).items(["contexts"])["contexts"][0][0].startswith("01 Mar 2026\n")
