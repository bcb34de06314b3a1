"""What ``attend``, ``why``, ``recommend`` and ``lab`` do alike with their folders under ``lab``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bidir_core.common.progress import logging_to, terminable
from bidir_core.common.settings import to_json
from bidir_core.data.items import Item, data_fingerprint
from bidir_core.models.devices import device_name, peak_memory_bytes
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.regimes import Regime
from bidir_core.runs.layout import LAB
from bidir_core.runs.writer import RunWriter


def begin(
    config: Any,
    kind: str,
    loaded: LoadedModel,
    items: Iterable[Item],
    *,
    name: str | None,
    settings: Mapping[str, Any],
    **facts: Any,
) -> RunWriter:
    """A new folder. ``settings`` stand beside the config's own, ``facts`` beside all of them."""
    return RunWriter.create(
        LAB,
        {**to_json(config), **settings},
        root=config.runs_dir,
        name=name,
        **{
            "kind": kind,
            "model_fingerprint": loaded.fingerprint,
            "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
            "data_fingerprint": data_fingerprint(items),
            "dtype": loaded.dtype,
            "attention": loaded.implementation,
            "device": str(loaded.device),
            "training_record": loaded.training_record,
            **facts,
        },
    )


@contextmanager
def at_work(writer: RunWriter) -> Iterator[logging.Logger]:
    """The log while the folder is being filled; what stops the work leaves an honest status."""
    with writer, terminable(), logging_to(writer.path / "log.txt") as log:
        yield log


def probe(
    writer: RunWriter, loaded: LoadedModel, regimes: Sequence[Regime], otherwise: str
) -> None:
    """Record that the model attends as each regime says. UserError, ending so, where it does not."""
    reports = [run_probe(loaded, regime) for regime in regimes]
    passed = all(report.passed for report in reports)
    writer.write_probe(
        {"schema": 1, "passed": passed, "reports": [report.to_json() for report in reports]}
    )
    for report in reports:
        report.require(f"{otherwise}; see {writer.path / 'probe.json'}")


def end(
    writer: RunWriter,
    loaded: LoadedModel,
    metrics: Mapping[str, Any],
    *,
    started: float,
    **cost: Any,
) -> None:
    """Complete the folder; ``started`` by :func:`time.monotonic`."""
    seconds = round(time.monotonic() - started, 3)
    memory, device = peak_memory_bytes(loaded.device), device_name(loaded.device)
    writer.finish(
        metrics=metrics,
        cost={"seconds": seconds, "peak_memory_bytes": memory, "device": device, **cost},
    )
