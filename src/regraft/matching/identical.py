"""Two sides that are the same from the first name to the last, which needs no search.

Most checkpoints are loaded into the very model that wrote them. Where both sides have the same
names, the same shapes under them, and one framework's layouts, each name is more than its own
evidence: had anything been renamed, turned or exchanged on the way, some other name or shape would
tell. What could still speak against it is looked at: layers of other classes or roles under the
same names, another order of the layers, another dataflow. Where any of it differs the search
decides, as it does for everything else.
"""

from __future__ import annotations

from regraft.matching.modules import is_constant
from regraft.matching.settling import graft
from regraft.plans import Evidence, Graft
from regraft.tensors import Catalogue, TensorInfo


def are(source: Catalogue, target: Catalogue, conventions: tuple[str, str]) -> bool:
    """Whether two catalogues, of these frameworks' layouts, hold the same tensors by name; their
    dataflow is for the caller to compare, who knows what it takes to know it."""
    if not conventions[0] or conventions[0] != conventions[1] or source.keys() != target.keys():
        return False
    if not all(_alike(info, target[name]) for name, info in source.items()):
        return False
    return "sorted" in (source.order, target.order) or list(source) == list(target)


def _alike(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether all that both sides know of a tensor is the same."""
    if a.shape != b.shape or (a.dtype != b.dtype and is_constant(b)):
        return False
    if ("int" in a.dtype) != ("int" in b.dtype):  # codes are not the values that they stand for
        return False
    if a.kind not in (b.kind, "weight"):  # files seldom know what a model merely counts
        return False
    told = ((a.module, b.module), (a.role, b.role), (a.owner, b.owner))
    return all(x == y or not x or not y for x, y in told)


def grafts(source: Catalogue, target: Catalogue) -> dict[str, Graft]:
    """Each tensor from the one of its name."""
    text = f"equal names and shapes, as those of all {len(target)} tensors of both sides are"
    says = (Evidence("names", 5.0, text),)
    return {name: graft(info, [source[name]], (), says) for name, info in target.items()}
