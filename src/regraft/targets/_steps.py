"""From the steps that a trace of a torch.nn.Module shows to its dataflow, however it was traced."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from regraft.tensors import FlowNode

# More steps than any model that people load has; what follows grows with them.
LIMIT = 20_000
_MERGES = {
    "add": "add", "iadd": "add", "add_": "add", "cat": "cat", "concat": "cat", "stack": "cat",
    "mul": "mul", "imul": "mul", "mul_": "mul", "matmul": "matmul", "bmm": "matmul",
    "einsum": "matmul",
}  # fmt: skip

# Steps that rearrange axes, by the names of functions, methods and layers.
_REARRANGES = {
    "flatten": "flatten", "ravel": "flatten", "view": "reshape", "reshape": "reshape",
    "unflatten": "reshape", "permute": "permute", "transpose": "permute", "movedim": "permute",
    "moveaxis": "permute", "swapaxes": "permute", "swapdims": "permute", "t": "permute",
}  # fmt: skip

# Steps that take a mean or the largest of a window.
_POOLS = {
    f"{kind}{join}pool{rank}d"
    for kind in ("avg", "max")
    for join in ("_", "")
    for rank in (1, 2, 3)
}


_ATTENTION = "scaled_dot_product_attention"


class Step(NamedTuple):
    """One call of a layer or a function, or a parameter that is read by itself.

    - `key`: what other steps name it by.
    - `inputs`: keys of the steps that it takes something from; all come before it.
    - `owner`: the path of the layer that holds its tensors; `""` for a step without any.
    - `does`: the name of a function, a method or a layer's class without tensors.
    - `via`: what it does to the order of axes; see `FlowNode`.
    - `sizes`: whether it gives sizes, which are no data.
    """

    key: Hashable
    inputs: tuple[Hashable, ...] = ()
    owner: str = ""
    does: str = ""
    via: tuple[str, ...] = ()
    sizes: bool = False


def flow_of(steps: Iterable[Step]) -> tuple[FlowNode, ...]:
    """Layers with tensors, and what joins data of several; all other steps are seen through."""
    result: list[FlowNode] = []
    ends: dict[Hashable, tuple[int, ...]] = {}
    vias: dict[Hashable, tuple[str, ...]] = {}
    for step in _spelt_out(steps):
        reads = [key for key in step.inputs if ends.get(key)]
        sources = tuple(dict.fromkeys(end for key in reads for end in ends[key]))
        via = tuple(done for key in reads for done in vias.get(key, ()))
        if step.owner or (len(reads) > 1 and step.does):
            label = "" if step.owner else _MERGES.get(step.does, "other")
            result.append(FlowNode(step.owner, label, sources, via))
            ends[step.key] = (len(result) - 1,)
        else:
            ends[step.key] = () if step.sizes else sources
            vias[step.key] = (*via, *step.via) if sources else ()
    return tuple(result)


def _spelt_out(steps: Iterable[Step]) -> Iterator[Step]:
    """An attention in one step as the products that it is of, as other code writes it: queries and
    keys first, a bias that is added to them, and then values."""
    for step in steps:
        if step.does != _ATTENTION or len(step.inputs) < 3:
            yield step
            continue
        query, key, value, *bias = step.inputs
        scores: Hashable = (step.key, "scores")
        yield Step(scores, (query, key), does="matmul")
        if bias:
            yield Step((step.key, "bias"), (scores, *bias), does="add")
            scores = (step.key, "bias")
        yield step._replace(inputs=(scores, value), does="matmul")


def rearranged(does: str, sizes: Any = None) -> tuple[str, ...]:
    """What a step without weights does to the order of axes; `()` for nothing. `sizes` are those
    that a reshape is given."""
    if does in _POOLS:
        return ("pool",)
    step = _REARRANGES.get(does)
    # x.view(n, -1), x.reshape(x.shape[0], -1): two sizes, the last one all that is left
    if step == "reshape" and isinstance(sizes, (tuple, list)) and len(sizes) == 2:
        step = "flatten" if sizes[-1] == -1 else step
    return (step,) if step else ()


def is_layer(module: Any) -> bool:
    """Whether what is inside a module is no business of others: a layer of PyTorch, and one that
    holds tensors of its own, and those in it none, as other libraries' norms do."""
    import torch

    if isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList)):
        return False
    if module.__module__.startswith(("torch.nn", "torch.ao.nn")):
        return True
    own = any(True for _ in module.parameters(recurse=False))
    return own and not any(has_tensors(child) for child in module.children())


def has_tensors(module: Any) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
