"""The closed set of tensor operations that a graft may use.

An Op is a value: it is written to JSON, compared and reviewed. Each works on a tuple of tensors.
Most treat every tensor of the tuple alike; those of `joining` and `merging` make one of it, and
`Each` sends every tensor its own way.

- `infer`: input shapes to output shapes, or `ShapeMismatch`; no data.
- `run`: arrays to arrays; views where numpy gives views.
- `inverse`: the Op that undoes this one for input `index`, `None` where values were lost.
- `push`: moves slices of the outputs down to the inputs. It gives the Op that is left to do (or
  no Op) and the slices of each input, so that running it on the sliced inputs equals slicing
  what the whole inputs would have given. `None` where all of the inputs are needed.

`Keep` alone needs the target's own values, which `run` hands it.

`layout` moves values, `joining` puts tensors together and takes them apart, `adapting` fits them to
another size, `merging` computes a weight that was stored in parts, `chains` runs, infers and
inverts operations one after another.
"""

from __future__ import annotations

from regraft.operations._base import (
    Op,
    Shape,
    Shapes,
)
from regraft.operations.adapting import (
    Interpolate,
    Keep,
    Pad,
    Scale,
    Sum,
    Take,
    Tile,
    Widen,
)
from regraft.operations.chains import (
    AnyOp,
    Each,
    dtype_of,
    infer,
    invert,
    push_down,
    run,
    simplify,
)
from regraft.operations.joining import (
    Concat,
    Slice,
    Stack,
    Unstack,
)
from regraft.operations.layout import (
    Blocks,
    Cast,
    Flip,
    Reshape,
    Rope,
    Transpose,
)
from regraft.operations.merging import (
    Add,
    Dequantize,
    Fill,
    FoldScale,
    FoldShift,
    LowRank,
    Multiply,
    Norm,
    SpectralNorm,
    Subtract,
    WeightNorm,
)

__all__ = [
    "Add",
    "AnyOp",
    "Blocks",
    "Cast",
    "Concat",
    "Dequantize",
    "Each",
    "Fill",
    "Flip",
    "FoldScale",
    "FoldShift",
    "Interpolate",
    "Keep",
    "LowRank",
    "Multiply",
    "Norm",
    "Op",
    "Pad",
    "Reshape",
    "Rope",
    "Scale",
    "Shape",
    "Shapes",
    "Slice",
    "SpectralNorm",
    "Stack",
    "Subtract",
    "Sum",
    "Take",
    "Tile",
    "Transpose",
    "Unstack",
    "WeightNorm",
    "Widen",
    "dtype_of",
    "infer",
    "invert",
    "push_down",
    "run",
    "simplify",
]
