"""TensorFlow SavedModels: the folder, or its `saved_model.pb`; the variables beside it are read.

Graphs and functions are not looked at, nor run. What a Keras model says of its layers goes into
`model_config`: layers' classes and the dataflow come from it.
"""

from __future__ import annotations

import re
from pathlib import Path

from regraft.errors import MissingShard
from regraft.formats import Sample
from regraft.formats._beside import inside, regular
from regraft.formats._bundle_listing import BundleStored
from regraft.formats._saved_model import MODEL, metadata_of
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_VARIABLES = "variables/variables.index"
# Schema version 1; a graph, which begins with facts about itself. The length of the graph lies
# between; an ONNX model of old has a maker's name there.
_HEAD = re.compile(rb"\x08\x01\x12[\x80-\xff]{0,8}[\x00-\x7f]\x0a")


def sniff(sample: Sample) -> bool:
    return MODEL in sample.entries or bool(_HEAD.match(sample.head))


def open(path: Path) -> Stored:
    """Lists the variables. **Raises** `CorruptFile`, `MissingShard`, `FormatError`."""
    model = path / MODEL if path.is_dir() else path
    metadata = metadata_of(model)
    index = inside(model, _VARIABLES)
    if not index.exists():
        raise MissingShard(
            str(model.parent),
            found=f"no {_VARIABLES}",
            expected="the variables beside the graph",
            hint="get the folder as a whole; a model without variables keeps its values in its "
            "graph, which is read only where it is a frozen one",
        )
    stored = BundleStored("tensorflow_saved_model", regular(model, _VARIABLES), metadata)
    if path == model:
        stored.beside = tuple(f"variables/{name}" for name in (index.name, *stored.beside))
    return stored
