"""A plan written out as a stand-alone Python script that needs numpy and not regraft."""

from __future__ import annotations

from regraft import operations as o
from regraft.plans import Graft, Plan

_HEADER = '''"""Converts {source} into the tensors of {target}.

Written by regraft; needs numpy only (and ml_dtypes where a dtype is bfloat16 or float8).
`convert` takes a mapping of source names to arrays and returns the target's arrays by name.
Not made here, because the plan keeps the model's own values: {fresh}.
"""

{imports}

def convert(source):
    target = {{}}
'''


def conversion_script(plan: Plan) -> str:
    """The script. Tensors that are fresh in the plan are named in its docstring, not made."""
    fresh = ", ".join(plan.fresh) or "nothing"
    lines = [
        _HEADER.format(
            source=plan.source.label, target=plan.target.label, fresh=fresh, imports=_imports(plan)
        )
    ]
    for graft in plan.grafts.values():
        if graft.sources:
            lines += [f"    {line}\n" for line in _lines(graft, plan.shapes_of(graft))]
    return "".join([*lines, "    return target\n"])


def _lines(graft: Graft, shapes: o.Shapes) -> list[str]:
    values = [f"source[{name!r}]" for name in graft.sources]
    before: list[str] = []
    for op in graft.ops:
        if isinstance(op, (o.Blocks, o.Rope, o.Interpolate)):  # these name their input twice
            before += [f"x{i} = {value}" for i, value in enumerate(values)]
            values = [f"x{i}" for i in range(len(values))]
        if isinstance(op, (o.Concat, o.Stack)):
            join = "concatenate" if isinstance(op, o.Concat) else "stack"
            values = [f"np.{join}([{', '.join(values)}], {op.axis})"]
        else:
            values = [_expression(op, x, s) for x, s in zip(values, shapes, strict=True)]
        shapes = op.infer(shapes)
    return [*before, f"target[{graft.target!r}] = {values[0]}"]


def _expression(op: o.Op, x: str, shape: o.Shape) -> str:
    match op:
        case o.Transpose(axes):
            return f"np.transpose({x}, {axes})"
        case o.Reshape(to):
            return f"np.reshape({x}, {to})"
        case o.Slice(axis, start, stop):
            return f"{x}[{':, ' * axis}{start}:{stop}]"
        case o.Unstack(axis, index):
            return f"np.take({x}, {index}, {axis})"
        case o.Flip(axis):
            return f"np.flip({x}, {axis})"
        case o.Sum(axis):
            return f"np.sum({x}, axis={axis}, keepdims=True)"
        case o.Cast(dtype):
            return f"{x}.astype({dtype!r})"
        case o.Pad(axis, before, after, value):
            widths = [(before, after) if i == axis else (0, 0) for i in range(len(shape))]
            return f"np.pad({x}, {widths}, constant_values={value})"
        case o.Blocks(axis, order):
            parts = f"np.split({x}, {len(order)}, {axis})"
            return f"np.concatenate([{parts}[i] for i in {order}], {axis})"
        case o.Rope(axis, heads, to):
            split = f"{heads}, -1, 2" if to == "half" else f"{heads}, 2, -1"
            rows = f"np.arange({shape[axis]}).reshape({split}).swapaxes(1, 2).ravel()"
            return f"np.take({x}, {rows}, {axis})"
        case o.Interpolate(axes, sizes):
            dtype = f"{x}.dtype"
            for axis, size in zip(axes, sizes, strict=True):
                matrix = op.weights(shape[axis], size).tolist()
                x = f"np.moveaxis(np.tensordot(np.array({matrix}), {x}, (1, {axis})), 0, {axis})"
            return f"{x}.astype({dtype})"
        case _:
            raise AssertionError(f"no Python for {op}")


def _imports(plan: Plan) -> str:
    """numpy learns bfloat16 and float8 when ml_dtypes is imported."""
    specs = [*plan.source.tensors.values(), *plan.target.tensors.values()]
    special = any(spec.dtype.startswith(("bfloat", "float8", "float4")) for spec in specs)
    return ("import ml_dtypes  # noqa: F401\n" if special else "") + "import numpy as np\n"
