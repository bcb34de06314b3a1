"""Generation under a regime: decoding with a cache equals computing everything again."""

import json

import pytest
import torch

from bidir_core import cli
from bidir_core.common.errors import UserError
from bidir_core.explain import generate as generation
from bidir_core.explain.generate import Sampling, encode_prompt, end_ids, generate, stream
from bidir_core.models import attention
from bidir_core.models.families import BOS, EOS, tiny_loaded
from bidir_core.models.layout import Layout
from bidir_core.regimes import CAUSAL, parse_regime

PROMPT = "Which of these, then, keeps the longest?"
WAYS = {
    "greedy": Sampling(12),
    "sampled": Sampling(12, temperature=1.3, seed=3),
    "nucleus": Sampling(12, temperature=0.9, top_p=0.7, seed=11),
}


def unending(family: str, **changes: object):
    """A tiny model that never says it is done, so that every test sees all its tokens."""
    loaded = tiny_loaded(family, **changes)
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = "<pad>"
    return loaded


@torch.inference_mode()
def computed_again(loaded, ids, n_prefix, regime, cache):
    """Logits behind the last token, from the whole sequence."""
    layout = Layout.pack([(n_prefix, len(ids))])
    with loaded.handle.use(regime, layout):
        output = loaded.model(
            input_ids=torch.tensor([ids]), position_ids=layout.position, use_cache=False
        )
    return output.logits[0, -1].float()


REGIMES = ("causal", "causal:hide=0", "bidirectional", "bidirectional:sink=1,layers=1-")
# A way of drawing sees nothing but the logits: one family tells.
GRID = [("llama", regime, way) for regime in REGIMES for way in WAYS]
GRID += [(x, regime, "greedy") for x in ("gemma3", "gpt2", "mistral3") for regime in REGIMES]


@pytest.mark.parametrize(("family", "regime", "way"), GRID)
def test_decoding_with_a_cache_equals_computing_everything_again(family, regime, way, monkeypatch):
    loaded = unending(family)
    ids = encode_prompt(loaded, PROMPT).ids
    cached = generate(loaded, ids, regime, WAYS[way])
    monkeypatch.setattr(generation, "_last_logits", computed_again)
    uncached = generate(loaded, ids, regime, WAYS[way])
    assert cached.token_ids == uncached.token_ids
    for step, expected in zip(cached.steps, uncached.steps, strict=True):
        assert [c.token_id for c in step.top] == [c.token_id for c in expected.top]
        assert step.top[0].logprob == pytest.approx(expected.top[0].logprob, abs=1e-4)


def test_the_first_distribution_is_the_models_own_under_the_regime():
    loaded = unending("llama")
    ids = encode_prompt(loaded, PROMPT).ids
    first = {}
    for text in ("causal", "bidirectional"):
        regime = parse_regime(text)
        layout = Layout.pack([(len(ids), len(ids))])
        with torch.no_grad(), loaded.handle.use(regime, layout):
            logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        top = generate(loaded, ids, regime, Sampling(1)).steps[0].top
        expected = logits.log_softmax(-1).topk(10)
        assert [c.token_id for c in top] == expected.indices.tolist()
        assert [c.logprob for c in top] == pytest.approx(expected.values.tolist(), abs=1e-4)
        first[text] = top
    assert first["causal"] != first["bidirectional"]


def test_the_causal_regime_gives_what_transformers_generates():
    loaded = unending("gemma3")
    ids = encode_prompt(loaded, PROMPT).ids
    with loaded.handle.native(), torch.no_grad():
        expected = loaded.model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )[0, len(ids) :].tolist()
    assert generate(loaded, ids, "causal", Sampling(12)).token_ids == expected


def test_seeds_decide_what_is_drawn_and_share_their_luck_between_regimes():
    loaded = unending("llama")
    ids = encode_prompt(loaded, PROMPT).ids
    drawn = {
        seed: generate(loaded, ids, "causal", Sampling(8, temperature=1.0, seed=seed)).token_ids
        for seed in (0, 1)
    }
    assert drawn[0] != drawn[1]
    # the same distribution under another name: nothing looks ahead in no layer's last token
    same = generate(loaded, ids, "bidirectional:tail=999", Sampling(8, temperature=1.0, seed=1))
    assert same.token_ids == drawn[1]


def test_a_small_nucleus_or_no_temperature_is_greedy_and_a_drawn_token_never_leaves_its_nucleus():
    loaded = unending("llama")
    ids = encode_prompt(loaded, PROMPT).ids
    greedy = generate(loaded, ids, "causal", Sampling(6)).token_ids
    for way in ({"temperature": 1.0, "top_p": 1e-6}, {"temperature": 1e-3}, {"temperature": 1e-42}):
        assert generate(loaded, ids, "causal", Sampling(6, **way)).token_ids == greedy
    for step in stream(loaded, ids, "causal", Sampling(20, temperature=1.0, top_p=0.3, seed=5)):
        top = [candidate.token_id for candidate in step.top]
        mass = torch.tensor([candidate.logprob for candidate in step.top]).exp().cumsum(0)
        n_kept = int((mass < 0.3).sum()) + 1
        if n_kept < len(top):
            assert step.chosen.token_id in top[:n_kept]


def test_generation_stops_behind_an_end_of_text():
    loaded = unending("llama")
    ids = encode_prompt(loaded, PROMPT).ids
    unstopped = generate(loaded, ids, "causal", Sampling(6)).token_ids
    stop = unstopped[2]
    loaded.model.generation_config.eos_token_id = [stop, EOS]
    generation = generate(loaded, ids, "causal", Sampling(6))
    assert generation.stopped == "end of text"
    assert generation.token_ids == unstopped[: unstopped.index(stop) + 1]
    assert generation.text == loaded.tokenizer.decode(generation.token_ids[:-1])


def test_prompts_are_read_as_evaluations_read_contexts():
    loaded = tiny_loaded("llama")
    assert encode_prompt(loaded, "ab", bos="add").ids[0] == BOS
    assert len(encode_prompt(loaded, "ab ").ids) == 3  # white space at the end stays
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(loaded, "ab", chat_template=True)
    loaded.tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}:"
    wrapped = encode_prompt(loaded, "ab", chat_template=True)
    assert wrapped.text == "<ab>:"
    assert loaded.tokenizer.decode(wrapped.ids) == "<ab>:"


def test_what_the_window_cannot_hold_is_refused():
    loaded = tiny_loaded("llama")
    with pytest.raises(UserError, match="window holds 512"):
        generate(loaded, [1] * 500, "causal", Sampling(14))
    with pytest.raises(UserError, match="layer 9 does not exist"):
        generate(loaded, [1, 2], "bidirectional:layers=2-9", Sampling(1))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-new-tokens", "0"], "from 1 up"),
        (["--temperature", "-1"], "from 0 (greedy) up"),
        (["--temperature", "nan"], "from 0 (greedy) up"),
        (["--top-p", "0", "--temperature", "1"], "above 0"),
        (["--top-p", "0.5"], "without a --temperature"),
        (["--seed", "-1", "--temperature", "1"], "whole number from 0 up"),
        (["--regime", "bidirectional:sink=x"], "sink takes an integer"),
        (["--regime", "bidirectional:layers=0-99"], "layer 99 does not exist"),
        (["--prompt", ""], "--prompt is empty"),
    ],
)
def test_bad_input_is_one_line(tiny_folder, refused, flags, says):
    base = ["generate", "--model", tiny_folder, "--prompt", "hello"]
    assert says in refused([*base, *flags])


def test_the_command_shows_regimes_side_by_side_and_prints_json(tiny_folder, capsys):
    line = ["generate", "--model", str(tiny_folder), "--prompt", PROMPT, "--max-new-tokens", "3"]
    assert cli.main(line) == 0
    text = capsys.readouterr().out
    assert "causal" in text
    assert "bidirectional" in text
    assert text.count(" %") == 20
    assert all(c.isprintable() or c == "\n" for c in text)
    flags = ["--regime", "bidirectional:sink=1", "--temperature", "1", "--bos", "add", "--json"]
    assert cli.main([*line, *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    (entry,) = result["regimes"]
    assert entry["regime"] == "bidirectional:sink=1"
    assert result["prompt_token_ids"][0] == BOS
    assert len(entry["next"]) == 10
    assert len(entry["steps"]) == len(entry["token_ids"])
    assert [step["token_id"] for step in entry["steps"]] == entry["token_ids"]


def drop_the_mask(monkeypatch):
    """The mutant: whatever is asked for, the prompt is read causally."""
    honest = attention.Plan.mask

    def causally(plan, *given, **options):
        return honest(attention.Plan(CAUSAL, plan.layout), *given, **options)

    monkeypatch.setattr(attention.Plan, "mask", causally)


def test_a_regime_that_is_not_in_force_has_no_text(tiny_folder, capsys, monkeypatch):
    line = ["generate", "--model", str(tiny_folder), "--prompt", PROMPT, "--max-new-tokens", "2"]
    assert cli.main(line) == 0
    assert "checks passed under causal, bidirectional\n" in capsys.readouterr().out
    drop_the_mask(monkeypatch)
    assert cli.main(line) == 2
    out, error = capsys.readouterr()
    assert not out
    assert "the mask probe failed (visible_keys" in error
    assert "does not attend as 'bidirectional' says" in error
    assert error.count("\n") == 1
    assert cli.main([*line, "--regime", "causal", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["regimes"]
    assert entry["probe"]["passed"] is True
    assert entry["probe"]["regime"] == "causal"


def test_end_marks_end_a_text_where_the_models_authors_list_none():
    """Converted models have the tokenizer's own end alone: Qwen also ends with ``<|endoftext|>``."""
    loaded = unending("llama")
    before = end_ids(loaded)
    loaded.tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    added = loaded.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert end_ids(loaded) == before | {added}
