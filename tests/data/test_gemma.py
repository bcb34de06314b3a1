"""The second embedded model: its tokenizer, held against SentencePiece's rules written down slowly.

The fault to catch: read as a Unigram model (as transformers' own conversion does), the same tables
give other tokens, and the model answers at chance. The builder is tested on small tables; what
needs the real model is skipped where it is not in the cache (238 MB, under terms of its own).
"""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidir_core.data import assets, gguf
from bidir_core.data.assets import EMBEDDED_MODELS
from bidir_core.data.encoding import Encoder
from bidir_core.data.gguf import CONTROL, GEMMA, NORMAL, SPACE, USER_DEFINED
from bidir_core.data.items import Item
from bidir_core.data.tasks import load_items
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.jobs.cost_model import shape_of
from bidir_core.runs.run import Run
from tests.sentencepiece_reference import SlowBpe

Tables = tuple[list[str], list[float], list[int]]


def small_tables() -> Tables:
    """Tables of Gemma's make: tokens that stand for themselves, bytes, pieces, single characters."""
    rng = random.Random(7)
    alphabet = [SPACE, *"abcdeQu1?"]
    pieces = list(alphabet)
    while len(pieces) < 70:
        piece = rng.choice(pieces) + rng.choice(pieces)
        if piece not in pieces and len(piece) < 8 and SPACE not in piece[1:]:
            pieces.append(piece)
    made = pieces[len(alphabet) :] + alphabet  # as in the real file, single characters come last
    rows: list[tuple[str, float, int]] = []
    for kind, names in (
        (CONTROL, ("<pad>", "<eos>", "<bos>", "<unk>", "<unused0>")),
        (USER_DEFINED, ("\n", "\n\n", "  ", "   ", "<b>", "\t")),
    ):
        rows += [(name, -1000.0, kind) for name in names]
    rows += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    rows += [(piece, -float(rank), NORMAL) for rank, piece in enumerate(made)]
    tokens, scores, kinds = (list(column) for column in zip(*rows))
    return tokens, scores, kinds  # type: ignore[return-value]


BYTE = 6  # GGUF's kind of a token that stands for a byte
TABLES = small_tables()
SLOW = SlowBpe(*TABLES)
IDS = {"bos": 2, "eos": 1, "padding": 0}
FAST = gguf.tokenizer_of(*TABLES, special_ids=IDS, max_length=100)
TEXTS = st.text(alphabet="abcdeQu1?     \n\t\ré東\U00013000<>", max_size=40) | st.lists(
    st.sampled_from(["a", "ab", "<b>", "  ", " ", "\n", "b", "cd", "é", "<0x41>", "<unused0>"])
).map("".join)


@settings(derandomize=True, max_examples=150)
@given(TEXTS)
def test_the_fast_tokenizer_follows_the_slow_rules(text: str) -> None:
    encoded = FAST(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    assert ids == [2, *SLOW.encode(text)]
    assert FAST.decode(ids) == "<bos>" + text
    # The tokens of a text cover all its characters, in order.
    assert offsets[0] == (0, 0)
    covered = [at for start, end in dict.fromkeys(offsets[1:]) for at in range(start, end)]
    assert covered == list(range(len(text)))


def test_control_tokens_bos_and_specials() -> None:
    assert FAST("<eos>a")["input_ids"][:2] == [2, 1]
    assert FAST("a", add_special_tokens=False)["input_ids"] == SLOW.encode("a")
    assert (FAST.bos_token, FAST.eos_token, FAST.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert FAST.decode(FAST("a b")["input_ids"], skip_special_tokens=True) == "a b"


def test_one_bos_in_front_of_prefixes_and_none_of_continuations() -> None:
    item = Item("t", 0, "hash", 0, ("a b",), (" a", " b"))
    for bos, lead in (("auto", [2]), ("add", [2]), ("none", [])):
        encoder = Encoder(FAST, bos=bos)  # type: ignore[arg-type]
        (encoded,) = encoder.encode([item])
        assert encoded.prefixes[0].ids.tolist() == [*lead, *SLOW.encode("a b")]
        assert encoded.continuations[0].ids.tolist() == SLOW.encode("a b a")[-1:]
        assert encoder.bos_added([encoded]) is bool(lead)


def test_embedded_models_are_assets_whose_size_is_known() -> None:
    for name in EMBEDDED_MODELS:
        assert assets.of_model(name) == [name]
        assert shape_of(name)
        assert assets.find(name).name == name
    assert assets.of_model("some/model") == []


# -- the real one, where it is in the cache -----------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Path:
    if assets.state("gemma3-270m") != "ready":
        pytest.skip(
            "gemma3-270m is not in the cache (238 MB, Gemma terms); "
            "python -m bidir_core assets fetch gemma3-270m"
        )
    return assets.find("gemma3-270m").folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.assets
def test_the_real_tokenizer_follows_the_slow_rules(tokenizer: Any) -> None:
    # Pieces lie in the file in the order of their scores, so their ids tell the scores.
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = tokenizer.added_tokens_decoder
    ours = [index for index, token in added.items() if not token.special]
    kinds = [CONTROL] * len(tokens)
    for indices, kind in ((range(238, 494), BYTE), (ours, USER_DEFINED)):
        for index in indices:
            kinds[index] = kind
    kinds[494:255_968] = [NORMAL] * (255_968 - 494)
    slow = SlowBpe(tokens, [-float(index) for index in range(len(tokens))], kinds)
    items = load_items(["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"], limit=12)
    texts = [item.context(0) + item.continuations[0] for item in items]
    for text in [*texts, *(t for t in GEMMA.probes if "<start_of_turn>" not in t)]:
        ids = tokenizer(text)["input_ids"]
        assert ids == [2, *slow.encode(text)], text
        assert tokenizer.decode(ids) == "<bos>" + text
    question = tokenizer.convert_ids_to_tokens(tokenizer("Question")["input_ids"])
    assert question == ["<bos>", "Question"]


@pytest.mark.assets
def test_the_real_model_knows_something(folder: Path, runs_dir: Path) -> None:
    """Chance is 25 and 50 %; with the wrong tokenizer it answers there."""
    config = EvalConfig(model="gemma3-270m", tasks=("arc_easy", "piqa"), limit=20, device="cpu")
    run = Run(evaluate.evaluate(config))
    assert run.config["bos_added"] is True
    assert run.metrics["tasks"]["arc_easy"]["acc"] > 0.42
    assert run.metrics["tasks"]["piqa"]["acc"] > 0.60
