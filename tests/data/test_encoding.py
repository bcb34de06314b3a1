"""Where the prefix ends: tokenizers that add tokens of their own, templates, empty contexts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from bidir_core.common.errors import UserError
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.encoding import Encoder
from bidir_core.data.fetch import ensure
from bidir_core.data.items import Item
from bidir_core.data.tasks import load_items
from bidir_core.models.families import BOS, EOS, tiny_tokenizer
from bidir_core.train.mixtures import Sample
from bidir_core.train.packing import encode_samples


def an_item(context: str, *continuations: str) -> Item:
    return Item("mine", 0, "hash", 0, (context,), continuations)


def ids(text: str) -> list[int]:
    return tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("template", "front"), [("$A <eos>", []), ("<bos> $A <eos>", [BOS])])
def test_a_token_that_the_tokenizer_appends_is_neither_prefix_nor_continuation(template, front):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    (encoded,) = Encoder(tokenizer).encode([an_item("Q:", " yes", " no")])
    assert encoded.prefix(0).ids.tolist() == front + ids("Q:")
    assert [tokens.ids.tolist() for tokens in encoded.continuations] == [ids(" yes"), ids(" no")]
    assert len(encoded.prefix(0).offsets) == len(encoded.prefix(0))
    trained = encode_samples([Sample("Q:", " yes", "made", 0)], tokenizer, max_tokens=64)
    n = trained.n_prompt[0]
    assert trained.ids[:n].tolist() == encoded.prefix(0).ids.tolist()
    assert trained.ids[n:].tolist() == [*ids(" yes"), EOS]


def test_white_space_at_the_end_of_a_template_goes_to_the_continuation():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}U:{{ m.content }}\n{% endfor %}A:{{ '\n' }}"
    (encoded,) = Encoder(tokenizer, chat_template=True).encode([an_item("hello", " yes", " no")])
    assert encoded.contexts == ("U:hello\nA:\n",)
    assert encoded.prefix(0).ids.tolist() == ids("U:hello\nA:")
    assert encoded.continuations[0].ids.tolist() == ids("\nyes")
    assert encoded.continuations[0].offsets[:2].tolist() == [[-1, 0], [0, 1]]


def test_a_template_that_refuses_is_one_sentence():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('a system turn is needed') }}"
    with pytest.raises(UserError, match="a system turn is needed"):
        Encoder(tokenizer, chat_template=True).encode([an_item("hello", " yes", " no")])


TEXTS = st.text("ab \n\u00e9\u4e2d\U0001f600", max_size=8) | st.sampled_from(
    ["", "<bos>a", "<bos>", "x <eos>"]
)


@pytest.mark.parametrize("bos", ["auto", "add", "none"])
@pytest.mark.parametrize("template", ["$A", "<bos> $A", "<bos> $A <eos>"])
@settings(max_examples=30)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_tokens_and_offsets_are_those_of_each_text_alone(bos, template, drawn):
    """Texts are tokenised together, and a second time for their offsets if one is asked for."""
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )

    def alone(text: str, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        adds = special and bos == "auto" and not text.startswith("<bos>")
        one = backend.encode(text, add_special_tokens=adds)
        end = len(one.ids) - (adds and template.endswith("<eos>"))
        ids, offsets = one.ids[:end], one.offsets[:end]
        front = special and bos == "add" and ids[:1] != [BOS]
        return [BOS] * front + ids, [(0, 0)] * front + offsets

    items = [an_item(context, *continuations) for context, continuations in drawn]
    for item, one in zip(items, Encoder(tokenizer, bos=bos).encode(items), strict=True):
        (context,) = item.contexts
        stem, spans = alone(context.rstrip()) if context else ([BOS], [(0, 0)])
        tokenizer(["pad", "me too"], padding=True)  # others use the tokenizer meanwhile
        assert one.prefix(0).ids.tolist() == stem
        assert one.prefix(0).offsets.tolist() == [list(span) for span in spans]
        for text, tokens in zip(item.continuations, one.continuations, strict=True):
            whole, spans = alone(context + text) if context else alone(text, special=False)
            n, before = (len(stem), len(context)) if context else (0, 0)
            assert tokens.ids.tolist() == whole[n:]
            assert tokens.offsets.tolist() == [[a - before, b - before] for a, b in spans[n:]]
            assert tokens.offsets.shape == (len(tokens), 2)
        if not one.error:
            lengths = [len(one.prefix(c)) + len(t) - 1 for c, t in enumerate(one.continuations)]
            assert one.longest == max(lengths)


@pytest.mark.assets
@pytest.mark.parametrize("bos", ["auto", "add", "none"])
def test_the_embedded_tokenizers_offsets_are_those_of_each_text_alone(bos):
    tokenizer = AutoTokenizer.from_pretrained(ensure(EMBEDDED_MODEL), local_files_only=True)
    items = load_items(("hellaswag", "winogrande"), limit=20)
    front = [tokenizer.bos_token_id] if bos == "add" else []
    for one in Encoder(tokenizer, bos=bos).encode(items):
        for choice, tokens in enumerate(one.continuations):
            context, prefix = one.item.context(choice), one.prefix(choice)
            alone = tokenizer.backend_tokenizer.encode(context + one.item.continuations[choice])
            assert [*prefix.ids, *tokens.ids] == [*front, *alone.ids]
            spans = [*prefix.offsets.tolist(), *(tokens.offsets + len(context)).tolist()]
            assert spans == [[0, 0]] * len(front) + [list(span) for span in alone.offsets]


def test_a_context_of_white_space_alone_is_an_item_error():
    (encoded,) = Encoder(tiny_tokenizer()).encode([an_item(" \n", " yes", " no")])
    assert encoded.error == "the context has no tokens"
