"""Target layers that nothing fits: fresh where that is what a person would say, else open.

Fresh are, each for a reason that is told:

- *another head*: a layer that has its counterpart by name, with other outputs and the same inputs,
  while no layer has other inputs than its counterpart. Outputs that changed and feed nothing that
  changed are the model's answers;
- the layers at the end of the definition, behind the last that has a counterpart;
- *deeper stacks*: blocks numbered beyond those of the source, all of whose blocks have their place;
- layers of a name that the source does not have, though it names its layers as the model does;
- any layer, once every source layer has found its place.

All else is undecided: it may be served in a way that is not known. So is everything where little
has a counterpart, for then nothing can be said of the rest; and so are layers of one family that
together have just as many values as unused sources: these may be the same weights, held otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from regraft.matching.fitting import fitting_leaves
from regraft.matching.layouts import conversions, entries_wanted
from regraft.matching.leftovers import Leftovers
from regraft.matching.modules import Leaf, Module
from regraft.matching.projections import at_odds, edge_of
from regraft.matching.settling import Settled, alternative, graft, spec_of
from regraft.plans import Alternative, Evidence, Graft, Undecided

# Below this share of layers with a counterpart nothing is said of the others.
_BELIEVABLE = 0.5
_LISTED, _LOOKED_AT = 4, 64


def settle_missing(
    left: Leftovers, targets: Sequence[Module], state: Settled, coverage: float, *, ordered: bool
) -> None:
    """Settles the left-over targets of which no tensor is settled or open yet.

    **Arguments:**

    - `targets`: all modules of the target; `ordered`: whether their order means something.
    - `coverage`: share of modules that have a counterpart by shape.
    """
    believable = coverage >= _BELIEVABLE and len(left.targets) < len(targets)
    tail: set[int] = set()
    if ordered:
        missing = {id(module) for module in left.targets}
        tail = {id(m) for m in takewhile(lambda m: id(m) in missing, reversed(targets))}
    heads = _other_heads(left)
    elsewhere = left.held_otherwise()

    def reasons(module: Module) -> Iterator[str]:
        if id(module) in heads:
            yield heads[id(module)]
        if id(module) in tail:
            yield "behind the last layer that has a counterpart: a head of the model's own"
        if left.is_beyond(module):
            yield "the source has fewer of these blocks, and all of them have their place"
        if _has_a_new_name(module, left):
            yield "the source names its layers as the model does, and has none of this name"
        if not left.sources:
            yield "every source layer has its place; this one is the model's own"

    _settle_beside_ties(left, state)
    for module in left.targets:
        doubted = not believable or (id(module) in elsewhere and id(module) not in heads)
        why = "" if doubted else next(reasons(module), "")
        for leaf in module.leaves.values():
            name = leaf.info.name
            if name in state.grafts or name in state.undecided:
                continue
            if why:
                says = (Evidence("shape", 1.0, why),)
                state.grafts[name] = Graft(name, spec_of(leaf.info), "fresh", evidence=says)
            else:
                state.undecided[name] = _question(module, leaf, left, elsewhere.get(id(module)))


def _settle_beside_ties(left: Leftovers, state: Settled) -> None:
    """What stands beside a tied tensor (the bias of a tied head) comes from the source of its name,
    which holds just that where its writer left out tied tensors."""
    for module in left.targets:
        own = [leaf for leaf in module.leaves.values() if not left.is_tied(leaf.info.name)]
        named = [source for source in left.called_like(module) if left.is_unused(source)]
        if len(own) == len(module.leaves) or len(named) != 1:
            continue
        held = named[0].leaves
        if held.keys() != {leaf.role for leaf in own}:
            continue
        for leaf in own:
            ways = conversions(held[leaf.role], leaf)
            if len(ways) == 1 and leaf.info.name not in state.grafts:
                says = (
                    Evidence("names", 2.0, f"{named[0].name} has its name, without what is tied"),
                )
                made = graft(leaf.info, [held[leaf.role].info], ways[0].ops, says)
                state.grafts[leaf.info.name] = made


def _other_heads(left: Leftovers) -> dict[int, str]:
    """By `id(target)`, why it is a head of its own."""
    found: dict[int, str] = {}
    ends = [source for source in left.sources if edge_of(source.path) == "head"]
    for target in left.targets:
        also = ends if edge_of(target.path) == "head" else []
        if not target.leaves.keys() & {"kernel", "scale"}:
            continue  # a table, whose size no other layer depends on
        named = [source for source in left.called_like(target) if left.is_unused(source)]
        for source in named or also:
            counts = _outputs(source, target)
            if counts is None:
                return {}  # it has other inputs: something inside the model has changed
            before, after = counts
            if before != after:
                found[id(target)] = (
                    f"another head: {source.name} has {before} outputs, this layer {after}"
                )
    return found


def _outputs(source: Module, target: Module) -> tuple[int, int] | None:
    """The outputs of two layers that are alike in all else."""
    ours, theirs = source.leaves.get("kernel"), target.leaves.get("kernel")
    if not ours or not theirs or len(ours.info.shape) < 2:
        return None
    for axis in {"torch": (0,), "keras": (-1,), "jax": (-1,)}.get(ours.framework, (0, -1)):
        before, after = ours.info.shape[axis], entries_wanted(ours, theirs, axis)
        vectors = [
            (leaf.info.size, there.info.size)
            for role, leaf in source.leaves.items()
            if role != "kernel" and (there := target.leaves.get(role))
        ]
        if after and all(sizes == (before, after) for sizes in vectors):
            return before, after
    return None


def _has_a_new_name(module: Module, left: Leftovers) -> bool:
    if not left.same_naming or left.called_like(module) or left.has_neighbours(module):
        return False
    return not any(_could_be(source, module) for source in left.of_size(module))


def _alike(module: Module, left: Leftovers) -> Iterator[Module]:
    near = islice(left.of_size(module), _LOOKED_AT)
    return (source for source in near if _could_be(source, module))


def _could_be(source: Module, target: Module) -> bool:
    return bool(fitting_leaves(source, target)) and not at_odds(source.says, target.says)


def _question(
    module: Module, leaf: Leaf, left: Leftovers, elsewhere: Module | None = None
) -> Undecided:
    name = leaf.info.name
    ways: list[Alternative] = []
    for source in islice(_alike(module, left), _LISTED):
        served = fitting_leaves(source, module).get(leaf)
        if served:
            made = [graft(leaf.info, [served.info], c.ops) for c in conversions(served, leaf)]
            ways += map(alternative, made)
    named = next(iter(left.called_like(module)), None)
    if named:
        sizes = ", ".join(str(list(x.info.shape)) for x in named.leaves.values())
        reason = f"{named.name} has its name and other sizes: {sizes}"
    elif ways:
        reason = "source layers of this role and shape are unused, but nothing else speaks for them"
    else:
        reason = "no source layer has this role and shape"
        if elsewhere:
            reason = (
                f"{elsewhere.name} is unused and has as many values as all of these layers: it may "
                "hold them otherwise"
            )
        elif left.sources:
            first = left.sources[0].name
            reason += f"; {len(left.sources)} source layers are unused, e.g. {first}"
    kept = Alternative((), (), 0.0, f"rg.fresh({name!r})")
    return Undecided(spec_of(leaf.info), reason, (*ways, kept), f"layer {module.name}")
