"""From a command line to a complete run folder, through kills, bad items and bad input."""

import json
import os
import shlex
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from bidir_core.cli import build_parser, main
from bidir_core.common.errors import UserError
from bidir_core.common.settings import command_line
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.evaluate import evaluate, scoring
from bidir_core.evaluate.config import EvalConfig
from bidir_core.models import loading
from bidir_core.regimes import parse_regime
from bidir_core.runs.records import RECORD_FIELDS
from bidir_core.runs.run import Run
from tests.explain.test_generate import drop_the_mask


def run_cli(*words: str) -> int:
    return main(["eval", *words])


def only_run(runs_dir: Path, stage_dir: str) -> Run:
    (folder,) = (runs_dir / stage_dir).iterdir()
    return Run(folder)


def eval_words(tiny_folder, own_items, *more):
    return ["--model", str(tiny_folder), "--tasks", str(own_items), "--device", "cpu", *more]


def stop(self, items):
    """In the place of a scorer's: somebody presses Ctrl-C."""
    raise KeyboardInterrupt


def test_a_run_folder_is_what_the_contract_says(tiny_folder, own_items, runs_dir, capsys):
    assert run_cli(*eval_words(tiny_folder, own_items, "--prefill-bidirectional")) == 0
    run = only_run(runs_dir, "stage2_prefill_bidir_eval")
    assert capsys.readouterr().out.strip() == str(run.path)
    names = " ".join(sorted(path.name for path in run.path.iterdir()))
    assert names == "config.json items.parquet log.txt metrics.json probe.json status.json"
    assert run.state == "done"
    assert run.settings["regime"] == "bidirectional"
    assert {"packages", "git_commit", "model_fingerprint", "data_fingerprint"} <= set(run.config)
    assert run.probe["passed"] is True
    metrics = run.metrics
    assert metrics["stage"] == "stage2_prefill_bidir_eval"
    assert (metrics["n_items"], metrics["n_scored"], metrics["n_errors"]) == (60, 60, 0)
    assert metrics["tasks"]["mine"]["chance"] == pytest.approx(1 / 3)
    assert metrics["cost"]["computed_tokens"] < metrics["cost"]["prefix_tokens"]
    items = run.items(RECORD_FIELDS)
    assert len(items) == 60
    for row in items.head(5).itertuples():
        assert row.ll == pytest.approx([np.sum(t) for t in row.token_ll], abs=1e-3)
        assert row.margin == pytest.approx(row.ll[row.gold] - max(np.delete(row.ll, row.gold)))
        context, (start, end) = row.contexts[0], row.prefix_token_offsets[0][-1]
        assert context[start:end] == context[-1]
        text, (start, end) = row.continuations[1], row.continuation_token_offsets[1][0]
        assert text[start:end] == " "


def test_several_regimes_in_one_command_are_the_runs_of_several(
    tiny_folder, own_items, tmp_path, monkeypatch, capsys
):
    regimes = ("causal", "bidirectional:sink=1,tail=2", "causal:hide=0")
    words = eval_words(tiny_folder, own_items, "--limit", "12")
    loads = []
    original = loading.load_weights
    monkeypatch.setattr(loading, "load_weights", lambda plan: loads.append(1) or original(plan))
    together = ["--regime", ",".join(regimes), "--runs-dir", str(tmp_path / "together")]
    assert run_cli(*words, *together) == 0
    paths = capsys.readouterr().out.split()
    assert len(loads) == 1
    for regime, path in zip(regimes, paths, strict=True):
        assert run_cli(*words, "--regime", regime, "--runs-dir", str(tmp_path / "alone")) == 0
        together_run, alone_run = Run(path), Run(capsys.readouterr().out.strip())
        assert together_run.stage == alone_run.stage
        assert together_run.settings == {
            **alone_run.settings,
            "runs_dir": str(tmp_path / "together"),
        }
        varies = {"created", "config"}
        assert {k: v for k, v in together_run.config.items() if k not in varies} == {
            k: v for k, v in alone_run.config.items() if k not in varies
        }
        assert together_run.items_table().equals(alone_run.items_table())  # to the last bit
        assert together_run.probe["regime"] == regime


def test_several_regimes_are_resumed_alone_or_with_those_behind(
    tiny_folder, own_items, runs_dir, monkeypatch, capsys
):
    original = scoring.Scorer.begin

    def stop(self, items):
        if self.regime.bidirectional:
            raise KeyboardInterrupt
        return original(self, items)

    regimes = ("--regime", "causal,bidirectional,causal:hide=0")
    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scorer, "begin", stop)
        assert run_cli(*eval_words(tiny_folder, own_items, *regimes)) == 130
    assert only_run(runs_dir, "stage1_vanilla_eval").state == "done"
    unfinished = only_run(runs_dir, "stage2_prefill_bidir_eval")
    assert unfinished.state == "cancelled"
    assert run_cli("--resume", str(unfinished.path), "--regime", "causal,causal:hide=0") == 2
    assert "which --regime leaves out" in capsys.readouterr().err
    assert run_cli("--resume", str(unfinished.path), "--limit", "3", *regimes) == 2  # another run
    assert run_cli("--resume", str(unfinished.path)) == 0
    assert Run(unfinished.path).state == "done"
    # A finished one is left as it is.
    assert run_cli("--resume", str(unfinished.path), *regimes) == 0
    runs = [Run(path) for path in (runs_dir / "stage2_prefill_bidir_eval").iterdir()]
    expected = [("bidirectional", "done"), ("causal:hide=0", "done")]
    assert sorted((run.regime, run.state) for run in runs) == expected


def test_stopped_in_the_middle_and_resumed(tiny_folder, own_items, runs_dir, tmp_path, monkeypatch):
    """Resuming re-scores nothing and ends with the same numbers. Kills are in tests/test_kills.py."""
    original, batches = scoring.Scorer.begin, []

    def begin(self, items):
        if len(batches) == 7:
            raise KeyboardInterrupt
        batches.append([self.plan.encoded[i].item.doc_id for i in items])
        return original(self, items)

    monkeypatch.setattr(scoring.Scorer, "begin", begin)
    assert run_cli(*eval_words(tiny_folder, own_items, "--batch-tokens", "300")) == 130
    run = only_run(runs_dir, "stage1_vanilla_eval")
    before = set(run.items()["doc_id"])
    assert 0 < len(before) < 60
    with open(run.path / "items.jsonl", "ab") as file:
        file.write(b'{"task": "mine", "doc_id": 5')  # a torn line
    batches = []
    monkeypatch.setattr(scoring.Scorer, "begin", original)
    watched = lambda self, items: batches.append(items) or original(self, items)  # noqa: E731
    monkeypatch.setattr(scoring.Scorer, "begin", watched)
    assert run_cli("--resume", run.id) == 0
    scored = [n for items in batches for n in items]
    assert len(scored) == len(set(scored)) == 60 - len(before)
    assert not {*scored} & before  # an item's index is its number here
    monkeypatch.undo()

    settings = {"model": str(tiny_folder), "tasks": (str(own_items),), "device": "cpu"}
    uninterrupted = evaluate.evaluate(EvalConfig(**settings, runs_dir=str(tmp_path / "whole")))
    resumed, never_killed = Run(run.path).items(), Run(uninterrupted).items()
    assert resumed["doc_id"].tolist() == never_killed["doc_id"].tolist()
    assert resumed["pred"].tolist() == never_killed["pred"].tolist()
    np.testing.assert_allclose(np.stack(resumed["ll"]), np.stack(never_killed["ll"]), atol=1e-4)
    assert run_cli("--resume", str(run.path)) == 0  # resuming a finished run is harmless


def test_resume_refuses_another_identity(tiny_folder, own_items, runs_dir, monkeypatch, capsys):
    monkeypatch.setattr(scoring.Scorer, "begin", stop)
    assert run_cli(*eval_words(tiny_folder, own_items, "--batch-tokens", "300")) == 130
    run = only_run(runs_dir, "stage1_vanilla_eval")
    assert run.state == "cancelled"
    monkeypatch.undo()
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(runs_dir))
    capsys.readouterr()
    assert run_cli("--resume", run.id, "--limit", "5", "--seed", "3") == 2
    error = capsys.readouterr().err
    assert "--limit 5 (the run has None)" in error
    assert "--seed 3 (the run has 0)" in error
    config = json.loads((run.path / "config.json").read_text())
    for attn, code in (("gone", 2), ("auto", 0)):
        config["config"]["attn"] = attn
        (run.path / "config.json").write_text(json.dumps(config))
        assert run_cli("--resume", run.id) == code
    assert f"cannot resume '{run.id}': attention 'gone', which" in capsys.readouterr().err


def test_resumed_from_another_folder_and_device_it_is_the_same_run(
    tiny_folder, own_items, runs_dir, tmp_path, monkeypatch
):
    """Model and task file are known by their absolute paths, and "auto" is settled once."""
    monkeypatch.chdir(own_items.parent)
    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scorer, "begin", stop)
        model = os.path.relpath(tiny_folder)
        words = eval_words(model, "./mine.jsonl", "--batch-tokens", "300")
        assert run_cli(*words) == 130
    run = only_run(runs_dir, "stage1_vanilla_eval")
    assert run.settings["tasks"] == [str(own_items)]
    assert run.tasks == ["mine"]
    # On a GPU "auto" would be bfloat16: as if the run had been started there.
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    configs = []
    preflight = evaluate.preflight
    watched = lambda config, regime: configs.append(config) or preflight(config, regime)  # noqa: E731
    monkeypatch.setattr(evaluate, "preflight", watched)
    monkeypatch.chdir(tmp_path)
    assert run_cli("--resume", run.id, "--tasks", os.path.relpath(own_items)) == 0
    assert configs[0].dtype == "bfloat16"
    assert configs[0].attn == "sdpa"
    for name in (EMBEDDED_MODEL, "owner/name"):
        (tmp_path / EMBEDDED_MODEL).mkdir(exist_ok=True)  # a folder of that name means nothing
        assert EvalConfig(model=name).model == name


@pytest.mark.parametrize(("regime", "warns"), [("causal", True), ("bidirectional:sink=1", False)])
def test_another_regime_than_trained_warns(
    tiny_folder, own_items, runs_dir, tmp_path, regime, warns, capsys
):
    checkpoint = shutil.copytree(tiny_folder, tmp_path / "trained")
    record = {"objective": "3B", "regime": "bidirectional:sink=1"}
    (checkpoint / "bidir.json").write_text(json.dumps(record))
    words = eval_words(tiny_folder, own_items, "--checkpoint", str(checkpoint), "--limit", "3")
    assert run_cli(*words, "--regime", regime) == 0
    error = capsys.readouterr().err
    expected = "trained under 'bidirectional:sink=1' (3B) and is evaluated under 'causal'"
    assert (expected in error) == warns
    stage = "nonprefill_compare" if regime == "causal" else "stage4_postft_eval"
    run = only_run(runs_dir, stage)
    assert bool(run.config["warnings"]) == warns
    assert (expected in (run.path / "log.txt").read_text()) == warns


def test_nan_is_an_item_error_and_counts_as_wrong(tiny_folder, own_items, runs_dir, monkeypatch):
    original = scoring.Scorer._token_ll

    def poisoned(self, batch):
        scores = original(self, batch).clone()
        scores[0] = np.nan
        return scores

    monkeypatch.setattr(scoring.Scorer, "_token_ll", poisoned)
    assert run_cli(*eval_words(tiny_folder, own_items, "--batch-tokens", "100000")) == 0
    run = only_run(runs_dir, "stage1_vanilla_eval")
    items = run.items(["error", "pred", "ll", "correct"])
    bad = items[items["error"].notna()]
    assert len(bad) == 1
    assert bad["pred"].isna().all()
    assert not bad["correct"].any()
    assert run.metrics["n_errors"] == 1
    assert run.metrics["tasks"]["mine"]["acc"] == pytest.approx(items["correct"].mean())


def test_a_failed_probe_stops_the_run(tiny_folder, own_items, runs_dir, monkeypatch, capsys):
    drop_the_mask(monkeypatch)
    assert run_cli(*eval_words(tiny_folder, own_items, "--prefill-bidirectional")) == 2
    assert "probe failed" in capsys.readouterr().err
    run = only_run(runs_dir, "stage2_prefill_bidir_eval")
    assert run.state == "failed"
    assert run.metrics is None
    assert run.probe["passed"] is False


PROMPTS = ["context none", "context shuffled", "bos add", "num-fewshot 2", "repeat-prompt 3"]


@pytest.mark.parametrize("more", [*PROMPTS, "fold explore --sample random --limit 30", "compact"])
def test_every_condition_makes_a_complete_run(tiny_folder, own_items, runs_dir, more):
    assert run_cli(*eval_words(tiny_folder, own_items, *f"--{more}".split())) == 0
    run = only_run(runs_dir, "stage1_vanilla_eval")
    assert run.state == "done"
    prefix = run.items(["n_prefix_tokens"])["n_prefix_tokens"].map(lambda n: n[0])
    if more == "context none":
        assert (prefix == 1).all()
    if "repeat-prompt" in more:
        assert run.settings["repeat_prompt"] == 3
        for contexts, n in zip(run.items(["contexts"])["contexts"], prefix, strict=True):
            first, *others = contexts[0].split("\n\n")
            assert others == [first, first]
            assert n >= len(first)  # of bytes: all three are computed
    if more == "bos add":
        assert run.config["bos_added"] is True
    if "compact" in more:
        assert run.items(["contexts"])["contexts"].isna().all()


def test_a_task_file_with_a_comma_in_its_name(own_items, tmp_path):
    path = tmp_path / "one, two.jsonl"
    path.write_bytes(own_items.read_bytes())
    config = EvalConfig(model="m", tasks=("piqa", str(path)))
    line = command_line("eval", config)
    parsed = build_parser().parse_args(shlex.split(line)[3:])
    assert parsed.tasks == ("piqa", str(path))


def test_every_setting_is_classed_as_identity_or_runtime():
    """A new setting must say whether it can change a number."""
    roles = {spec.name: spec.metadata["role"] for spec in fields(EvalConfig)}
    assert set(roles.values()) == {"identity", "runtime"}
    runtime = {name for name, role in roles.items() if role == "runtime"}
    assert runtime == {"device", "runs_dir", "name"}
    with pytest.raises(UserError):
        replace(EvalConfig(model="m"), limit=-1)


@pytest.fixture
def templated(tiny_folder, own_items):
    """A config with a chat template, and a plan whose tokenizer has one."""
    config = EvalConfig(model=str(tiny_folder), tasks=(str(own_items),), chat_template=True)
    plan = evaluate.preflight(config, parse_regime("causal"))
    plan.tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    return config, plan


def test_a_chat_template_wraps_the_repeated_prompt_once(templated):
    config, plan = templated
    once, twice = (evaluate.read_items(replace(config, repeat_prompt=n))[0] for n in (1, 2))
    encoded, _ = evaluate.encode(config, plan, [twice])
    text = once.contexts[0]
    assert encoded[0].contexts == (f"[{text}\n\n{text}]",)


def test_without_a_context_a_chat_template_changes_nothing(templated):
    config, plan = templated
    items = evaluate.read_items(replace(config, context="none"))

    def prefixes(**changes):
        encoded, _ = evaluate.encode(replace(config, **changes), plan, items)
        return [item.prefixes[0].ids.tolist() for item in encoded]

    plain = prefixes(context="none", chat_template=False)
    assert prefixes(context="none") == plain != prefixes()
