"""Weight files: which belong to a folder, whether they are whole, and a fingerprint of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from bidir_core.common.errors import UserError
from bidir_core.data.assets import sha256_of

SAMPLE_BYTES = 4096
SMALL_BYTES = 16 * SAMPLE_BYTES
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")  # as safetensors calls them; scales have others
VOLATILE = frozenset(  # what a config says of the moment and not of the model
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)


class Tensor(NamedTuple):
    """One tensor of a safetensors file: where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    n_bytes: int


def read_json(path: Path, label: str) -> dict[str, Any]:
    """A JSON object from a file; UserError saying what the file was for if it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{label} {path} cannot be read ({error}); get it again") from error
    return value


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: safetensors, sharded or not, else PyTorch's own.

    Raises UserError, naming the file, if there are none or a shard is missing.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            return [folder / stem]
        index = folder / f"{stem}.index.json"
        if index.is_file():
            shards = read_json(index, "the shard list").get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise UserError(f"{index} lists no shards; get it again")
            if not all(isinstance(name, str) and len(name) < 256 for name in shards.values()):
                raise UserError(f"{index} lists shards that are no file names; get it again")
            files = [folder / name for name in sorted(set(shards.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(
                    f"{folder} lacks {len(missing)} of {len(files)} weight files: "
                    f"{', '.join(missing)}; get the folder again"
                )
            return files
    raise UserError(
        f"{folder} holds no weights; expected model.safetensors or model.safetensors.index.json"
    )


def read_tensors(file: Path) -> list[Tensor]:
    """What a safetensors file holds, from its header alone.

    Raises UserError if the file is cut short or is not a safetensors file. Format: 8 bytes of
    header length, a JSON header, then the tensors' bytes.
    """
    try:
        with safe_open(file, framework="np"):
            pass  # whole, as the library sees it
        with open(file, "rb") as stream:
            n_header = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(n_header))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"weight file {file} is damaged or incomplete; get it again") from error
    header.pop("__metadata__", None)
    return [
        Tensor(name, entry["dtype"], tuple(entry["shape"]), file, 8 + n_header + start, end - start)
        for name, entry in header.items()
        for start, end in [entry["data_offsets"]]
    ]


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 in hex of each safetensors file of a folder, by its name."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def check_weights(folder: Path) -> None:
    """Raise UserError if weights are missing or visibly damaged; reads headers only.

    An adapter beside a model's weights is refused: transformers would apply it unasked.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a model's weights and an adapter_config.json, which would be applied to "
            "them; remove it if they are merged, or give the adapter as a checkpoint, from a "
            "folder of its own"
        )
    tensors: list[Tensor] = []
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            tensors += read_tensors(file)
    _check_scales(folder, tensors)


def is_scale(name: str) -> bool:
    """Whether a tensor of this name is what 8-bit numbers are to be multiplied by."""
    return name.endswith(("_scale_inv", ".activation_scale"))


def _check_scales(folder: Path, tensors: Iterable[Tensor]) -> None:
    """Raise UserError unless 8-bit weights have scales, and a configuration that says so.

    Without either they would be read, silently, as the bare codes that they are stored as.
    """
    names = {tensor.name for tensor in tensors}
    coded = [t for t in tensors if t.dtype in EIGHT_BITS and not is_scale(t.name)]
    if not coded or not (folder / "config.json").is_file():
        return
    described = read_json(folder / "config.json", "configuration").get("quantization_config")
    for tensor in coded:
        scales = {f"{tensor.name}_scale_inv", f"{tensor.name.removesuffix('.weight')}.scale"}
        if not described and scales & names:
            raise UserError(
                f"weight file {tensor.file} holds {tensor.name} in 8 bits with a scale, but "
                f"{folder / 'config.json'} has no quantization_config to say so; get or make the "
                "folder again"
            )
        if described and described.get("quant_method") == "fp8" and not scales & names:
            raise UserError(
                f"weight file {tensor.file} holds {tensor.name} in 8 bits, but its scale "
                f"{tensor.name}_scale_inv is nowhere in {folder}; get the folder again"
            )


def fingerprint(config: Any, files: Iterable[Path]) -> str:
    """sha256, in hex, over a model's shape and its weights; the same however they are sharded.

    Cheap enough to take at every start, so not every byte is read: of each tensor above 64 KiB
    its first, middle and last 4 KiB, the others whole. Training moves every tensor it touches
    almost everywhere, so any trained model differs; a single edited number may go unseen.
    """
    # as JSON that does not change with the library's version or this machine
    shape = json.dumps(_stable(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256((shape + fingerprint_tensors(files)).encode()).hexdigest()


def fingerprint_tensors(files: Iterable[Path]) -> str:
    """The weights' part of :func:`fingerprint`."""
    tensors: list[Tensor] = []
    for file in files:
        if file.suffix == ".safetensors":
            tensors += read_tensors(file)
        else:  # pickles have no header: sample the file like one big tensor
            tensors.append(Tensor(file.name, "file", (), file, 0, file.stat().st_size))
    digest = hashlib.sha256()
    for tensor in sorted(tensors):
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.n_bytes}\n".encode())
        digest.update(_sample(tensor))
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in VOLATILE and v is not None}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value


def _sample(tensor: Tensor) -> bytes:
    with open(tensor.file, "rb") as stream:
        if tensor.n_bytes <= SMALL_BYTES:
            return os.pread(stream.fileno(), tensor.n_bytes, tensor.start)
        n_pieces = 3 if tensor.dtype != "file" else 1024
        last_offset = tensor.n_bytes - SAMPLE_BYTES
        offsets = [last_offset * i // (n_pieces - 1) for i in range(n_pieces)]
        return b"".join(
            os.pread(stream.fileno(), SAMPLE_BYTES, tensor.start + offset) for offset in offsets
        )
