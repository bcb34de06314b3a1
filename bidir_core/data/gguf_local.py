"""A ``.gguf`` file on this machine as a model: converted once, where that is known to come out right.

A wrong conversion answers quietly at chance, so only kinds are taken that an embedded model has
shown to convert rightly (:data:`BUILDERS`). A file whose sha256 is known must give exactly what it
gave before; any other must keep texts, digits and special tokens, and read plain English.

On another machine, from the file alone:

    python -c "from bidir_core.data.gguf_local import convert_file; convert_file('M.gguf', 'folder')"
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.progress import say
from bidir_core.data import gguf as reading
from bidir_core.data.assets import cache_dir, sha256_of
from bidir_core.data.gguf import EXPECTED

# Architecture, tokenizer model and pre-tokenizer of a file: what rebuilds its tokenizer.
BUILDERS: dict[tuple[str, str, str], Callable[[Path], Any]] = {
    ("llama", "gpt2", "smollm"): reading.build_tokenizer,
    ("qwen2", "gpt2", "qwen2"): reading.build_tokenizer,
    ("gemma3", "llama", "default"): reading.build_gemma_tokenizer,
}
GEMMA_LAYERS = 18  # the 270M; larger ones scale attention and positions in ways untested here


def folder_of(gguf: Path) -> Path:
    """The folder in the cache that the file was converted into, made first if need be.

    Raises UserError, in one sentence, where the file is damaged, of a kind that is not known to
    convert rightly, or fails the checks.
    """
    from filelock import FileLock

    root = cache_dir()
    folder = root / f"gguf-{sha256_of(gguf)[:16]}"
    if folder.is_dir():  # it came about by a rename, so it is whole
        return folder
    work = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):
            if not folder.is_dir():
                work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
                convert_file(gguf, work / "made")
                (work / "made").rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot convert {gguf} into {root}: {error.strerror or error}; "
            "name a folder with room that you can write to in BIDIR_CACHE_DIR"
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def convert_file(gguf: str | Path, out: str | Path) -> None:
    """Write a GGUF file's configuration, bf16 weights and tokenizer into the folder ``out``, checked.

    Needs the file, torch, transformers, gguf and tokenizers, and nothing from a network. Raises
    UserError as :func:`folder_of` does; ``out`` is then no model to use.
    """
    from transformers.utils import logging

    gguf, out = Path(gguf).expanduser().absolute(), Path(out).expanduser()
    build = _builder(gguf)
    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    say(f"converting {gguf} into {out}")
    try:
        say("converting the tokenizer")
        build(gguf).save_pretrained(out)
        say("converting the weights to safetensors, once (half a minute, some for a larger model)")
        reading.convert_weights(gguf, out)
        say("checking the converted model")
        reading.check(out, EXPECTED.get(sha256_of(gguf)))
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        # the readers' own complaints: a missing table, a kind of quantisation they do not know
        raise UserError(
            f"{gguf} cannot be converted ({' '.join(str(error).split())[:200]}); "
            "use the model's folder of safetensors"
        ) from error


def _builder(gguf: Path) -> Callable[[Path], Any]:
    """What makes the file's tokenizer; UserError if it is not known to come out right."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(str(gguf)).fields
        architecture = str(fields["general.architecture"].contents())
        model = str(fields["tokenizer.ggml.model"].contents())
        pre = fields.get("tokenizer.ggml.pre")
        kind = (architecture, model, "default" if pre is None else str(pre.contents()))
        scaling = fields.get(f"{architecture}.rope.scaling.type")
        scaled = "none" if scaling is None else str(scaling.contents())
        n_layers = fields[f"{architecture}.block_count"].contents()
    except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{gguf} is not a whole GGUF file of a language model ({error}); get it again"
        ) from error
    if kind not in BUILDERS:
        known = ", ".join("/".join(key) for key in BUILDERS)
        why = f"its kind {'/'.join(kind)} (architecture/tokenizer/pre-tokenizer) is none of {known}"
    elif scaled != "none":
        why = f"its positions are scaled ({scaled})"
    elif architecture == "gemma3" and n_layers != GEMMA_LAYERS:
        why = f"it is a Gemma 3 of {n_layers} layers, and only the one of {GEMMA_LAYERS} was tested"
    else:
        return BUILDERS[kind]
    raise UserError(
        f"{gguf.name} is not known to convert rightly: {why}; use the model's folder of safetensors"
    )
