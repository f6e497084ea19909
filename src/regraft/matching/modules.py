"""A catalogue seen as modules: the tensors of one layer together, with its path in tokens.

Layers are matched, not tensors: a kernel and its bias never go different ways, and four
statistics of a BatchNorm identify it better than each of them alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from regraft.matching import roles
from regraft.matching.roles import Role
from regraft.tensors import Catalogue, TensorInfo

# "plain", "matmul", "depthwise", "transposed", "embedding", "gru", "" for unknown
Kind = str
# Classes of dense layers that store [in, out], whatever their framework does else: GPT-2's Conv1D,
# and ONNX' MatMul.
_MATMULS = {"torch": "Conv1D", "onnx": "MatMul"}


@dataclass(frozen=True)
class Leaf:
    """A tensor in its role. `framework` decides its layout, `kind` is the sort of layer."""

    info: TensorInfo
    role: Role
    framework: str
    kind: Kind


@dataclass(frozen=True, eq=False)
class Module:
    """The tensors of one layer.

    - `path`: the owner's path as parts of its name; `position`: place in the catalogue's order.
    - `leaves`: its tensors by role.
    """

    path: tuple[str, ...]
    position: int
    leaves: dict[Role, Leaf] = field(default_factory=dict[Role, Leaf])

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Lower-case words of the path, numbers left out."""
        return tuple(t for t in _tokens(self.path) if not t.isdigit())

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the path, outermost first."""
        return tuple(int(t) for t in _tokens(self.path) if t.isdigit())

    @cached_property
    def family(self) -> str:
        """The path with its numbers blotted out: layers of one family differ by position only."""
        return ".".join("#" if t.isdigit() else t for t in _tokens(self.path))

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for modules whose tensors have the same roles, shapes and layouts."""
        return tuple(sorted((r, x.info.shape, x.framework, x.kind) for r, x in self.leaves.items()))

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def size(self) -> int:
        return sum(leaf.info.size for leaf in self.leaves.values())


_SEPARATORS = re.compile(r"[./]")
# conv2d_3 → conv2d, 3; layer4 → layer, 4; DenseBlock → dense, block. A trailing 1d, 2d or 3d is
# part of a layer's class and no position.
_TOKEN = re.compile(r"[a-zA-Z]+?[123]d(?![a-zA-Z0-9])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


_COUNTED = {
    word: str(number)
    for number, words in enumerate(
        ("zero zeroth", "one first", "two second", "three third", "four fourth", "five fifth",
         "six sixth", "seven seventh", "eight eighth", "nine ninth", "ten tenth")
    )
    for word in words.split()
}  # fmt: skip


def _tokens(path: Iterable[str]) -> list[str]:
    """Lower-case words and numbers of a path; `first` and `one` are numbers, too."""
    found = (token.lower() for part in path for token in _TOKEN.findall(part))
    return [_COUNTED.get(token) or token for token in found]


def parts_of(name: str) -> list[str]:
    """The parts of a tensor's name; TensorFlow's `:0` and words said twice in a row are dropped."""
    parts: list[str] = []
    for part in _SEPARATORS.split(re.sub(r":\d+$", "", name)):
        if part and (not parts or parts[-1] != part or part.isdigit()):
            parts.append(part)
    return parts


# Flax keeps what is trained and what is not in two trees of the same layers.
_COLLECTIONS = frozenset({"params", "batch_stats"})


def modules_of(catalogue: Catalogue, framework: str) -> list[Module]:
    """The modules of a catalogue in its order; counters and constants are left out."""
    grouped: dict[tuple[str, ...], list[tuple[str, TensorInfo]]] = defaultdict(list)
    collections = all(name.partition("/")[0] in _COLLECTIONS for name in catalogue)
    for info in catalogue.values():
        if info.kind == "weight":
            path, word = _owner(info)
            path = path[1:] if collections else path
            grouped[path].append((word, info))
    result: list[Module] = []
    for path, tensors in grouped.items():
        for suffix, leaves in _split(path, tensors, framework):
            result.append(Module((*path, *suffix), len(result), leaves))
    return result


def _owner(info: TensorInfo) -> tuple[tuple[str, ...], str]:
    """The owner's path, and the word for what the tensor is to it."""
    if info.owner:
        return tuple(parts_of(info.owner)), info.role.lower()
    *path, leaf = parts_of(info.name)
    if info.role:
        same = leaf.lower() == info.role.lower()
        return tuple(path) if same else (*path, leaf), info.role.lower()
    rest, word = roles.split_leaf(leaf)
    if rest and (not path or path[-1] != rest):
        path.append(rest)
    return tuple(path), word


def _split(
    path: tuple[str, ...], tensors: list[tuple[str, TensorInfo]], framework: str
) -> Iterable[tuple[tuple[str, ...], dict[Role, Leaf]]]:
    """One module, or the two convolutions of a separable one (they are two layers elsewhere)."""
    sisters = frozenset(word for word, _ in tensors)
    leaves: dict[Role, Leaf] = {}
    extra = 0
    for word, info in tensors:
        role = roles.of(word, len(info.shape), sisters, info.module)
        kind = _kind(role, info, path, framework)
        if role == "other" or role in leaves:  # its own name is all that is known of it
            extra += 1
            yield (word, str(extra)), {"other": Leaf(info, "other", framework, kind)}
            continue
        leaves[role] = Leaf(info, role, framework, kind)
    depthwise, pointwise = leaves.pop("depthwise", None), leaves.pop("pointwise", None)
    if depthwise:
        first: dict[Role, Leaf] = {"kernel": _as_kernel(depthwise, "depthwise")}
        if pointwise:
            yield ("depthwise",), first
            yield ("pointwise",), {"kernel": _as_kernel(pointwise, "plain"), **leaves}
        else:
            yield (), first | leaves
    elif leaves:
        yield (), _gated(leaves)


def _gated(leaves: dict[Role, Leaf]) -> dict[Role, Leaf]:
    """A GRU's tensors marked as such: three gates, which frameworks put in different orders."""
    recurrent = leaves.get("recurrent")
    sizes = sorted(recurrent.info.shape) if recurrent else []
    if len(sizes) != 2 or sizes[1] != 3 * sizes[0]:
        return leaves
    return {role: Leaf(x.info, x.role, x.framework, "gru") for role, x in leaves.items()}


def _as_kernel(leaf: Leaf, kind: Kind) -> Leaf:
    return Leaf(leaf.info, "kernel", leaf.framework, kind)


def _kind(role: Role, info: TensorInfo, path: tuple[str, ...], framework: str) -> Kind:
    if role != "kernel":
        return "embedding" if role == "embedding" else ""
    if info.module and info.module == _MATMULS.get(framework) and len(info.shape) == 2:
        return "matmul"
    if roles.transposed(info.module, path[-1] if path else ""):
        return "transposed"
    if "depthwise" in info.module.lower():
        return "depthwise"
    return "plain" if info.module else ""


def conventions_of(catalogue: Catalogue) -> str:
    """The framework whose layouts a catalogue follows: what it says, else what its words say.

    `kernel`, `gamma` and `moving_mean` are channels-last words, `running_mean` and a `weight`
    of rank 2 or more are channels-first. A file that uses both, or neither, is `""`.
    """
    if catalogue.framework:
        return catalogue.framework
    votes: set[str] = set()
    for info in catalogue.values():
        word = roles.split_leaf(parts_of(info.name)[-1])[1] if info.name else ""
        if word in ("kernel", "gamma", "moving_mean", "moving_variance", "depthwise_kernel"):
            votes.add("keras")
        if word in ("running_mean", "running_var", "num_batches_tracked"):
            votes.add("torch")
        if word == "weight" and len(info.shape) >= 2:
            votes.add("torch")
    return votes.pop() if len(votes) == 1 else ""
