"""How one framework's layout of a tensor becomes another's.

Every tensor has one or more forms: a way to bring it to the canonical layout, which is
PyTorch's (`[out, in, *space]`). A pair of forms with equal canonical shapes gives a conversion.
Where a file does not say which framework wrote it, all conventions are tried and the choice
between those that fit is left open: shapes cannot tell H from W in a square kernel.

Layouts: dense `[out, in]` (torch) and `[in, out]` (Keras, Flax, TensorFlow); ONNX has both, by
the operation, and is like torch else; convolution
`[out, in, *space]` and `[*space, in, out]`; depthwise `[channels × multiplier, 1, *space]` and
Keras' `[*space, channels, multiplier]`; transposed convolution `[in, out, *space]`, Keras'
`[*space, out, in]` and Flax' `[*space, in, out]` with the space reversed; attention with heads as
an axis, `[in, heads, size]` and `[heads, size, out]` with biases `[heads, size]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

from regraft.matching import kinds
from regraft.matching.modules import Leaf
from regraft.matching.roles import Role
from regraft.operations import (
    AnyOp,
    Blocks,
    Flip,
    Reshape,
    Shape,
    Transpose,
    infer,
    invert,
    simplify,
)

_FIRST, _LAST, _WIDTH_FIRST = "channels first", "channels last", "channels last, W before H"
_AS_STORED = "as stored"


class Form(NamedTuple):
    """A tensor's canonical shape and how to get there. `convention` names the assumption."""

    family: str
    shape: Shape
    ops: tuple[AnyOp, ...]
    convention: str


class Conversion(NamedTuple):
    """A way from a source tensor to a target tensor, and the conventions that lead to it."""

    ops: tuple[AnyOp, ...]
    conventions: frozenset[str]


# Roles that may stand for each other where the layer's class does not say which it is.
_STAND_INS: dict[Role, tuple[Role, ...]] = {
    "kernel": ("embedding",),
    "embedding": ("kernel",),
    "scale": ("slope",),
    "slope": ("scale",),
}
_CLASSES = re.compile(r"dense|linear|conv|embedding|norm|relu|attention", re.IGNORECASE)
_WORDS = re.compile(r"[./](kernel|embeddings?)(:0)?$")
# What has a number for a name may be a table.
_NUMBER = re.compile(r"[./]\d+$")
# Roles that are one value for each channel; graphs store them ready to broadcast, `[1, 8, 1]`.
_VECTORS: tuple[Role, ...] = ("slope", "scale", "bias", "mean", "var")
# Frameworks by how their kernels lie. The order in which maps are flattened is another question:
# `flattening`'s.
CHANNELS_FIRST = ("torch", "onnx")
CHANNELS_LAST = ("keras", "jax")


def compatible(source: Leaf, target: Leaf) -> bool:
    """Whether two tensors can have the same role."""
    if source.role == target.role:
        return True
    if {source.role, target.role} == {"other", "embedding"}:
        return any(_NUMBER.search(leaf.info.name) for leaf in (source, target))
    return not (_is_told(source) and _is_told(target)) and target.role in _STAND_INS.get(
        source.role, ()
    )


def _is_told(leaf: Leaf) -> bool:
    """Whether the layer's class or the tensor's own word tells its role. (The class of a layer of
    one's own says nothing of the roles of its tensors.)"""
    return bool(_CLASSES.search(leaf.info.module) or _WORDS.search(leaf.info.name))


def conversions(source: Leaf, target: Leaf) -> tuple[Conversion, ...]:
    """All ways to turn one into the other that the conventions allow; empty where none fits."""
    if prod(source.info.shape) != prod(target.info.shape) or not compatible(source, target):
        return ()
    return _between(_key(source), _key(target))


def entries_wanted(source: Leaf, target: Leaf, axis: int) -> int:
    """How many entries the source would need on `axis` to fit the target; 0: no number will do."""
    shape = list(source.info.shape)
    wanted, rest = divmod(target.info.size * shape[axis], max(1, source.info.size))
    if rest or not wanted:
        return 0
    shape[axis] = wanted
    return wanted if resized(source, tuple(shape), target) else 0


def resized(source: Leaf, shape: Shape, target: Leaf) -> bool:
    """Whether the source would fit the target if it had this shape."""
    info = source.info._replace(shape=shape)
    return bool(conversions(replace(source, info=info), target))


_Key = tuple[Role, Shape, str, str]


def _key(leaf: Leaf) -> _Key:
    return leaf.role, leaf.info.shape, leaf.framework, leaf.kind


@lru_cache(maxsize=65536)
def _between(source: _Key, target: _Key) -> tuple[Conversion, ...]:
    found: dict[object, Conversion] = {}
    unknown_alike = source[2] == target[2] == ""
    for start in _forms(*source):
        for end in _forms(*target):
            # Two files of one unknown origin are taken to agree: their layouts are the same.
            conventions = {start.convention, end.convention} - {_AS_STORED}
            if unknown_alike and len(conventions) > 1:
                continue
            if start.shape != end.shape or not _same_family(start.family, end.family):
                continue
            back = invert(end.ops, (target[1],))
            assert back is not None  # layouts only permute
            ops = _tidy((*start.ops, *back), source[1])
            key = _effect(ops, source[1])
            assumed = _assumed(start)
            before = found.get(key, Conversion(ops, assumed))
            found[key] = Conversion(before.ops, before.conventions | assumed)
    ways = tuple(found.values()) or tuple(_flattening(source, target))
    return (*ways, _AS_A_TABLE) if _is_table(source, target) and not any(
        not way.ops for way in ways) else ways  # fmt: skip


_AS_A_TABLE = Conversion((), frozenset({"a table"}))


def _is_table(source: _Key, target: _Key) -> bool:
    """Whether what may be a kernel, by its rank alone, may as well be the other side's table."""
    kernel = source if source[0] == "kernel" else target
    return (
        {source[0], target[0]} == {"kernel", "embedding"}
        and source[1] == target[1]
        and not kernel[3]
        and len(kernel[1]) == 2
    )


def _flattening(source: _Key, target: _Key) -> Iterator[Conversion]:
    """A convolution over the whole map, or of size 1, and a dense layer are one and the same.

    The dense layer reads the map in the order of its own framework.
    """
    dense = target if len(target[1]) == 2 else source
    conv = source if dense is target else target
    plain = conv[0] == dense[0] == "kernel" and conv[3] in ("plain", "") and len(conv[1]) > 2
    if len(dense[1]) != 2 or not plain or dense[2] not in ("torch", "keras", "jax"):
        return
    _, shape, framework, kind = conv
    torch = framework in CHANNELS_FIRST
    if not kind and not torch and len(shape) == 3:  # or an attention's, whose name does not tell
        for sort in (kinds.TO_HEADS, kinds.FROM_HEADS):
            as_heads: _Key = (conv[0], shape, framework, sort)
            ends = (as_heads, target) if conv is source else (source, as_heads)
            for way in _between(*ends):
                yield Conversion(way.ops, frozenset({f"a kernel {sort}"}))
    forms = _channels_first(shape, kind) if torch else _channels_last(shape, kind, framework)
    form = forms[0]
    out, inputs, *space = form.shape
    if dense[2] == "torch":
        flat: tuple[AnyOp, ...] = (Reshape((out, inputs * prod(space))),)
    else:
        last = Transpose((*range(2, len(form.shape)), 1, 0))
        flat = (last, Reshape((inputs * prod(space), out)))
    there = (*form.ops, *flat)
    if infer(there, (conv[1],)) != dense[1]:
        return
    ops = there if dense is target else invert(there, (conv[1],))
    assert ops is not None  # layouts only permute
    yield Conversion(_tidy(ops, source[1]), frozenset({"a dense layer over a whole map"}))


def _assumed(form: Form) -> frozenset[str]:
    """Conventions under which this form holds: W before H says nothing of a dense kernel."""
    if len(form.shape) < 4 and form.convention == _LAST:
        return frozenset({_LAST, _WIDTH_FIRST})
    return frozenset({form.convention})


def _effect(ops: tuple[AnyOp, ...], shape: Shape) -> object:
    """Equal for operations with equal results: where axes of size 1 go makes no difference."""
    if len(ops) == 1 and isinstance(ops[0], Transpose):
        return tuple(axis for axis in ops[0].axes if shape[axis] != 1)
    return ops


def _same_family(a: str, b: str) -> bool:
    return a == b or "any" in (a, b)


def _tidy(ops: tuple[AnyOp, ...], shape: Shape) -> tuple[AnyOp, ...]:
    """Joined where possible; moving axes of size 1 about is a reshape that changes nothing."""
    ops = simplify(ops)
    if infer(ops, (shape,)) == shape and all(isinstance(op, Transpose) for op in ops):
        order = [axis for op in ops if isinstance(op, Transpose) for axis in op.axes]
        if [a for a in order if shape[a] != 1] == [a for a in range(len(shape)) if shape[a] != 1]:
            return ()
    return ops


def _forms(role: Role, shape: Shape, framework: str, kind: str) -> tuple[Form, ...]:
    rank = len(shape)
    if kind.startswith(kinds.GRU):
        return _gated(role, shape, framework, kind)
    if kind in (kinds.TO_HEADS, kinds.FROM_HEADS, kinds.HEADS, kinds.HEADS_FIRST):
        return _heads(shape, kind)
    # Keras' shared axes of a slope, a layer scale that broadcasts over a map.
    # A token that broadcasts over a batch.
    if role in (*_VECTORS, "other") and rank > 1 and max(shape) == prod(shape):
        flat = Reshape((prod(shape),))
        return (Form("any", flat.shape, (flat,), _AS_STORED),)
    if role in ("embedding", "other") and rank > 2 and 1 in shape:  # a table that broadcasts
        flat = Reshape(tuple(n for n in shape if n != 1))
        return (Form("any", flat.shape, (flat,), _AS_STORED),)
    if kind == kinds.RELATIVE and rank == 2:
        turned = Form("any", shape[::-1], (Transpose((1, 0)),), "heads first")
        return (Form("any", shape, (), _AS_STORED), turned)
    if role not in ("kernel", "recurrent") or rank < 2:
        return (Form("any", shape, (), _AS_STORED),)
    if kind == "matmul":
        return _channels_last(shape, "plain", framework)
    if role == "recurrent" or (rank == 2 and kind in ("plain", "transposed", "depthwise")):
        kind = "plain"
    last, first = _channels_last(shape, kind, framework), _channels_first(shape, kind)
    if framework in CHANNELS_FIRST:
        return first
    if framework in CHANNELS_LAST:
        return last
    return (*first, *last, *_width_first(shape, kind))


def _gated(role: Role, shape: Shape, framework: str, kind: str) -> tuple[Form, ...]:
    """A GRU's gates are reset, update, new in PyTorch and Flax and update, reset, new in Keras.

    Those that reset before the recurrent product fit their own framework only.
    """
    if kind == kinds.GRU_BEFORE or len(shape) > 2 or (len(shape) == 2 and "bias" in role):
        return (Form(f"{kind} {role} {framework}", shape, (), _AS_STORED),)
    family = kind if "bias" in role else kinds.GRU
    turned: tuple[AnyOp, ...] = (Transpose((1, 0)),) if len(shape) == 2 else ()
    first = Form(family, shape, (), _FIRST)
    flax = Form(family, shape[::-1], turned, _LAST)
    keras = Form(family, shape[::-1], (*turned, Blocks(0, (1, 0, 2))), _LAST)
    return {"torch": (first,), "keras": (keras,), "jax": (flax,)}.get(framework, (first, keras))


def _heads(shape: Shape, kind: str) -> tuple[Form, ...]:
    """Heads as an axis of their own lie one after another where they are not one."""
    if kind == kinds.HEADS:
        return (Form("any", (prod(shape),), (Reshape((prod(shape),)),), _AS_STORED),)
    if kind == kinds.HEADS_FIRST:
        matrix = (shape[0] * shape[2], shape[1])
        return (Form("kernel", matrix, (Transpose((0, 2, 1)), Reshape(matrix)), _LAST),)
    matrix = (prod(shape[:-1]), shape[-1])
    if kind == kinds.TO_HEADS:
        matrix = (shape[0], prod(shape[1:]))
    return (Form("kernel", matrix[::-1], (Reshape(matrix), Transpose((1, 0))), _LAST),)


def _channels_first(shape: Shape, kind: str) -> tuple[Form, ...]:
    family = "any" if not kind else "transposed" if kind == "transposed" else "kernel"
    return (Form(family, shape, (), _FIRST),)


def _channels_last(shape: Shape, kind: str, framework: str) -> tuple[Form, ...]:
    """`[*space, in, out]` and its relatives. Of an unknown kind it may be a plain or a depthwise
    kernel: what they come to has one shape only where the two are the same."""
    space = tuple(range(len(shape) - 2))
    a, b = len(shape) - 2, len(shape) - 1
    if not kind and framework and space and shape[a] > 1:
        kinds = (_channels_last(shape, sort, framework) for sort in ("plain", "depthwise"))
        return tuple(form for forms in kinds for form in forms)
    if kind == "depthwise":
        move = Transpose((a, b, *space))
        join = Reshape((shape[a] * shape[b], 1, *shape[:a]))
        return (Form("kernel", join.shape, (move, join), _LAST),)
    if kind == "transposed" and framework == "jax":
        flips = tuple(Flip(axis + 2) for axis in space)
        moved = Transpose((a, b, *space))
        return (Form("transposed", moved.infer_one(shape), (moved, *flips), _LAST),)
    # Keras stores a transposed kernel as [*space, out, in]: the same move as the plain kernel's
    # gives torch's [in, out, *space].
    moved = Transpose((b, a, *space))
    family = "transposed" if kind == "transposed" else "kernel"
    return (Form(family, moved.infer_one(shape), (moved,), _LAST),)


def _width_first(shape: Shape, kind: str) -> tuple[Form, ...]:
    """`[W, H, in, out]`, as Caffe's weights have come through MATLAB and TensorFlow dumps."""
    if len(shape) != 4 or kind in ("depthwise", "transposed"):
        return ()
    moved = Transpose((3, 2, 1, 0))
    return (Form("kernel", moved.infer_one(shape), (moved,), _WIDTH_FIRST),)
