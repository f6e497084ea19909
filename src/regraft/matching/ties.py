"""Tied tensors: one storage under several names, of which files often keep one.

Where the target ties two tensors, what one is made of both are made of. A language model's file
without an output layer mostly means that it is the token embedding; where the model does not tie
them, that is a question, unless the file's config answers it.
"""

from __future__ import annotations

import msgspec

from regraft.matching.modules import parts_of
from regraft.matching.projections import edge_of
from regraft.matching.settling import Settled, alternative, spec_of
from regraft.plans import Alternative, Evidence, Undecided
from regraft.tensors import Catalogue

_TIED = "tie_word_embeddings"


def settle_tied(target: Catalogue, state: Settled) -> None:
    """Tensors that the target ties follow the one of them that is settled."""
    for names in target.ties:
        made = [g for n in names if (g := state.grafts.get(n)) and g.written]
        if not made:
            continue
        says = (Evidence("rewrite", 2.0, f"the model ties it to {made[0].target}"),)
        for name in names:
            graft = state.grafts.get(name)
            if graft is None or not graft.written:
                state.undecided.pop(name, None)
                state.grafts[name] = msgspec.structs.replace(made[0], target=name, evidence=says)


def settle_heads(source: Catalogue, target: Catalogue, state: Settled) -> None:
    """An output layer for which the source has nothing may be its token embedding."""
    if any(edge_of(_path(name)) == "head" for name in source):
        return
    embeddings = [
        g for g in state.grafts.values() if g.written and edge_of(_path(g.target)) == "tokens"
    ]
    for name, info in target.items():
        graft = state.grafts.get(name)
        missing = name in state.undecided or (graft is not None and not graft.written)
        if not missing or edge_of(_path(name)) != "head":
            continue
        fitting = [g for g in embeddings if g.spec == spec_of(info)]
        if len(fitting) != 1:
            continue
        tied = msgspec.structs.replace(fitting[0], target=name)
        if source.metadata.get(_TIED, "").lower() == "true":
            says = (Evidence("rewrite", 2.0, f"the config ties it to {fitting[0].target}"),)
            state.undecided.pop(name, None)
            state.grafts[name] = msgspec.structs.replace(tied, evidence=says)
            continue
        state.grafts.pop(name, None)
        kept = Alternative((), (), 0.0, f"rg.fresh({name!r})")
        state.undecided[name] = Undecided(
            spec_of(info),
            f"the source has no output layer: it may be tied to {fitting[0].target}, or be missing",
            (alternative(tied, 0.5), kept),
            "tied head",
        )


def _path(name: str) -> tuple[str, ...]:
    return tuple(parts_of(name)[:-1])
