"""Fused projections: one kernel for q, k and v, for k and v, for a gate and what it gates.

A fused kernel is seen as its parts where the other side has such parts, of sizes that add up to
it. How the parts lie in it is a convention that its name tells: one after another in nearly all
code, in the order that the name spells; by head under `query_key_value` and `attn.attn` (GPT-NeoX,
BLOOM, Persimmon, LitGPT: for each group of heads its queries, then key and value; Black and others
2022, arXiv:2204.06745). Names that are none of the known leave it open, as alternatives.

A part may have no bias where the others have one, as Whisper's and BEiT's keys: it is zero.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from regraft.matching import kinds
from regraft.matching.fitting import number_classes
from regraft.matching.modules import Module
from regraft.matching.projections import fused_of, order_of, projection_of
from regraft.matching.rewrites.finding import Finding, Sight, kernel_of
from regraft.matching.rewrites.heads import HeadCounts, head_counts
from regraft.matching.views import Expression, Rewrite, composed
from regraft.operations import AnyOp, Concat, Each, Fill, Reshape, Slice
from regraft.tensors import TensorInfo

# Names whose parts lie one after another without spelling it, and those whose parts lie by head.
_BLOCKS = ("in_proj", "in_proj_weight", "in_proj_bias", "c_attn", "w_pack", "w13")
_BY_HEAD = ("query_key_value", "attn.attn")
_MOST_READINGS = 12


class _Parts(NamedTuple):
    """What a fused kernel is to be seen as: names of the parts and their sizes, in their order;
    the inputs of all, and which of them have a bias."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    inputs: int
    biased: tuple[bool, ...]


class _Fused(NamedTuple):
    """A fused layer, its parts, and the axis of its kernel that they lie on."""

    module: Module
    parts: _Parts
    axis: int


# Parts, and the names of the layers that are these parts.
_Ways = Sequence[tuple[tuple[str, ...], tuple[str, ...]]]
_WHOLE: _Ways = (
    (("q", "k", "v"), ("q", "k", "v")), (("k", "v"), ("k", "v")), (("gate", "up"), ("gate", "up")),
    (("gate", "up"), ("w1", "w3")),
)  # fmt: skip
_PARTLY: _Ways = ((("q", "kv"), ("q", "kv")),)


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    split = _split_projections(there, _WHOLE)
    if sum(split.values()) <= sum(_split_projections(here, _WHOLE).values()):
        # The other side has no more of them apart than this one: first, what is apart in part.
        split = _split_projections(there, _PARTLY) + split
    return _find(here, there, split)


def find_partly(here: Sight, there: Sight) -> Sequence[Finding]:
    """What is left fused where the other side has a query, and key and value in one; only once
    other fused layers of that size are cut, which seemed to be its counterparts."""
    split = _split_projections(there, _PARTLY)
    return _find(here, there, split) if split else ()


def _find(here: Sight, there: Sight, counted: Mapping[_Parts, int]) -> Sequence[Finding]:
    split = list(counted)
    by_family: dict[tuple[str, ...], list[_Fused]] = defaultdict(list)
    alone = _alone(here, there)
    for module in here.modules:
        found = _fused(module, split, id(module) in alone)
        if found is not None:
            by_family[found.parts.names].append(found)
    return [_finding(here, there, members) for members in by_family.values()]


def _split_projections(there: Sight, ways: _Ways) -> Counter[_Parts]:
    """Groups of sister layers that are the parts of one projection, the most frequent first."""
    groups: dict[tuple[str, ...], dict[str, Module]] = defaultdict(dict)
    for module in there.modules:
        part = projection_of(module.says) or ("kv" if fused_of(module.path) == ("k", "v") else "")
        if part and kernel_of(module):
            groups[module.path[:-1]].setdefault(part, module)
    found: Counter[_Parts] = Counter()
    for members in groups.values():
        for names, own in ways:
            if all(name in members for name in own):
                sizes = [_sizes(members[name], there) for name in own]
                if len({inputs for _, inputs in sizes}) == 1:
                    biased = tuple("bias" in members[name].leaves for name in own)
                    outputs = tuple(out for out, _ in sizes)
                    found[_Parts(names, outputs, sizes[0][1], biased)] += 1
    return Counter(dict(found.most_common()))


def _sizes(module: Module, sight: Sight) -> tuple[int, int]:
    """Outputs and inputs of a dense kernel, whatever its layout."""
    kernel = kernel_of(module)
    assert kernel is not None
    shape = kernel.info.shape
    if len(shape) == 2 and not kernel.inputs_first:
        return shape[0], shape[1]
    if kernel.kind == kinds.HEADS_FIRST:
        return shape[0] * shape[-1], shape[1]
    return math.prod(shape[1:]), shape[0]  # [d, n] or [d, h, k]


def _alone(here: Sight, there: Sight) -> set[int]:
    """Layers whose roles and shapes no layer of the other side has."""
    classes = number_classes(*((here.modules, there.modules) if here.is_source else
                               (there.modules, here.modules)))  # fmt: skip
    others = {classes[id(m)] for m in there.modules}
    return {id(m) for m in here.modules if classes[id(m)] not in others}


def _fused(module: Module, split: Sequence[_Parts], alone: bool) -> _Fused | None:
    kernel = kernel_of(module)
    names = fused_of(_own_name(module))
    if kernel is None or projection_of(module.says):
        return None
    if not names and (alone or module.path[-1:] == ("attn",)) and len(kernel.info.shape) == 2:
        names = ("q", "k", "v")  # by its size, or as what an attention is: the name tells no more
    if not names:
        return None
    shape = kernel.info.shape
    if len(shape) != 2:
        return None
    axis = int(kernel.inputs_first)
    for parts in split:
        fits = shape[1 - axis] == parts.inputs and shape[axis] == sum(parts.sizes)
        if fits and _made_of(parts.names) == names:
            return _Fused(module, parts, axis)
    return None


def _made_of(names: Sequence[str]) -> tuple[str, ...]:
    """Parts that may be fused themselves (a query, and key and value in one), one by one."""
    return tuple(one for name in names for one in (name if name == "kv" else (name,)))


def _own_name(module: Module) -> tuple[str, ...]:
    """The layer's path, or the name of its kernel where that has the word (`in_proj_weight`)."""
    kernel = kernel_of(module)
    owner, _, leaf = kernel.info.name.replace("/", ".").rpartition(".") if kernel else ("", "", "")
    if owner.endswith(".attn.attn"):  # paths say nothing twice
        return (*module.path[:-1], "attn.attn")
    return (leaf,) if fused_of((leaf,)) else module.path


def _finding(here: Sight, there: Sight, members: Sequence[_Fused]) -> Finding:
    """All fused layers of one kind; readings in the order of how likely they are."""
    words = {_word(m.module) for m in members}
    by_head, orders = words <= set(_BY_HEAD), {_told_order(m) for m in members}
    counts = head_counts(here, there)
    fitting = [n for n in counts.key_value if _equal_heads(members, n, counts)]
    if by_head and not counts.known:
        shown = _shown_heads(there)
        fitting = [n for parts, n in shown if all(m.parts.sizes == parts for m in members)]
    names = members[0].parts.names
    ways: list[tuple[str, int]] = []  # order of the parts ("" as named), groups of heads (0: none)
    plain = ",".join(names)
    attention = names == ("q", "k", "v")
    if not by_head and len(orders) == 1 and () not in orders:
        ways = [(",".join(*orders), 0)]
    elif by_head and fitting:
        ways = [(plain, n) for n in fitting]
    else:
        ways = [(plain, 0)]
        ways += [(plain, n) for n in counts.key_value] if attention or names == ("k", "v") else []
        ways += [(",".join(order), 0) for order in permutations(names) if order != names]
        if by_head:
            ways.sort(key=lambda way: not way[1])
    readings = [
        [r for m in members for r in _rewrites(m, here, order.split(","), groups)]
        for order, groups in ways[:_MOST_READINGS]
        if all(_divides(m.parts, groups) for m in members)
    ]
    label = f"how {', '.join(names)} lie in {members[0].module.path[-1]}"
    return Finding(readings[0], readings[1:], label) if readings else Finding(())


def _shown_heads(there: Sight) -> Iterator[tuple[tuple[int, ...], int]]:
    """Sizes of query, key and value, and the number of heads of the last two, as an experiment with
    the live model that has them apart shows; of the first attention, which stands for all."""
    groups: dict[tuple[str, ...], dict[str, Module]] = defaultdict(dict)
    for module in there.modules:
        if kernel_of(module):
            groups[module.path[:-1]][projection_of(module.says) or module.path[-1]] = module
    for members in groups.values():
        if not {"q", "k", "v"} <= members.keys():
            continue
        kernels = {name: leaf.info for name, m in members.items() if (leaf := kernel_of(m))}
        sizes = tuple(kernels[name].shape[0] for name in "qkv")
        behind = [i.name for n, i in kernels.items() if n not in "qkv" and i.shape[1:] == sizes[:1]]
        width = there.ask_head_width(kernels["v"].name, behind)
        if width and sizes[2] % width == 0:
            yield sizes, sizes[2] // width
        return


def _equal_heads(members: Sequence[_Fused], groups: int, counts: HeadCounts) -> bool:
    """Whether queries, of known heads, and keys have heads of one width."""
    widths = {(m.parts.sizes[0], m.parts.sizes[-1]) for m in members}
    return not counts.query_known or all(
        any(q * groups == k * heads for heads in counts.query_known) for q, k in widths
    )


def _told_order(fused: _Fused) -> tuple[str, ...]:
    """The parts one after another, as the layer's name tells; `()` where it does not."""
    spelled = order_of(_own_name(fused.module))
    if spelled and spelled == _made_of(fused.parts.names):
        return fused.parts.names
    if set(spelled) == set(fused.parts.names):
        return spelled
    return fused.parts.names if _word(fused.module) in _BLOCKS else ()


def _word(module: Module) -> str:
    return _own_name(module)[-1].lower()


def _divides(parts: _Parts, groups: int) -> bool:
    return not groups or all(size % groups == 0 for size in parts.sizes)


def _rewrites(fused: _Fused, here: Sight, order: Sequence[str], groups: int) -> Iterator[Rewrite]:
    """One for the kernel and one for the bias, where there is one."""
    for leaf in fused.module.leaves.values():
        if leaf.role not in ("kernel", "bias") or leaf.info.size % sum(fused.parts.sizes):
            continue
        axis = fused.axis if leaf.role == "kernel" else 0
        info = leaf.info
        if leaf.kind == "matmul" and not info.module:  # a part's own name would not tell
            info = info._replace(module=kinds.MATMULS.get(leaf.framework, ""))
        new = [_part(info, name, fused, axis, here) for name in fused.parts.names]
        if groups:
            down, up = _grouped(leaf.info, new, axis, groups, fused.parts)
        else:
            down, up = _in_blocks(leaf.info, new, axis, order, fused.parts)
        if leaf.role == "bias" and not here.is_source:
            down, up, new = _without_zeros(down, up, new, fused.parts.biased)
        owner = leaf.info.name.replace("/", ".").rpartition(".")[0]
        parts = tuple(dict.fromkeys(i.name.replace("/", ".").rpartition(".")[0] for i in new))
        text = f"{', '.join(fused.parts.names)} in one tensor"
        moved = {owner: parts} if fused_of((owner.rpartition(".")[2],)) else {}
        yield Rewrite((leaf.info,), tuple(new), down, up, text, moved)


def _part(info: TensorInfo, name: str, fused: _Fused, axis: int, here: Sight) -> TensorInfo:
    """The tensor of one part, under the name that it would have if it were stored."""
    separator = "/" if "/" in info.name else "."
    *path, leaf = info.name.split(separator)
    word = (
        "weight" if leaf.lower().endswith("weight") else "bias" if "bias" in leaf.lower() else leaf
    )
    if path and fused_of((path[-1],)):
        own = separator.join([*path[:-1], name, leaf])
    else:
        own = separator.join([*path, name, word])
    if own in here.catalogue:
        own = separator.join([*path, f"{name}_part", leaf])
    size = fused.parts.sizes[fused.parts.names.index(name)]
    shape = (*info.shape[:axis], size, *info.shape[axis + 1 :])
    return info._replace(name=own, shape=shape)


def _without_zeros(
    down: Mapping[str, Expression],
    up: Mapping[str, Expression],
    new: Sequence[TensorInfo],
    biased: Sequence[bool],
) -> tuple[dict[str, Expression], dict[str, Expression], list[TensorInfo]]:
    """The same for a target whose fused bias has zeros where a part of the source's has none."""
    held = [part for part, has_one in zip(new, biased, strict=True) if has_one or not any(biased)]
    made = {part.name: Expression.of(part.name) for part in held}
    zeros = {p.name: Expression((), (Fill(p.shape, 0.0, p.dtype),)) for p in new if p not in held}
    return (
        {part.name: down[part.name] for part in held},
        {name: composed(expression, made | zeros) for name, expression in up.items()},
        held,
    )


Ways = tuple[dict[str, Expression], dict[str, Expression]]


def _in_blocks(
    info: TensorInfo, new: Sequence[TensorInfo], axis: int, order: Sequence[str], parts: _Parts
) -> Ways:
    """One after another along `axis`."""
    down: dict[str, Expression] = {}
    start = 0
    for name in order:
        index = parts.names.index(name)
        stop = start + parts.sizes[index]
        down[new[index].name] = Expression((info.name,), (Slice(axis, start, stop),))
        start = stop
    ordered = tuple(new[parts.names.index(name)].name for name in order)
    return down, {info.name: Expression(ordered, (Concat(axis),))}


def _grouped(
    info: TensorInfo, new: Sequence[TensorInfo], axis: int, groups: int, parts: _Parts
) -> Ways:
    """For each group of heads its part of each projection: `[groups, sizes / groups]`."""
    before, after = info.shape[:axis], info.shape[axis + 1 :]
    widths = [size // groups for size in parts.sizes]
    cut = Reshape((*before, groups, sum(widths), *after))
    down: dict[str, Expression] = {}
    branches: list[tuple[AnyOp, ...]] = []
    start = 0
    for part, width in zip(new, widths, strict=True):
        take = Slice(axis + 1, start, start + width)
        down[part.name] = Expression((info.name,), (cut, take, Reshape(part.shape)))
        branches.append((Reshape((*before, groups, width, *after)),))
        start += width
    each = Each((1,) * len(new), tuple(branches))
    names = tuple(part.name for part in new)
    return down, {info.name: Expression(names, (each, Concat(axis + 1), Reshape(info.shape)))}
