"""A plan written out as a stand-alone Python script that needs numpy and not regraft."""

from __future__ import annotations

from collections.abc import Iterable

from regraft import operations as o
from regraft.plans import Graft, Plan

_HEADER = '''"""Converts {source} into the tensors of {target}.

Written by regraft; needs numpy only (and ml_dtypes where a dtype is bfloat16 or float8).
`convert` takes a mapping of source names to arrays and returns the target's arrays by name.
{own}Not made here, because the plan keeps the model's own values: {fresh}.
"""

{imports}{helpers}
def convert(source{argument}):
    target = {{}}
'''

_OWN = "`own` is a mapping of the model's present arrays, of which entries stay in: {}.\n"

# What the steps with more than a line of arithmetic are called in the script, and their code.
_HELPERS = {
    "blocks": """
def blocks(x, axis, order):
    parts = np.split(x, len(order), axis)
    return np.concatenate([parts[i] for i in order], axis)
""",
    "rope": """
def rope(x, axis, heads, to):
    split = (heads, -1, 2) if to == "half" else (heads, 2, -1)
    rows = np.arange(x.shape[axis]).reshape(split).swapaxes(1, 2).ravel()
    return np.take(x, rows, axis)
""",
    "keep": """
def keep(x, axis, own, start=0):
    whole = np.array(own)
    whole[(slice(None),) * axis + (slice(start, start + x.shape[axis]),)] = x
    return whole
""",
    "resize": """
def resize(x, axis, matrix):
    return np.moveaxis(np.tensordot(np.array(matrix), x.astype("f8"), (1, axis)), 0, axis)
""",
    "along": """
def along(vector, axis, rank):
    return vector.astype("f8").reshape([-1 if i == axis else 1 for i in range(rank)])
""",
    "norm": """
def norm(x, axis):
    others = tuple(i for i in range(x.ndim) if i != axis)
    return np.sqrt(np.square(x.astype("f8")).sum(axis=others, keepdims=True)).astype(x.dtype)
""",
    "weight_norm": """
def weight_norm(g, v, axis):
    length = norm(v, axis).astype("f8")
    return (v.astype("f8") * (along(g, axis if axis >= 0 else v.ndim, v.ndim) / length)).astype(
        v.dtype
    )
""",
    "spectral_norm": """
def spectral_norm(weight, u, v, axis):
    rows = np.moveaxis(weight.astype("f8"), axis, 0).reshape(len(u), -1)
    return (weight.astype("f8") / (u.astype("f8") @ rows @ v.astype("f8"))).astype(weight.dtype)
""",
    "widen": """
def widen(x, axis, size, shares):
    entries = np.arange(size) % x.shape[axis]
    wide = np.take(x, entries, axis)
    if not shares:
        return wide
    copies = np.bincount(entries)[entries].reshape(-1, *(1,) * (x.ndim - axis - 1))
    return (wide.astype("f8") / copies).astype(x.dtype)
""",
    "low_rank": """
def low_rank(weight, a, b, scale, transposed):
    update = np.tensordot(b.astype("f8").reshape(b.shape[:2]), a.astype("f8"), 1) * scale
    return (weight.astype("f8") + (update.T if transposed else update)).astype(weight.dtype)
""",
    "dequantize": """
def dequantize(axis, levels, divide, codes, *parts):
    spread = []
    for part in parts:
        part = part.astype("f8")
        if part.size == 1:
            part = part.reshape(())
        elif part.ndim == codes.ndim and max(part.shape) > 1:
            for i, (size, count) in enumerate(zip(codes.shape, part.shape)):
                if count not in (1, size):
                    part = np.take(np.repeat(part, -(-size // count), i), range(size), i)
        else:
            part = along(part, axis, codes.ndim)
        spread.append(part)
    zero = spread[1] if len(spread) > 1 else 0.0
    step = 1 / spread[0] if divide else spread[0] / levels
    return ((codes.astype("f8") - zero) * step).astype("f4")
""",
    "fold_scale": """
def fold_scale(axis, eps, kernel, *vectors):
    factor = 1 / np.sqrt(vectors[-1].astype("f8") + eps)
    factor = factor * vectors[0].astype("f8") if len(vectors) > 1 else factor
    return (kernel.astype("f8") * along(factor, axis, kernel.ndim)).astype(kernel.dtype)
""",
    "fold_shift": """
def fold_shift(eps, scale, shift, mean, variance, bias=None):
    before = (0.0 if bias is None else bias.astype("f8")) - mean.astype("f8")
    factor = scale.astype("f8") / np.sqrt(variance.astype("f8") + eps)
    return (before * factor + shift.astype("f8")).astype(scale.dtype)
""",
}
# Helpers that others call, before them.
_NEEDS = {
    "weight_norm": ("along", "norm"), "dequantize": ("along",), "fold_scale": ("along",)
}  # fmt: skip


def conversion_script(plan: Plan) -> str:
    """The script. Tensors that are fresh in the plan are named in its docstring, not made."""
    body = [
        f"    target[{graft.target!r}] = {_made(graft, plan)}\n"
        for graft in plan.grafts.values()
        if graft.written
    ]
    keeping = [graft.target for graft in plan.grafts.values() if graft.keeps]
    header = _HEADER.format(
        own=_OWN.format(", ".join(keeping)) if keeping else "",
        argument=", own" if keeping else "",
        source=plan.source.label,
        target=plan.target.label,
        fresh=", ".join(plan.fresh) or "nothing",
        imports=_imports(plan),
        helpers="\n".join(f"\n{text.strip()}\n" for text in _used(body)),
    )
    return "".join([header, *body, "    return target\n"])


def _used(body: Iterable[str]) -> list[str]:
    text = "".join(body)
    wanted = {name for name in _HELPERS if f"{name}(" in text}
    wanted |= {inner for name in wanted for inner in _NEEDS.get(name, ())}
    return [code for name, code in _HELPERS.items() if name in wanted]


def _made(graft: Graft, plan: Plan) -> str:
    values = [f"source[{name!r}]" for name in graft.sources]
    if graft.keeps:
        *before, last = graft.ops
        assert isinstance(last, o.Keep)  # it is the last one wherever it is
        made = _chain(before, values, plan.shapes_of(graft))
        start = f", {last.start}" if last.start else ""
        return f"keep({made}, {last.axis}, own[{graft.target!r}]{start})"
    return _chain(graft.ops, values, plan.shapes_of(graft))


def _chain(ops: Iterable[o.Op], values: list[str], shapes: o.Shapes) -> str:
    """The expression of a chain of operations on expressions."""
    for op in ops:
        if isinstance(op, o.Each):
            ends = [sum(op.counts[:n]) for n in range(len(op.counts) + 1)]
            values = [
                _chain(branch, values[ends[i] : ends[i + 1]], shapes[ends[i] : ends[i + 1]])
                for i, branch in enumerate(op.branches)
            ]
        else:
            joined = _joined(op, values)
            values = joined or [_single(op, x, s) for x, s in zip(values, shapes, strict=True)]
        shapes = op.infer(shapes)
    return values[0]


def _joined(op: o.Op, values: list[str]) -> list[str] | None:
    """One expression of all inputs, for operations that join them."""
    several = ", ".join(values)
    match op:
        case o.Concat(axis):
            return [f"np.concatenate([{several}], {axis})"]
        case o.Stack(axis):
            return [f"np.stack([{several}], {axis})"]
        case o.Fill(shape, value, dtype):
            return [f"np.full({shape}, {value}, {dtype!r})"]
        case o.WeightNorm(axis):
            return [f"weight_norm({several}, {axis})"]
        case o.SpectralNorm(axis):
            return [f"spectral_norm({several}, {axis})"]
        case o.LowRank(scale, transposed):
            return [f"low_rank({several}, {scale}, {transposed})"]
        case o.Multiply():
            return [f"np.multiply({values[0]}, {values[1]}, dtype={values[0]}.dtype)"]
        case o.Add():
            return [f"({' + '.join(values)})"]
        case o.Subtract():
            return [f"({' - '.join(values)})"]
        case o.Dequantize(axis, levels, divide):
            return [f"dequantize({axis}, {levels}, {divide}, {several})"]
        case o.FoldScale(axis, eps):
            return [f"fold_scale({axis}, {eps}, {several})"]
        case o.FoldShift(eps):
            return [f"fold_shift({eps}, {several})"]
        case _:
            return None


def _single(op: o.Op, x: str, shape: o.Shape) -> str:
    match op:
        case o.Transpose(axes):
            return f"np.transpose({x}, {axes})"
        case o.Reshape(to):
            return f"np.reshape({x}, {to})"
        case o.Slice(axis, start, stop):
            return f"{x}[{':, ' * axis}{start}:{stop}]"
        case o.Unstack(axis, index):
            return f"np.take({x}, {index}, {axis})"
        case o.Take(axis, indices):
            return f"np.take({x}, {list(indices)}, {axis})"
        case o.Flip(axis):
            return f"np.flip({x}, {axis})"
        case o.Tile(axis, times):
            return f"np.concatenate([{x}] * {times}, {axis})"
        case o.Widen(axis, size, shares):
            return f"widen({x}, {axis}, {size}, {shares})"
        case o.Scale(factor):
            return f"({x}.astype('f8') * {factor}).astype({x}.dtype)"
        case o.Sum(axis):
            return f"np.sum({x}, axis={axis}, keepdims=True, dtype='f8').astype({x}.dtype)"
        case o.Norm(axis):
            return f"norm({x}, {axis})"
        case o.Cast(dtype):
            return f"{x}.astype({dtype!r})"
        case o.Pad(axis, before, after, value):
            widths = [(before, after) if i == axis else (0, 0) for i in range(len(shape))]
            return f"np.pad({x}, {widths}, constant_values={value})"
        case o.Blocks(axis, order):
            return f"blocks({x}, {axis}, {order})"
        case o.Rope(axis, heads, to):
            return f"rope({x}, {axis}, {heads}, {to!r})"
        case o.Interpolate(axes, sizes):
            resized = x
            for axis, size in zip(axes, sizes, strict=True):
                matrix = op.weights(shape[axis], size).tolist()
                resized = f"resize({resized}, {axis}, {matrix})"
            return f"{resized}.astype({x}.dtype)"
        case _:
            raise AssertionError(f"no Python for {op}")


def _imports(plan: Plan) -> str:
    """numpy learns bfloat16 and float8 when ml_dtypes is imported."""
    specs = [*plan.source.tensors.values(), *plan.target.tensors.values()]
    special = any(spec.dtype.startswith(("bfloat", "float8", "float4")) for spec in specs)
    return ("import ml_dtypes  # noqa: F401\n" if special else "") + "import numpy as np\n"
