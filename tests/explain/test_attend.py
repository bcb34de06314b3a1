"""Observed attention: the same model as the scoring path's, and shares as a slow loop counts them."""

import json

import numpy as np
import pytest
import torch

from bidir_core.cli import main
from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.data.items import Item
from bidir_core.evaluate.scoring import score_one
from bidir_core.explain import attend as attending
from bidir_core.explain import attend_files as files
from bidir_core.explain.attend import attend, mean_interval
from bidir_core.explain.configs import AttendConfig
from bidir_core.explain.observe import Passage, observe
from bidir_core.models.families import WINDOW, tiny_loaded
from bidir_core.models.layout import Layout
from bidir_core.regimes import parse_regime, visibility
from bidir_core.runs.run import Run

# Full attention, grouped heads; a sliding window in half of the layers; soft caps, which only
# eager attention has; another layout of modules, without rotary positions.
FAMILIES = ("llama", "qwen2", "gemma2", "gpt2")
REGIMES = ("causal", "bidirectional:sink=1,lambda=0.3", "bidirectional:tail=1,self=2,layers=1-2")
N_PREFIX = 9
THREE = ("--regime", "causal", "--regime", "bidirectional", "--regime", "bidirectional:sink=1")


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request):
    return tiny_loaded(request.param)


def passage(n_total: int = 13) -> Passage:
    ids = torch.randint(0, 250, (n_total,), generator=torch.Generator().manual_seed(1))
    return Passage(ids.numpy(), N_PREFIX)


def watch(loaded, regime, **options):
    weights = {}
    options["on_weights"] = lambda layer, w: weights.update({layer: w.numpy().copy()})
    observation = observe(loaded, passage(), parse_regime(regime), **options)
    return observation, np.stack([weights[layer] for layer in sorted(weights)])


@pytest.mark.parametrize("regime", REGIMES)
def test_the_weights_are_those_the_regime_allows(loaded, regime):
    observation, weights = watch(loaded, regime)
    assert np.allclose(weights.sum(-1), 1, atol=1e-5)
    for layer, window in enumerate(observation.windows):
        allowed = visibility(parse_regime(regime), N_PREFIX, 13, layer=layer, window=window)
        assert (weights[layer][:, ~allowed] == 0).all()
        assert (weights[layer][:, allowed] > 0).all()
    if loaded.name == "tiny-qwen2":
        assert observation.windows == (None, None, WINDOW, WINDOW)


@pytest.mark.parametrize("regime", REGIMES)
def test_the_logits_are_the_scoring_path_s(loaded, regime):
    encoder = Encoder(loaded.tokenizer)
    text = Item("made", 0, "h", 1, ("The city of light",), (" Rome", " Paris", " Pa"))
    (encoded,) = encoder.encode([text])
    regime = parse_regime(regime)
    score = score_one(loaded, encoded, regime)
    for choice in range(3):
        ids = np.concatenate([encoded.prefix(0).ids, encoded.continuations[choice].ids])
        observation = observe(loaded, Passage(ids, len(encoded.prefix(0))), regime)
        assert np.abs(observation.token_ll - score.token_ll[choice]).max() < 1e-4


def test_the_model_is_left_as_it_was(loaded):
    before = loaded.handle.decoder.config._attn_implementation
    observe(loaded, passage(), parse_regime("bidirectional"), keep_hidden=True)
    assert loaded.handle.decoder.config._attn_implementation == before
    assert not any(module._forward_hooks for module in loaded.model.modules())
    with pytest.raises(RuntimeError, match="no regime is in force"):
        loaded.model(input_ids=torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("regime", REGIMES)
def test_shares_are_what_a_slow_loop_counts(loaded, regime):
    observation, weights = watch(loaded, regime)
    for index in np.ndindex(weights.shape[:3]):
        query, row = index[-1], weights[index].astype(np.float64)
        known = row[row > 0]
        slow = (row[0], row[query + 1 :].sum(), row[:query].sum(), -(known * np.log(known)).sum())
        shares = [getattr(observation.shares, name)[index] for name in files.MEASURES]
        assert shares == pytest.approx(slow, abs=1e-5)
    mean = observation.shares.mean("prefix")
    assert np.allclose(mean["first"], weights[:, :, 1:N_PREFIX, 0].mean(-1), atol=1e-6)
    assert np.allclose(observation.shares.received, weights[:, :, 1:N_PREFIX].mean(2), atol=1e-6)
    assert np.allclose(observation.shares.mean("start")["first"], weights[:, :, 0, 0], atol=1e-6)
    past = [weights[:, :, query, :query].sum(-1) for query in range(N_PREFIX, 13)]
    assert np.allclose(observation.shares.mean("continuation")["past"], np.mean(past, 0), atol=1e-6)
    if regime == "causal":
        assert not observation.shares.future.any()


def test_hidden_states_are_the_layers_own(loaded):
    observation, _ = watch(loaded, "causal", keep_hidden=True)
    layout = Layout.pack([(N_PREFIX, 13)])
    inputs = {"input_ids": torch.from_numpy(passage().ids)[None], "position_ids": layout.position}
    with torch.inference_mode(), loaded.handle.use(parse_regime("causal"), layout):
        states = loaded.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    # transformers' last one is behind the final norm; ours is before it.
    for ours, theirs in zip(observation.hidden[:-1], states[1:-1], strict=True):
        assert np.allclose(ours, theirs[0].numpy(), atol=1e-4)


def test_drift_is_none_where_nothing_differs(loaded):
    causal, _ = watch(loaded, "causal", keep_hidden=True)
    opened, _ = watch(loaded, "bidirectional:layers=1-2", keep_hidden=True)
    drift = files.drift_between([causal.hidden, opened.hidden])
    assert np.allclose(drift.cosine[0], 1, atol=1e-5)  # layer 0 is causal in both
    assert np.allclose(drift.ratio[0], 1, atol=1e-5)
    assert drift.cosine[1, 0] < 0.9999  # the first token looks ahead from layer 1 on
    a, b = causal.hidden[2][3].astype(np.float64), opened.hidden[2][3].astype(np.float64)
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert drift.cosine[2, 3] == pytest.approx(cosine, abs=1e-5)
    assert drift.norms[1][2, 3] == pytest.approx(np.sqrt(b @ b), rel=1e-5)
    alone = files.drift_between([causal.hidden])
    assert alone.cosine is None
    assert alone.ratio is None


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "torn", "flipped"])
def test_damage_is_said(tmp_path, harm):
    files.write_layer(tmp_path, 0, 0, np.random.default_rng(0).random((2, 40, 40)))
    path = tmp_path / "attention_0" / "layer_00.npz"
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        data[200] ^= 0xFF
        path.write_bytes(data[:300] if harm == "torn" else data)
    with pytest.raises(UserError, match=r"attention_0/layer_00\.npz .* cannot be read"):
        files.read_head(tmp_path, 0, 0, 0)


# --- the command ---------------------------------------------------------------------------------


def line(model, *words):
    return main(["attend", "--model", str(model), *map(str, words)])


def the_run(runs_dir) -> Run:
    (path,) = (runs_dir / "lab").iterdir()
    return Run(path)


def test_an_item_is_observed_under_two_regimes(tiny_folder, own_items, runs_dir):
    assert line(tiny_folder, "--task", own_items, "--doc-id", 3, "--name", "look") == 0
    run = the_run(runs_dir)
    assert (run.state, run.config["kind"], run.config["attention"]) == ("done", "attend", "eager")
    assert run.probe["passed"]
    body = run.metrics
    assert body["regimes"] == ["causal", "bidirectional"]
    assert body["item"] == "mine/3"
    assert body["matrices"]
    assert all(entry["off_scoring_nats"] < 1e-4 for entry in body["observed"])
    pieces, n_prefix = files.read_tokens(run.path)
    text = json.loads(own_items.read_text().splitlines()[3])
    assert "".join(pieces[:n_prefix]) == text["contexts"][0]
    assert "".join(pieces[n_prefix:]) == text["continuations"][0]
    causal, opened = files.read_shares(run.path, 2)
    head = files.read_head(run.path, 1, 2, 3)
    assert head.shape == (len(pieces), len(pieces))
    ahead = np.triu(head, 1)[:n_prefix].sum(-1)
    assert ahead == pytest.approx(opened.future[2, 3, :n_prefix], abs=2e-2)
    assert not np.triu(files.read_head(run.path, 0, 2, 3), 1).any()
    assert body["observed"][1]["layers"]["prefix"]["first"] == pytest.approx(
        opened.mean()["first"].mean(-1), abs=1e-5
    )
    assert body["observed"][0]["layers"]["start"]["first"] == [1.0] * 4
    assert files.read_drift(run.path).cosine.shape == (4, len(pieces))
    assert causal.n_prefix == n_prefix


def test_a_prompt_alone_under_one_regime(tiny_folder, runs_dir):
    words = ("--prompt", "Hello  wörld ", "--regime", "bidirectional:sink=1", "--bos", "add")
    assert line(tiny_folder, *words) == 0
    run = the_run(runs_dir)
    body = run.metrics
    assert body["item"] is None
    assert body["observed"][0]["continuation_ll"] is None
    assert body["observed"][0]["layers"]["continuation"]["first"] is None
    pieces, n_prefix = files.read_tokens(run.path)
    assert n_prefix == len(pieces) == body["n_tokens"]
    assert pieces[0] == "<bos>"
    assert "".join(pieces[1:]) == "Hello  wörld"  # the space at the end is the continuation's
    assert files.read_drift(run.path).cosine is None


def test_long_prompts_keep_shares_only(tiny_folder, runs_dir, monkeypatch):
    monkeypatch.setattr(files, "MATRIX_PROMPT_TOKENS", 20)
    assert line(tiny_folder, "--prompt", "x" * 21, "--continuation", " y") == 0
    run = the_run(runs_dir)
    assert run.metrics["matrices"] is False
    assert "only shares and drift are stored" in run.metrics["notes"][0]
    assert not (run.path / "attention_0").exists()
    assert files.read_shares(run.path, 2)[1].first.shape[-1] == 23


def test_a_summary_is_small_and_right(tiny_folder, own_items, runs_dir):
    assert line(tiny_folder, "--task", own_items, "--limit", 4) == 0
    run = the_run(runs_dir)
    body = run.metrics
    assert (body["mode"], body["n_items"], body["n_errors"]) == ("items", 4, 0)
    assert sum(f.stat().st_size for f in run.path.rglob("*") if f.is_file()) < 60_000
    by_item = []
    for doc_id in range(4):
        path = attend(AttendConfig(model=str(tiny_folder), task=str(own_items), doc_id=doc_id))
        by_item.append(files.read_shares(path, 2))
    for regime in range(2):
        first = body["observed"][regime]["layers"]["prefix"]["first"]
        rows = np.array([shares[regime].mean()["first"].mean(-1) for shares in by_item])
        assert first["n"] == 4
        assert first["mean"] == pytest.approx(rows.mean(0), rel=1e-3)
        assert all(np.array(first["low"]) <= first["mean"])
    overall = body["observed"][1]["overall"]["prefix"]["future"]
    assert overall["low"][0] < overall["mean"][0] < overall["high"][0]
    delta = body["observed"][1]["minus_first"]
    assert delta["overall"]["prefix"]["future"]["mean"] == overall["mean"]  # causal: 0
    assert min(delta["layers"]["prefix"]["future"]["mean"]) > 0
    assert max(entry["off_scoring_nats"] for entry in body["observed"]) < 1e-4
    heads = np.load(run.path / "summary.npz")["prefix_first_0"]
    first = np.array(body["observed"][0]["layers"]["prefix"]["first"]["mean"])
    assert heads.mean(-1) == pytest.approx(first, rel=1e-3)
    assert body["drift"]["cosine_1_first"]["n"] == 4


def test_a_stopped_summary_goes_on_behind_what_it_observed(
    tiny_folder, own_items, runs_dir, tmp_path, monkeypatch, capsys
):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(own_items.read_text().splitlines(keepends=True)[4:]))
    words = ["--task", f"{own_items},{other}", "--limit", 3]
    for regime in ("causal", "bidirectional", "bidirectional:sink=1"):
        words += ["--regime", regime]
    assert line(tiny_folder, *words) == 0
    uninterrupted = the_run(runs_dir)
    assert uninterrupted.metrics["n_by_task"] == {"mine": 3, "other": 3}
    first, ahead = (uninterrupted.metrics["observed"][i]["by_task"] for i in (0, 2))
    assert first["other"]["future"]["mean"] == [0.0]
    assert ahead["other"]["future"]["mean"][0] > 0
    assert not (uninterrupted.path / "parts").exists()

    original, observed = attending._observe_item, []

    def observe_some(*arguments, **options):
        if len(observed) == 4:
            raise KeyboardInterrupt
        observed.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(attending, "_observe_item", observe_some)
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path / "again"))
    asked = {"model": str(tiny_folder), "task": words[1], "limit": 3}
    with pytest.raises(KeyboardInterrupt):
        attend(AttendConfig(**asked, regimes=tuple(words[5::2])))
    run = the_run(tmp_path / "again")
    assert (run.state, run.status["done"], run.status["total"]) == ("cancelled", 4, 6)
    monkeypatch.setattr(attending, "_observe_item", original)
    assert line(tiny_folder, "--resume", run.id, "--limit", 5) == 2
    assert "--limit 5 (the run has 3)" in capsys.readouterr().err
    assert main(["attend", "--resume", run.id, *map(str, words)]) == 0
    again = the_run(tmp_path / "again")
    assert again.state == "done"
    for name in ("observed", "drift"):
        assert again.metrics[name] == uninterrupted.metrics[name]
    assert main(["attend", "--resume", run.id]) == 0  # nothing left to do


def test_intervals_are_student_s():
    values = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0], [np.nan, np.nan]])
    interval = mean_interval(values)
    assert interval["n"] == 3
    assert interval["mean"] == [2.0, 2.0]
    assert mean_interval(values, log=True)["mean"] == pytest.approx([6 ** (1 / 3), 2.0], rel=1e-4)
    assert interval["high"] == pytest.approx([2 + 4.302653 / 3**0.5, 2.0], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to observe"),
        (("--prompt", "a", "--task", "piqa"), "both given"),
        (("--prompt", "  "), "--prompt is empty"),
        (("--prompt", "a", "--regime", "sideways"), "unknown regime 'sideways'"),
        (("--prompt", "a", "--regime", "bidirectional:layers=2-9"), "layer 9 does not exist"),
        (("--prompt", "a", "--regime", "causal", "--regime", "causal"), "two of the regimes are"),
        (("--prompt", "a", *THREE), "given 3 times; one text takes"),
        (("--task", "piqa,arc_easy", "--doc-id", "1"), "names 2 tasks"),
        (("--task", "piqa,piqa", "--limit", "1"), "twice"),
        (("--task", "mine", "--limit", "0"), "limit"),
        (("--prompt", "a" * 600), "needs 600 tokens and the model's window holds 512"),
        (("--prompt", "a", "--doc-id", "1"), "leave one out"),
        (("--task", "mine"), "say which items"),
        (("--task", "mine", "--doc-id", "60"), "row 60 is outside the 60 rows"),
        (("--task", "mine", "--doc-id", "1", "--limit", "2"), "exactly one of"),
        (("--task", "nope", "--doc-id", "1"), "unknown task 'nope'"),
        (("--prompt", "a", "--bos", "maybe"), "choose one of auto, add, none"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_folder, own_items, runs_dir, refused, words, message
):
    words = [str(own_items) if word == "mine" else word for word in words]
    assert message in refused(["attend", "--model", tiny_folder, *words])
    assert not runs_dir.exists()
