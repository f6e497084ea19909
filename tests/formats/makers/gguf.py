from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from formats.samples import Values, arrays

SUFFIX = ".gguf"


def make(path: Path) -> Values:
    generator = np.random.default_rng(3)
    values = {name: value for name, value in arrays().items() if value.dtype != np.bool_}
    values["whole"] = generator.integers(-100, 100, (3, 5)).astype(np.int8)
    # Its bytes end where the alignment wants the file's end, so that no byte is mere padding.
    values["last.weight"] = generator.normal(size=(4, 8)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("sample")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "ünï"])
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
