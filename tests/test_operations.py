"""The algebra: infer agrees with run, inverse undoes run, pushed slices give sliced results."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft import operations as ops
from regraft.errors import ShapeMismatch

sizes = st.integers(1, 4)


@st.composite
def an_op(draw: st.DrawFn) -> tuple[ops.Op, tuple[tuple[int, ...], ...]]:
    """An operation and shapes that it accepts."""
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(sizes) for _ in range(rank))
    axis = draw(st.integers(0, rank - 1))
    doubled = (*shape[:axis], shape[axis] * 4, *shape[axis + 1 :])
    start = draw(st.integers(0, shape[axis] - 1))
    stop = draw(st.integers(start + 1, shape[axis]))
    others = [(*shape[:axis], draw(sizes), *shape[axis + 1 :]) for _ in range(2)]
    return draw(
        st.sampled_from(
            [
                (ops.Transpose(tuple(draw(st.permutations(range(rank))))), (shape,)),
                (ops.Reshape((int(np.prod(shape)),)), (shape,)),
                (ops.Concat(axis), (shape, *others)),
                (ops.Stack(axis), (shape, shape)),
                (ops.Unstack(axis, start), (shape,)),
                (ops.Slice(axis, start, stop), (shape,)),
                (ops.Pad(axis, 1, 2, 0.5), (shape,)),
                (ops.Flip(axis), (shape,)),
                (ops.Blocks(axis, tuple(draw(st.permutations(range(4))))), (doubled,)),
                (ops.Rope(axis, 2, draw(st.sampled_from(["half", "interleaved"]))), (doubled,)),
                (ops.Sum(axis), (shape,)),
                (ops.Tile(axis, 3), (shape,)),
                (ops.Widen(axis, shape[axis] + 3, draw(st.booleans())), (shape,)),
                (ops.Scale(0.75), (shape,)),
                (ops.Take(axis, tuple(draw(st.permutations(range(shape[axis]))))), (shape,)),
                (ops.Take(axis, (start, 0, start)), (shape,)),
                (ops.Norm(axis), (shape,)),
                (ops.Multiply(), (shape, shape)),
                (ops.Add(), (shape, shape, shape)),
                (ops.Subtract(), (shape, shape)),
                (ops.WeightNorm(axis), ((shape[axis],), shape)),
                (ops.WeightNorm(-1), ((), shape)),
                (
                    ops.SpectralNorm(axis),
                    (shape, (shape[axis],), (int(np.prod(shape)) // shape[axis],)),
                ),
                (ops.Dequantize(axis, 127), (shape, (shape[axis],))),
                (ops.Dequantize(axis, 1, True), (shape, (shape[axis],))),
                (ops.LowRank(2.0), ((5, *shape), (2, *shape), (5, 2))),
                (ops.LowRank(2.0, True), ((5, 3), (2, 5), (3, 2))),
                (ops.Dequantize(axis), (shape, (shape[axis],))),
                (
                    ops.Dequantize(axis),
                    (doubled, tuple(1 if i != axis else 2 for i in range(rank)), ()),
                ),
                (ops.FoldScale(axis, 1e-3), (shape, (shape[axis],), (shape[axis],))),
                (ops.FoldShift(1e-3), ((3,),) * 5),
                (ops.Fill(shape, 0.5), ()),
                (ops.Each((1, 2), ((ops.Flip(axis),), (ops.Add(),))), (shape, shape, shape)),
                (ops.Interpolate((axis,), (draw(sizes),), "bilinear"), (shape,)),
                (ops.Cast("float64", "float32"), (shape,)),
            ]
        )
    )


def arrays_of(shapes: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.uniform(0.5, 1.5, s).astype(np.float32) for s in shapes)


@given(an_op())
def test_infer_agrees_with_run_and_inverse_undoes_it(case):
    op, shapes = case
    arrays = arrays_of(shapes)
    results = op.run(arrays)
    assert tuple(r.shape for r in results) == op.infer(shapes)
    for index, array in enumerate(arrays):
        back = op.undo(shapes, index)
        if back is not None:
            place = op.branch_of(index)[0] if isinstance(op, ops.Each) else index
            result = results[0 if len(results) == 1 else place]
            np.testing.assert_array_equal(ops.run(back, [result]), array)


@given(an_op(), st.data())
def test_pushed_slices_give_the_slice_of_the_result(case, data):
    op, shapes = case
    arrays = arrays_of(shapes)
    joined = (ops.Concat(0),) if len(op.infer(shapes)) > 1 else ()
    rank = len(ops.infer((op, *joined), shapes))
    chain = (op, *joined, ops.Transpose(tuple(reversed(range(rank)))))
    whole = ops.run(chain, arrays)
    wanted = []
    for size in whole.shape:
        start = data.draw(st.integers(0, size - 1))
        wanted.append(slice(start, data.draw(st.integers(start + 1, size))))
    rest, needed = ops.push_down(chain, shapes, tuple(wanted))
    parts = [a if n is None else a[n] for a, n in zip(arrays, needed, strict=True)]
    np.testing.assert_array_equal(ops.run(rest, parts), whole[tuple(wanted)])


@given(an_op())
def test_an_op_survives_json(case):
    op, _ = case
    assert msgspec.json.decode(msgspec.json.encode(op), type=ops.AnyOp) == op


def test_a_slice_of_a_fused_tensor_is_read_alone():
    rest, needed = ops.push_down((ops.Slice(0, 4, 8), ops.Transpose((1, 0))), ((12, 3),))
    assert needed == ((slice(4, 8), slice(0, 3)),)
    assert rest == (ops.Transpose((1, 0)),)


def test_chains_invert_as_a_whole():
    shapes = ((2, 3), (4, 3))
    chain = (ops.Transpose((1, 0)), ops.Concat(1), ops.Reshape((18,)))
    arrays = arrays_of(shapes)
    result = ops.run(chain, arrays)
    for index, array in enumerate(arrays):
        back = ops.invert(chain, shapes, index)
        assert back is not None
        np.testing.assert_array_equal(ops.run(back, [result]), array)


def test_neighbouring_transposes_are_joined():
    twice = (ops.Transpose((2, 0, 1)), ops.Transpose((1, 2, 0)))
    assert ops.simplify(twice) == ()


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (ops.Transpose((1, 0)), (2, 3, 4)),
        (ops.Reshape((7,)), (2, 3)),
        (ops.Slice(0, 1, 9), (2, 3)),
        (ops.Blocks(0, (1, 0)), (3,)),
        (ops.Rope(0, 2, "half"), (6,)),
    ],
)
def test_wrong_shapes_are_refused(op, shape):
    with pytest.raises(ShapeMismatch):
        op.infer((shape,))


@pytest.mark.parametrize("size", [(5, 9), (14, 3), (7, 7)])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_interpolation_is_torchs(size, method, antialias):
    torch = pytest.importorskip("torch")
    image = arrays_of(((2, 3, 8, 6),))[0]
    ours = ops.Interpolate((2, 3), size, method, antialias).run_one(image)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image), size=size, mode=method, antialias=antialias
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "to", "lossless"),
    [
        ("float16", "float32", True),
        ("float32", "float16", False),
        ("bfloat16", "float32", True),
        ("float32", "bfloat16", False),
        ("float16", "bfloat16", False),
        ("bfloat16", "float16", False),
        ("float8_e4m3fn", "float16", True),
        ("int64", "int32", False),
        ("uint8", "int16", True),
    ],
)
def test_casts_know_whether_values_survive(source, to, lossless):
    assert ops.Cast(to, source).lossless is lossless


def test_computed_weights_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
    state = {n: v.detach().numpy() for n, v in layer.state_dict().items()}
    g, v = (state[f"parametrizations.weight.original{i}"] for i in (0, 1))
    np.testing.assert_allclose(
        ops.WeightNorm(0).merge(g, v), layer.weight.detach().numpy(), rtol=1e-6
    )
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    for tensor in norm.state_dict().values():
        if tensor.ndim:
            tensor.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, 4).astype(np.float32)))
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
    w, b = (t.detach().numpy() for t in (conv.weight, conv.bias))
    gamma, beta, mean, var = (
        getattr(norm, n).detach().numpy() for n in ("weight", "bias", "running_mean", "running_var")
    )
    np.testing.assert_allclose(
        ops.FoldScale(0, norm.eps).merge(w, gamma, var), fused.weight.detach().numpy(), rtol=1e-5
    )
    np.testing.assert_allclose(
        ops.FoldShift(norm.eps).merge(gamma, beta, mean, var, b),
        fused.bias.detach().numpy(), rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@given(an_op())
def test_the_script_computes_what_the_op_does(case):
    from regraft.plans import Graft, Plan, Side, Spec
    from regraft.transfer import make

    op, shapes = case
    chain = (op, *((ops.Concat(0),) if len(op.infer(shapes)) > 1 else ()), ops.Scale(2.0))
    arrays = arrays_of(shapes)
    sources = {f"s{i}": array for i, array in enumerate(arrays)}
    specs = {name: Spec(array.shape, "float32") for name, array in sources.items()}
    spec = Spec(ops.infer(chain, shapes), "float32")
    graft = Graft("t", spec, "convert", tuple(sources), chain)
    plan = Plan(Side("a", "", "", specs), Side("b", "", "", {"t": spec}), {"t": graft})
    scope: dict = {}
    exec(plan.to_python(), scope)
    made = scope["convert"](sources)["t"]
    np.testing.assert_allclose(
        made, make(plan, graft, lambda n, s: sources[n][s or ...]), rtol=1e-6
    )
