"""Reasons to doubt that are no matter of shapes: paired layers that are set to compute differently,
and norms that are made to do nothing although the source has some.

Where both sides say how a layer is set (a live model, a Keras config), its settings are compared.
A norm's epsilon of 1e-3 in one and of 1e-5 in the other changes outputs by about a thousandth a
layer, and no shape shows it. Differences that outputs hardly show (1e-12 and 1e-6) are notes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from regraft.matching import epsilons
from regraft.matching.modules import Module
from regraft.plans import Graft, Remark
from regraft.tensors import Catalogue

# From this difference of two epsilons on, outputs show it.
_SHOWS = 1e-4
_SAME = 0.05


def differing_epsilons(
    source: Catalogue,
    target: Catalogue,
    sources: Iterable[Module],
    targets: Iterable[Module],
    grafts: Mapping[str, Graft],
) -> Iterable[tuple[bool, Remark]]:
    """Whether it matters, and a remark, for each two epsilons that paired norms have."""
    ours = epsilons.by_path(source)
    theirs = epsilons.by_path(target) if ours else {}
    if not theirs:
        return
    homes = {leaf.info.name: m.name for m in sources for leaf in m.leaves.values()}
    found: dict[tuple[float, float], list[str]] = {}
    for module in targets:
        after = epsilons.of_owner(theirs, module.name)
        scale = module.leaves.get("scale")
        graft = grafts.get(scale.info.name) if scale else None
        if after is None or graft is None or not graft.sources:
            continue
        before = epsilons.of_owner(ours, homes.get(graft.sources[0], ""))
        if before is not None and abs(before - after) > _SAME * max(before, after):
            found.setdefault((before, after), []).append(module.name)
    for (before, after), names in found.items():
        yield (
            abs(before - after) >= _SHOWS,
            Remark(
                "epsilon-differs",
                names[0],
                f"{len(names)} norms were trained with epsilon {before:g} and have {after:g} here",
            ),
        )


def norms_left_out(
    sources: Iterable[Module],
    targets: Iterable[Module],
    grafts: Mapping[str, Graft],
    unused: Collection[str],
) -> Iterable[Remark]:
    """A norm is filled so that it does nothing where the source's was folded into the layer before
    it. A source of which norms are left out was not folded."""
    left = [m.name for m in sources if "var" in m.leaves and m.leaves["var"].info.name in unused]
    for module in targets if left else ():
        graft = grafts.get(module.leaves["var"].info.name) if "var" in module.leaves else None
        if graft is not None and graft.written and not graft.sources:
            yield Remark(
                "norm-left-out", module.name,
                f"it would do nothing, as if folded, while norms of the source are not used: "
                f"{', '.join(left[:3])}{' …' if len(left) > 3 else ''}",
            )  # fmt: skip
            return
