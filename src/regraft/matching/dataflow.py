"""Evidence of dataflow: a layer is known by what comes before it and what comes after it.

Where both sides have a graph (torch.fx, a Keras config, ONNX), each layer gets three fingerprints
that use no names: of all that leads to it, of all that follows from it, and of its neighbourhood up
to `_HOPS` steps (Weisfeiler and Leman's colour refinement). A replaced head leaves the first
whole, a replaced stem the second, both the third. Branches that are mirror images have equal
fingerprints: dataflow then says nothing, and does not pretend to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regraft.matching.modules import Module, parts_of
from regraft.tensors import FlowNode

_HOPS = 12


@dataclass(frozen=True)
class Fingerprint:
    """What dataflow knows of one module; sets, as a layer may be used more than once."""

    before: frozenset[int]
    after: frozenset[int]
    around: tuple[frozenset[int], ...]


def fingerprints(
    flow: Sequence[FlowNode], modules: Iterable[Module], classes: Mapping[int, int]
) -> dict[int, Fingerprint]:
    """Fingerprints by `id(module)`; `classes` numbers modules of both sides alike."""
    labels, inputs, owners = _expanded(flow, list(modules), classes)
    outputs: list[list[int]] = [[] for _ in labels]
    for node, sources in enumerate(inputs):
        for source in sources:
            outputs[source].append(node)
    before, after = [0] * len(labels), [0] * len(labels)
    for node in range(len(labels)):
        before[node] = hash((labels[node], tuple(sorted(before[i] for i in inputs[node]))))
    for node in reversed(range(len(labels))):
        after[node] = hash((labels[node], tuple(sorted(after[i] for i in outputs[node]))))
    rounds = [[hash(label) for label in labels]]
    for _ in range(_HOPS):
        last = rounds[-1]
        rounds.append(
            [
                hash((last[n], _sorted(last, inputs[n]), _sorted(last, outputs[n])))
                for n in range(len(labels))
            ]
        )
    return {
        owner: Fingerprint(
            frozenset(before[n] for n in nodes),
            frozenset(after[n] for n in nodes),
            tuple(frozenset(ring[n] for n in nodes) for ring in rounds),
        )
        for owner, nodes in owners.items()
    }


def pooled(flow: Sequence[FlowNode], modules: Iterable[Module]) -> dict[int, bool]:
    """By `id(module)`, whether a layer reads a map that was pooled just before; nothing where the
    graph shows no pooling at all. Of an inception's equal branches one begins with it."""
    if not any("pool" in node.via for node in flow):
        return {}
    reads: dict[tuple[str, ...], bool] = {}
    for node in flow:
        if node.owner:
            path = tuple(parts_of(node.owner))
            reads[path] = reads.get(path, False) or "pool" in node.via
    return {id(m): reads[m.path] for m in modules if m.path in reads}


def _sorted(values: Sequence[int], nodes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(values[n] for n in nodes))


def similarity(source: Fingerprint, target: Fingerprint) -> float:
    """0 to 1: 0.4 each for equal past and equal future, up to 0.2 for the neighbourhood."""
    hops = sum(bool(a & b) for a, b in zip(source.around, target.around, strict=True))
    past, future = bool(source.before & target.before), bool(source.after & target.after)
    return 0.4 * past + 0.4 * future + 0.2 * hops / len(source.around)


def _expanded(
    flow: Sequence[FlowNode], modules: list[Module], classes: Mapping[int, int]
) -> tuple[list[object], list[tuple[int, ...]], dict[int, list[int]]]:
    """The graph with one node per module: a layer that holds several becomes a chain of them."""
    held: dict[tuple[str, ...], list[Module]] = defaultdict(list)
    for module in modules:
        for cut in range(len(module.path) + 1):
            held[module.path[:cut]].append(module)
    labels: list[object] = []
    inputs: list[tuple[int, ...]] = []
    owners: dict[int, list[int]] = defaultdict(list)
    last_of: list[tuple[int, ...]] = []  # for each node of `flow`: its end in the new graph
    for node in flow:
        sources = tuple(dict.fromkeys(end for i in node.inputs for end in last_of[i]))
        chain = held.get(tuple(parts_of(node.owner)), []) if node.owner else []
        # What meets itself again (x · sigmoid(x)) is no merge: one side's graph may not show it.
        if node.label and len(sources) > 1:
            labels.append(("merge", len(sources)))
            inputs.append(sources)
            sources = (len(labels) - 1,)
        for module in chain:
            owners[id(module)].append(len(labels))
            labels.append(("class", classes[id(module)]))
            inputs.append(sources)
            sources = (len(labels) - 1,)
        last_of.append(sources)
    return labels, inputs, owners
