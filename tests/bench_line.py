"""The command line of a benchmark on tiny everything."""

import json
from pathlib import Path

from bidir_core.models.families import tiny_tokenizer


def benchmark_line(folder: Path, items: Path, more: str) -> tuple[list[str], Path]:
    """Words for a benchmark's ``main``, and the path of what it writes, without .json."""
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    samples = [{"prompt": f"what is {i}?", "response": f" it is {i}"} for i in range(30)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    words = f"""--shape tiny --device cpu --out {folder / "numbers"} --data {data}
        --tokenizer {folder / "tokenizer"} --tasks {items} --batch-samples 4 --warm-up 1
        --repeats 1 {more}"""
    return words.split(), folder / "numbers"
