from pathlib import Path

import pytest


@pytest.fixture
def pretended(monkeypatch) -> None:
    """What this test starts loads no model: see ``tests/pretended``."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "pretended"))
