"""The kept seeds: made once, made anew when their code changes, never half made."""

from __future__ import annotations

import pytest

from tests.e2e import seed_cache


@pytest.fixture
def made(monkeypatch):
    """The folders that were seeded, by something quicker than the real thing."""
    folders = []

    def seed_all(folder):
        (folder / "runs").mkdir()
        folders.append(folder)
        return {"stage1": f"stage/{len(folders)}"}

    monkeypatch.setattr(seed_cache, "seed_all", seed_all)
    return folders


def test_they_are_made_once_until_what_makes_them_changes(tmp_path, made, monkeypatch):
    first = seed_cache.seeds(tmp_path)
    assert seed_cache.seeds(tmp_path) == first
    assert len(made) == 1
    assert first.ids == {"stage1": "stage/1"}
    assert first.runs.is_dir()
    monkeypatch.setattr(seed_cache, "MADE_BY", (*seed_cache.MADE_BY, "tests/app.py"))
    assert seed_cache.seeds(tmp_path).ids == {"stage1": "stage/2"}
    assert first.ids == {"stage1": "stage/1"}  # who reads the old ones goes on


def test_a_seed_that_breaks_off_is_not_taken_for_one(tmp_path, made, monkeypatch):
    quick = seed_cache.seed_all

    def torn(folder):
        quick(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(seed_cache, "seed_all", torn)
    with pytest.raises(KeyboardInterrupt):
        seed_cache.seeds(tmp_path)
    monkeypatch.setattr(seed_cache, "seed_all", quick)
    assert seed_cache.seeds(tmp_path).ids == {"stage1": "stage/2"}
    assert not list(tmp_path.glob("unfinished-*"))
