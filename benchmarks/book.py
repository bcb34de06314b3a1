"""Where a full-size benchmark writes its rows: one JSON file and one of tables, anew after each row."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_shape import build
from bidir_core.common.files import replacing, write_json
from bidir_core.common.provenance import git_commit, package_versions
from bidir_core.models.devices import device_name


class Book:
    """The rows so far, on disk after each."""

    def __init__(self, out: Path, options: argparse.Namespace):
        self.json, self.text = out.with_suffix(".json"), out.with_suffix(".md")
        self.rows: list[dict[str, Any]] = []
        if self.json.is_file():
            self.rows = json.loads(self.json.read_text())["rows"]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in self._model(options).parameters())
        self.facts = {
            "shape": options.shape,
            "parameters": parameters,
            "device": device_name(options.on),
            "dtype": str(options.dtype).removeprefix("torch."),
            "matmul_tflops": round(options.tflops, 3),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "commit": git_commit(),
            "versions": package_versions(),
            "settings": {
                name: value
                for name, value in vars(options).items()
                if isinstance(value, int | float | str | list | tuple)
            },
        }
        self.json.parent.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _model(options: argparse.Namespace) -> Any:
        class NoTokenizer:
            def __len__(self) -> int:
                return 0

        return build(options.shape, NoTokenizer(), torch.device("meta"), options.dtype).model

    def begin(self, part: str) -> None:
        """Forget what an earlier run measured of this part."""
        self.rows = [row for row in self.rows if row["part"] != part]

    def add(self, part: str, what: str, **values: Any) -> None:
        """One more row, written at once."""
        row = {"part": part, "what": what, **{k: v for k, v in values.items() if v is not None}}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        write_json(self.json, {**self.facts, "rows": self.rows})
        with replacing(self.text) as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """One table a part: what was measured down, values across."""
        facts, versions = self.facts, self.facts["versions"]
        lines = [
            f"{facts['shape']}, {facts['parameters'] / 1e6:,.1f} M parameters, random weights, "
            f"{facts['dtype']} on {facts['device']}; matrix products at "
            f"{facts['matmul_tflops']:g} TFLOP/s in this run; torch {versions['torch']}, "
            f"transformers {versions['transformers']}, {facts['date']}.",
        ]
        for part in dict.fromkeys(row["part"] for row in self.rows):
            rows = [row for row in self.rows if row["part"] == part]
            names = [n for n in dict.fromkeys(n for r in rows for n in r) if n != "part"]
            lines += [
                "",
                f"| {' | '.join([part, *names[1:]])} |",
                "|---" + "|---:" * len(names[1:]) + "|",
            ]
            for row in rows:
                lines.append(f"| {' | '.join(str(row.get(name, '')) for name in names)} |")
        return "\n".join(lines) + "\n"
