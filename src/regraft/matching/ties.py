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
from regraft.operations import Transpose, simplify
from regraft.plans import Alternative, Evidence, Graft, Undecided, kind_of
from regraft.tensors import Catalogue, TensorInfo

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
        fitting = [tied for g in embeddings if (tied := _as_head(g, info))]
        if len(fitting) != 1:
            continue
        tied, table = fitting[0], next(g.target for g in embeddings if _as_head(g, info))
        if source.metadata.get(_TIED, "").lower() == "true":
            says = (Evidence("rewrite", 2.0, f"the config ties it to {table}"),)
            state.undecided.pop(name, None)
            state.grafts[name] = msgspec.structs.replace(tied, evidence=says)
            continue
        state.grafts.pop(name, None)
        kept = Alternative((), (), 0.0, f"rg.fresh({name!r})")
        state.undecided[name] = Undecided(
            spec_of(info),
            f"the source has no output layer: it may be tied to {table}, or be missing",
            (alternative(tied, 0.5), kept),
            "tied head",
        )


def _as_head(table: Graft, head: TensorInfo) -> Graft | None:
    """The graft of an embedding as that of an output layer, whose kernel `[in, out]` lies turned
    against it; `None` where it does not fit."""
    turned = head.name.rpartition("/")[2].partition(":")[0] == "kernel"
    wanted = msgspec.structs.replace(spec_of(head), shape=head.shape[:: -1 if turned else 1])
    if table.spec != wanted:
        return None
    if not turned:
        return msgspec.structs.replace(table, target=head.name)
    ops = simplify((*table.ops, Transpose((1, 0))))
    kind = table.kind if table.kind == "adapt" else kind_of(ops)
    return msgspec.structs.replace(table, target=head.name, spec=spec_of(head), ops=ops, kind=kind)


def _path(name: str) -> tuple[str, ...]:
    parts = parts_of(name)[:-1]
    return tuple(parts[1:] if parts[:1] == ["params"] else parts)
