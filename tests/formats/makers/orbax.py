from __future__ import annotations

import logging
import shutil
from pathlib import Path

import orbax.checkpoint as ocp

from formats.samples import Values, arrays

SUFFIX = ".orbax"


def make(path: Path) -> Values:
    """A folder of Orbax' without what can be done without, so that any damage to it shows."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    values = {name: value for name, value in arrays().items() if value.size}
    rest = {name: value for name, value in values.items() if name != "stem.weight"}
    tree = {"params": {"stem": {"weight": values["stem.weight"]}, **rest}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, tree)
    shutil.rmtree(path / "array_metadatas", ignore_errors=True)
    for entry in path.iterdir():
        if entry.is_file() and entry.name != "_METADATA":
            entry.unlink()
    return {"stem/weight": values["stem.weight"], **rest}
