"""The head a block at a time gives what the whole row of logits gives."""

from __future__ import annotations

import pytest
import torch

from bidir_core.explain import variants
from bidir_core.models.families import tiny_loaded
from bidir_core.train.student import Student


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "granite"])
@pytest.mark.parametrize("block", [50, 64, 10_000, None])
def test_blocks_add_up_to_the_row(family: str, block: int | None, monkeypatch) -> None:
    """Soft caps and scales of the logits included; more tokens than rows are taken at once."""
    loaded = tiny_loaded(family)
    student = Student(loaded.model, loaded.handle)
    monkeypatch.setattr(variants, "VOCABULARY", {"cpu": block} if block else {})
    monkeypatch.setattr(variants, "ROWS", 7)
    random = torch.Generator().manual_seed(5)
    width = loaded.model.config.get_text_config().hidden_size
    hidden = torch.randn(20, width, generator=random) * 3
    source = torch.randint(0, 20, (33,), generator=random)
    target = torch.randint(0, student.vocabulary, (33,), generator=random)
    with torch.inference_mode():
        whole = student.logits(hidden).float().log_softmax(-1)[source, target]
        found = variants.token_ll(student, hidden, source, target)
    torch.testing.assert_close(found, whole, atol=2e-5, rtol=0)
    assert whole.std() > 0
