"""A catalogue seen as modules: the tensors of one layer together, with its path in tokens.

Layers are matched, not tensors: a kernel and its bias never go different ways, and four
statistics of a BatchNorm identify it better than each of them alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import prod

from regraft.matching import aliases, kinds, roles
from regraft.matching.kinds import Kind
from regraft.matching.roles import Role
from regraft.tensors import Catalogue, TensorInfo


@dataclass(frozen=True)
class Leaf:
    """A tensor in its role. `framework` decides its layout, `kind` is the sort of layer."""

    info: TensorInfo
    role: Role
    framework: str
    kind: Kind

    @property
    def inputs_first(self) -> bool:
        """Whether a dense kernel is `[in, out]`."""
        return self.kind == "matmul" or self.framework not in ("torch", "onnx")


@dataclass(frozen=True, eq=False)
class Module:
    """The tensors of one layer.

    - `path`: the owner's path as parts of its name; `position`: place in the catalogue's order.
    - `leaves`: its tensors by role.
    - `alias`: what its own name means among its sisters, where that is something else than it
      would mean alone; `""`: nothing.
    - `counted`: the path with numbers for letters that count, `()` where there are none.
    """

    path: tuple[str, ...]
    position: int
    leaves: dict[Role, Leaf] = field(default_factory=dict[Role, Leaf])
    alias: str | None = None
    counted: tuple[str, ...] = ()

    @property
    def says(self) -> tuple[str, ...]:
        """The path, as far as its words may be taken for what the layer does."""
        return self.path if self.alias is None else (*self.path[:-1], self.alias)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Words and numbers of the path."""
        return tuple(tokens(self.counted or self.path))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Lower-case words of the path, numbers left out."""
        return tuple(t for t in self.tokens if not t.isdigit())

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the path, outermost first."""
        return tuple(number_of(t) for t in self.tokens if t.isdigit())

    @cached_property
    def family(self) -> str:
        """The path with its numbers blotted out: layers of one family differ by position only."""
        return ".".join("#" if t.isdigit() else t for t in self.tokens)

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


_DIGITS = 15
_SEPARATORS = re.compile(r"[./]")
# conv2d_3 → conv2d, 3; layer4 → layer, 4; DenseBlock → dense, block. A trailing 1d, 2d or 3d is
# part of a layer's class and no position (`res2d` is the fourth block of the second stage).
_TOKEN = re.compile(
    r"[a-zA-Z]*?(?i:conv|convolution|norm|bn|pool|pooling|dropout|transpose|unet|vae)[123]d"
    r"(?![a-zA-Z0-9])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+"
)


# Scales of a block's branches that are parameters of the block itself, and counted.
_LAYER_SCALE = re.compile(r"^(layer_?scale|ls|gamma|lambda)_?\d$")
# w_in and b_in: the role first.
_PREFIXED = re.compile(r"^([wbWB])_([a-zA-Z]\w*)$")
# Letters behind a number count as numbers do: block1a, block1b. (Others: see `aliases`.)
_LETTERS: dict[str, str] = {letter: str(place) for place, letter in enumerate("abcde")}
_COUNTED: dict[str, str] = {
    word: str(number)
    for number, words in enumerate(
        ("zero zeroth", "one first", "two second", "three third", "four fourth", "five fifth",
         "six sixth", "seven seventh", "eight eighth", "nine ninth", "ten tenth")
    )
    for word in words.split()
}  # fmt: skip


def tokens(path: Iterable[str]) -> list[str]:
    """Lower-case words and numbers of a path. Numbers, too, are `first`, `one`, and the letter
    behind a number (`block1a`)."""
    return [token for part in path for token in _tokens(part)]


@lru_cache(maxsize=1 << 16)
def _tokens(part: str) -> tuple[str, ...]:
    found: list[str] = []
    last = ""
    for token in (word.lower() for word in _TOKEN.findall(part)):
        plain = _LETTERS.get(token, token) if last.isdigit() else token
        found.append(str(_COUNTED.get(token, plain)))
        last = token
    return tuple(found)


def number_of(digits: str) -> int:
    """A number of a name; of more digits than a position has, the last ones."""
    return int(digits[-_DIGITS:])


def parts_of(name: str) -> list[str]:
    """The parts of a tensor's name; TensorFlow's `:0` and words said twice in a row are dropped."""
    return list(_parts(name))


@lru_cache(maxsize=1 << 16)
def _parts(name: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in _SEPARATORS.split(re.sub(r":\d+$", "", name)):
        if part and (not parts or parts[-1] != part or part.isdigit()):
            parts.append(part)
    return tuple(parts)


# Tensors that a model computes for itself: masks, frequencies, tables of positions.
_CONSTANTS = re.compile(
    r"(^|[./_])(inv_freq|freqs_cis|cos_cached|sin_cached|freqs_cos|freqs_sin|causal_mask|tril|"
    r"masked_bias|position_ids|relative_position_index|relative_coords_table|rope_cache|attn_mask|mask)$"
)

# Integers that say how far training came.
_COUNTERS = re.compile(
    r"(^|[./_])(num_batches_tracked|step|steps|count|iter|iteration|iterations|epoch)$"
)


def is_constant(info: TensorInfo) -> bool:
    """Whether a tensor is no weight but counted or recomputed, by kind, name, dtype and shape."""
    if info.kind != "weight" or _CONSTANTS.search(info.name):
        return True
    if info.size == 1 and "int" in info.dtype and _COUNTERS.search(info.name):
        return True
    # GPT-2's causal mask is a buffer called `attn.bias`.
    square = len(info.shape) == 4 and info.shape[:2] == (1, 1) and info.shape[2] == info.shape[3]
    return square and info.name.endswith("bias")


# Flax and Haiku keep what is trained and what is not in two trees of the same layers, side by side.
_COLLECTIONS = frozenset({"params", "batch_stats", "state"})
# Haiku's norms hold their statistics in modules of their own, beside the sums they come from.
_AVERAGES = {"mean_ema": "mean", "var_ema": "var"}
# Names of a training state may go before them.
_MOST_AROUND = 3


def modules_of(catalogue: Catalogue, framework: str) -> list[Module]:
    """The modules of a catalogue in its order; counters and constants are left out."""
    grouped: dict[tuple[str, ...], list[tuple[str, TensorInfo]]] = defaultdict(list)
    wide = framework == "torch" and _wide_conv1d(catalogue)
    around = _around_collections(catalogue)
    habits = kinds.Habits(framework, wide, kinds.says_reset_before(catalogue))
    for info in catalogue.values():
        if info.kind == "weight" and not is_constant(info):
            path, word = _owner(info)
            grouped[_without_collection(path, around)].append((word, info))
    result: list[Module] = []
    listed = not framework and _lists_layers(grouped.values())
    for path, tensors in grouped.items():
        unnamed = framework == "keras" or (listed and _numbered(tensors))
        tensors = _unnamed(path, tensors) if unnamed else tensors
        for suffix, leaves in _split(path, tensors, habits):
            result.append(Module((*path, *suffix), len(result), leaves))
    aliases.give(result)
    return _heads_first(_from_heads(result)) if framework not in ("torch", "onnx") else result


def _from_heads(modules: list[Module]) -> list[Module]:
    """The layers that read heads are those `[h, k, d]` beside others that give them, `[d, h, k]`,
    whatever they are called."""
    given: dict[tuple[str, ...], set[tuple[int, ...]]] = defaultdict(set)
    for module in modules:
        kernel = module.leaves.get("kernel")
        if kernel and kernel.kind == kinds.TO_HEADS:
            given[module.path[:-1]].add(kernel.info.shape[1:])
    for place, module in enumerate(modules):
        kernel = module.leaves.get("kernel")
        heads = given.get(module.path[:-1], ())
        if kernel and kernel.kind in ("", "plain") and kernel.info.shape[:-1] in heads:
            turned: dict[Role, Leaf] = {"kernel": replace(kernel, kind=kinds.FROM_HEADS)}
            modules[place] = replace(module, leaves=module.leaves | turned)
    return modules


def _heads_first(modules: list[Module]) -> list[Module]:
    """Layers `[h, d, k]` beside one that reads heads, `[h, k, d]`: it tells `d` and `k`."""
    read = {
        m.path[:-1]: m.leaves["kernel"].info.shape
        for m in modules
        if "kernel" in m.leaves and m.leaves["kernel"].kind == kinds.FROM_HEADS
    }
    for place, module in enumerate(modules):
        kernel, (heads, size, width) = (
            module.leaves.get("kernel"),
            read.get(module.path[:-1], (0,) * 3),
        )
        gives = kernel and kernel.kind in ("", "plain", kinds.TO_HEADS)
        if not kernel or not gives or kernel.info.shape[1:] != (width, size):
            continue
        if kernel.info.shape[0] != width and heads % kernel.info.shape[0] == 0:
            turned: dict[Role, Leaf] = {"kernel": replace(kernel, kind=kinds.HEADS_FIRST)}
            modules[place] = replace(module, leaves=module.leaves | turned)
    return modules


def _around_collections(catalogue: Catalogue) -> set[tuple[str, ...]]:
    """What stands before `params` and `batch_stats` where both are there, or all there is."""
    outermost = {name.partition("/")[0] for name in catalogue}
    if outermost <= _COLLECTIONS and outermost != {"state"}:  # which alone wraps a training state
        return {()}
    trained, beside = set[tuple[str, ...]](), set[tuple[str, ...]]()
    if any("batch_stats" in name for name in catalogue):
        for name in catalogue:
            parts = tuple(parts_of(name))
            for place, part in enumerate(parts[: _MOST_AROUND + 1]):
                if part in _COLLECTIONS:
                    (trained if part == "params" else beside).add(parts[:place])
    return trained & beside


def _without_collection(
    path: tuple[str, ...], around: Collection[tuple[str, ...]]
) -> tuple[str, ...]:
    place = next((len(p) for p in around if path[: len(p)] == p and path[len(p) :]
                  and path[len(p)] in _COLLECTIONS), None)  # fmt: skip
    return path if place is None else (*path[:place], *path[place + 1 :])


def _owner(info: TensorInfo) -> tuple[tuple[str, ...], str]:
    """The owner's path, and the word for what the tensor is to it."""
    if info.owner:
        return tuple(parts_of(info.owner)), info.role.lower()
    *path, leaf = parts_of(info.name)
    if leaf == "average" and path[-1:] and path[-1] in _AVERAGES:
        return tuple(path[:-2] if path[-2:-1] == ["~"] else path[:-1]), _AVERAGES[path[-1]]
    if not info.role and len(info.shape) == 2 and kinds.PROJECTION.search(leaf):
        return (*path, leaf), "projection"  # CLIP's, multiplied from the right: [in, out]
    if info.role:
        rest, word = roles.split_leaf(info.role.lower())
        if rest and word in ("embedding", "embeddings"):  # rel_embedding, position_embeddings
            return (*path, rest), word
        same = leaf.lower() == info.role.lower()
        return tuple(path) if same else (*path, leaf), info.role.lower()
    if len(info.shape) == 1 and _LAYER_SCALE.match(leaf):
        return (*path, leaf), "scale"
    prefixed = _PREFIXED.match(leaf)
    if prefixed:
        return (*path, prefixed[2]), prefixed[1].lower()
    rest, word = roles.split_leaf(leaf)
    if rest and (not path or path[-1] != rest):
        path.append(rest)
    return tuple(path), word


def _split(
    path: tuple[str, ...],
    tensors: list[tuple[str, TensorInfo]],
    habits: kinds.Habits,
) -> Iterable[tuple[tuple[str, ...], dict[Role, Leaf]]]:
    """One module, or the two convolutions of a separable one (they are two layers elsewhere)."""
    framework = habits.framework
    sisters = frozenset(word for word, _ in tensors)
    leaves: dict[Role, Leaf] = {}
    extra = 0
    for word, info in tensors:
        if word == "reverse_embeddings":  # KerasHub's output layer, untied: a layer of its own
            lone = Leaf(info, "kernel", framework, "plain")
            yield ("lm_head",), {"kernel": lone}
            continue
        rank = 1 if _broadcasts_beside(info, tensors) else len(info.shape)
        role = roles.of(word, rank, sisters, info.module)
        kind = kinds.of_tensor(role, info, path, habits)
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
        told = kinds.of_layer({role: x.info for role, x in leaves.items()}, path, habits)
        for role, kind in told.items():
            leaves[role] = replace(leaves[role], kind=kind)
        yield (), leaves


def _broadcasts_beside(info: TensorInfo, tensors: Iterable[tuple[str, TensorInfo]]) -> bool:
    """Whether a tensor is one vector, `[1, 1, 1, n]`, and another one beside it is just the same:
    a scale and a shift. (The bias of a kernel has fewer axes.)"""
    shape = info.shape
    if len(shape) < 3 or max(shape) != prod(shape) or shape[-1] < 2:
        return False
    return sum(other.shape == shape for _, other in tensors) > 1


def _wide_conv1d(catalogue: Catalogue) -> bool:
    """Whether all layers with the names of GPT-2's Conv1D have more columns than rows."""
    shapes = [
        info.shape
        for name, info in catalogue.items()
        if len(info.shape) == 2
        and not info.module
        and parts_of(name)[-2:-1] in (["c_attn"], ["c_fc"])
    ]
    return bool(shapes) and all(rows < columns for rows, columns in shapes)


# Variables of a Keras layer in the order in which such layers make them, by their ranks.
_UNNAMED: dict[tuple[bool, ...], tuple[str, ...]] = {
    (True,): ("kernel",),
    (True, False): ("kernel", "bias"),
    (False,): ("gamma",),
    (False, False): ("gamma", "beta"),
    (False, False, False, False): ("gamma", "beta", "moving_mean", "moving_variance"),
}


def _unnamed(
    path: tuple[str, ...], tensors: list[tuple[str, TensorInfo]]
) -> list[tuple[str, TensorInfo]]:
    """Variables of a store that has numbers for names and no config, named by their ranks."""
    if not _numbered(tensors):
        return tensors
    shapes = [info.shape for _, info in tensors]
    words = _UNNAMED.get(tuple(len(shape) > 1 for shape in shapes))
    embeds = bool(path) and "embed" in path[-1].lower()
    if (
        len(shapes) == 1
        and len(shapes[0]) > 1
        and max(shapes[0]) == shapes[0][-1] == prod(shapes[0])
    ):
        return tensors  # one vector that broadcasts, as a class token: no kernel
    if len(shapes) == 2 and len(shapes[0]) == 2 and embeds and shapes[1] == shapes[0][::-1]:
        words = ("embeddings", "reverse_embeddings")  # an output layer in one with its table
    elif len(shapes) == 1 and len(shapes[0]) == 2 and embeds:
        words = ("embeddings",)
    elif len(shapes) == 2 and len(shapes[0]) == 3 and shapes[1] == shapes[0][1:]:
        words = ("kernel", "bias")  # to heads, as an attention's query
    if words is None or len({shape for shape in shapes if len(shape) == 1}) > 1:
        return tensors
    return [(word, info) for word, (_, info) in zip(words, tensors, strict=True)]


_NAMELESS = re.compile(r"^variable(_\d+)?$")


def _numbered(tensors: Iterable[tuple[str, TensorInfo]]) -> bool:
    """Whether the variables of a layer have numbers for names, or what Keras calls one that was
    given no name."""
    words = [word for word, _ in tensors]
    return words == list(map(str, range(len(words)))) or all(map(_NAMELESS.match, words))


def _lists_layers(owners: Iterable[list[tuple[str, TensorInfo]]]) -> bool:
    """Whether everything that has a number for a name is a list of a kernel and its bias, or of a
    kernel alone, as plain code keeps its layers."""
    lists = [[info.shape for _, info in tensors] for tensors in owners if _numbered(tensors)]
    return all(
        len(shapes) <= 2
        and len(shapes[0]) > 1
        and all(shape in (shapes[0][:1], shapes[0][-1:]) for shape in shapes[1:])
        for shapes in lists
    )


def _as_kernel(leaf: Leaf, kind: Kind) -> Leaf:
    return Leaf(leaf.info, "kernel", leaf.framework, kind)


def conventions_of(catalogue: Catalogue) -> str:
    """The framework whose layouts a catalogue follows: what it says, else what its words say.

    `kernel`, `beta` and `moving_mean` are channels-last words, `running_mean` and a `weight`
    of rank 2 or more are channels-first. A file that uses both, or neither, is `""`. Haiku, which
    is JAX', puts a `~` in the path of a layer that is made outside of a call; Flax keeps its
    kernels in `params`. Where that has been left out, its other words tell: `kernel` with `scale`
    and `embedding`, classes with numbers (`LayerNorm_0`), cells of `dense_i` and `dense_h`, and
    none of the words that are Keras' own.
    """
    if catalogue.framework:
        return catalogue.framework
    if any("/~/" in name for name in catalogue):
        return "jax"
    votes: set[str] = set()
    for info in catalogue.values():
        word = roles.split_leaf(parts_of(info.name)[-1])[1] if info.name else ""
        if word in ("kernel", "beta", "moving_mean", "moving_variance", "depthwise_kernel"):
            votes.add("keras")
        if word in ("running_mean", "running_var", "num_batches_tracked"):
            votes.add("torch")
        if word == "weight" and len(info.shape) >= 2:
            votes.add("torch")
    if votes == {"keras"} and _is_flax(catalogue):
        return "jax"
    return votes.pop() if len(votes) == 1 else ""


_FLAX = re.compile(r"(^|/)([A-Z][a-z]\w*_\d+|dense_[ih]|params)/|/(scale|embedding)$")
_KERAS = re.compile(
    r"/(gamma|beta|moving_\w+|embeddings|(depthwise|pointwise|recurrent)_kernel)(:0)?$"
)


def _is_flax(catalogue: Catalogue) -> bool:
    names = [name.replace(".", "/") for name in catalogue]
    if any("params" in name.split("/")[:-1] for name in names):
        return True
    return any(map(_FLAX.search, names)) and not any(map(_KERAS.search, names))
