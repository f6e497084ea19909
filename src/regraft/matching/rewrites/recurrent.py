"""Recurrent layers: one bias or two, gates in one kernel or a layer for each.

- PyTorch adds two biases, `bias_ih` and `bias_hh`; the LSTM and the simple layer of Keras and Flax
  have their sum. A GRU of Flax' newer interface has none on the recurrent side: it is zero there.
- Flax has a dense layer for each gate: `ii if ig io` and `hi hf hg ho` (LSTM; the second four have
  the biases), `ir iz in` and `hr hz hn` (GRU; the first three and `hn` have them).

Gates lie in the order i, f, g, o in all of them, and r, z, n (PyTorch, Flax) or z, r, n (Keras) in
a GRU; the order inside fused kernels is `layouts`' to change. `cells` has made one layer of each.
"""

from __future__ import annotations

from collections.abc import Sequence

from regraft.matching import kinds
from regraft.matching.modules import Leaf, Module
from regraft.matching.rewrites.finding import Finding, Sight
from regraft.matching.views import Expression, Rewrite
from regraft.operations import Add, AnyOp, Concat, Each, Fill, Slice
from regraft.tensors import TensorInfo


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    gates = _gate_layers(there)
    if gates:
        found = [r for m in here.modules if (r := _by_gate(m, gates)) is not None]
        return [Finding(found)] if found else []
    if any("recurrent_bias" in m.leaves for m in there.modules):
        return []
    summed = [_one_bias(m) for m in here.modules if _two_biases(m) and _sums(m, here, there)]
    return [Finding(summed, certain=True)] if summed else []


def _sums(module: Module, here: Sight, there: Sight) -> bool:
    """Whether one bias of the other side does what both of a layer do.

    Not in a GRU: its reset gate stands between them. There the other side's one bias is that of
    the inputs, and the second one is zero: a target's may be set so.
    """
    others = {kinds.GRU in m.leaves["recurrent"].kind for m in there.modules
              if "recurrent" in m.leaves}  # fmt: skip
    gated = _gates(module) == 3
    return gated in others and not (gated and here.is_source)


def _gates(module: Module) -> int:
    """How many gates a recurrent kernel `[h, gates·h]` has, in any layout; 0 if it is none."""
    recurrent = module.leaves.get("recurrent")
    sizes = sorted(recurrent.info.shape) if recurrent else []
    return sizes[1] // sizes[0] if len(sizes) == 2 and sizes[0] and not sizes[1] % sizes[0] else 0


def _two_biases(module: Module) -> bool:
    return "recurrent_bias" in module.leaves and "bias" in module.leaves


def _one_bias(module: Module) -> Rewrite:
    a, b = module.leaves["bias"].info, module.leaves["recurrent_bias"].info
    return Rewrite(
        (a, b),
        (a,),
        {a.name: Expression((a.name, b.name), (Add(),))},
        {a.name: Expression.of(a.name), b.name: Expression((), (Fill(b.shape, 0.0, b.dtype),))},
        "the sum of both biases of a recurrent layer",
    )


# Flax' names of the gates' layers, in PyTorch's order of gates; those of a GRU come second.
_GATES = (("i", "f", "g", "o"), ("r", "z", "n"))


def _gate_layers(there: Sight) -> set[int]:
    """Numbers of gates of which the other side has a layer each."""
    sisters: dict[tuple[str, ...], set[str]] = {}
    for module in there.modules:
        if module.path:
            sisters.setdefault(module.path[:-1], set()).add(module.path[-1].rstrip("_"))
    return {
        len(gates)
        for gates in _GATES
        for names in sisters.values()
        if all(f"{side}{gate}" in names for side in "ih" for gate in gates)
    }


def _by_gate(module: Module, counts: set[int]) -> Rewrite | None:
    """A recurrent layer as one dense layer for each gate and side."""
    count = _gates(module)
    kernel, recurrent = module.leaves.get("kernel"), module.leaves.get("recurrent")
    if count not in counts or kernel is None or recurrent is None:
        return None
    gates = _GATES[0] if count == 4 else _GATES[1]
    keras_gru = count == 3 and kernel.framework == "keras"
    stored = ("z", "r", "n") if keras_gru else gates
    biases = [module.leaves[r] for r in ("bias", "recurrent_bias") if r in module.leaves]
    separator = "/" if "/" in kernel.info.name else "."
    owner = separator.join(module.path)
    units = min(recurrent.info.shape)
    new: list[TensorInfo] = []
    down: dict[str, Expression] = {}
    up: dict[str, Expression] = {}
    for side, leaf in (("i", kernel), ("h", recurrent)):
        axis = 0 if leaf.framework == "torch" else 1
        parts: list[str] = []
        for place, gate in enumerate(stored):
            name = f"{owner}{separator}{side}{gate}{separator}{'weight' if axis == 0 else 'kernel'}"
            shape = tuple(units if a == axis else n for a, n in enumerate(leaf.info.shape))
            new.append(TensorInfo(name, shape, leaf.info.dtype))
            cut = Slice(axis, place * units, (place + 1) * units)
            down[name] = Expression((leaf.info.name,), (cut,))
            parts.append(name)
        up[leaf.info.name] = Expression(tuple(parts), (Concat(axis),))
    if biases:
        _gate_biases(biases, count, stored, owner, separator, units, new, down, up)
    old = (kernel.info, recurrent.info, *(b.info for b in biases))
    return Rewrite(old, tuple(new), down, up, "the gates of a recurrent layer, one by one")


def _gate_biases(
    biases: Sequence[Leaf],
    count: int,
    stored: Sequence[str],
    owner: str,
    separator: str,
    units: int,
    new: list[TensorInfo],
    down: dict[str, Expression],
    up: dict[str, Expression],
) -> None:
    """Flax adds one bias for each gate, and one more inside the reset gate of a GRU."""
    names = tuple(b.info.name for b in biases)
    dtype = biases[0].info.dtype
    zeros: tuple[AnyOp, ...] = (Fill((units,), 0.0, dtype),)
    per_bias: list[list[tuple[tuple[str, ...], tuple[AnyOp, ...]]]] = [[] for _ in biases]
    for place, gate in enumerate(stored):
        cut = Slice(0, place * units, (place + 1) * units)
        apart = count == 3 and gate == "n"
        if apart:  # the candidate of a GRU: each side's bias for itself
            for index, side in enumerate("ih"[: len(names)]):
                name = f"{owner}{separator}{side}n{separator}bias"
                new.append(TensorInfo(name, (units,), dtype))
                down[name] = Expression((names[index],), (cut,))
                per_bias[index].append(((name,), ()))
            continue
        side = "i" if count == 3 else "h"
        name = f"{owner}{separator}{side}{gate}{separator}bias"
        new.append(TensorInfo(name, (units,), dtype))
        joined: tuple[AnyOp, ...] = (Add(),) if len(names) > 1 else ()
        down[name] = Expression(names, (*joined, cut)) if joined else Expression(names, (cut,))
        for index in range(len(names)):
            per_bias[index].append(((name,), ()) if index == 0 else ((), zeros))
    for bias, parts in zip(biases, per_bias, strict=True):
        each = Each(tuple(len(n) for n, _ in parts), tuple(ops for _, ops in parts))
        told = tuple(name for n, _ in parts for name in n)
        up[bias.info.name] = Expression(told, (each, Concat(0)))
