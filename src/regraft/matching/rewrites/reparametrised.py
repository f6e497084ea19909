"""Weights stored in parts: weight norm, pruning masks, quantized codes, low-rank adapters.

They are told by the names that the libraries give the parts, and checked by shapes:

- weight norm: `weight_g` and `weight_v` (torch.nn.utils.weight_norm), or `original0` and
  `original1` below `parametrizations.weight` (torch.nn.utils.parametrizations);
- spectral norm: `weight_orig`, `weight_u`, `weight_v`, or `original` below
  `parametrizations.weight` and `_u`, `_v` below its `0`;
- pruning: `weight_orig` and `weight_mask` (torch.nn.utils.prune);
- quantized: integer or float8 codes beside `weight_scale`, `scale`, `weight_scale_inv` … and maybe
  zero points;
- adapters: `lora_A` and `lora_B` (PEFT), beside the weight or the `base_layer` that they adapt;
- layers that were trained beside adapters: `modules_to_save.default`, and `original_module` as it
  was before (PEFT).

A side is merged where the other side has no tensors of such names. A weight-normed target can be
made from plain weights (g is ‖w‖, v is w); a target with adapters or masks keeps those it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from regraft.matching.rewrites.finding import Finding, Sight
from regraft.matching.roles import transposed
from regraft.matching.views import Expression, Rewrite
from regraft.operations import (
    Dequantize,
    LowRank,
    Multiply,
    Norm,
    Reshape,
    SpectralNorm,
    WeightNorm,
)
from regraft.tensors import TensorInfo

_PARAMETRIZED = "parametrizations.weight."
_SCALES = (
    "weight_scale", "weight_scale_inv", "scale", "scales", "scale_inv", "weight_scales",
    "qscale", "scb",
)  # fmt: skip
# Keras names a scale after the codes; its scales are codes for a value of 1, along the axis that
# is not summed over.
_KERAS_SCALES = {"kernel": ("kernel_scale", -1), "embeddings": ("embeddings_scale", 0)}
_ZEROS = ("weight_zero_point", "zero_point", "zero_points", "weight_zp", "zeros", "kernel_zero")
_CODES = ("int8", "uint8", "int4", "uint4", "int32")


def find(here: Sight, there: Sight) -> Sequence[Finding]:
    found: list[Rewrite] = []
    taken: set[str] = set()
    for kind in (_weight_norms, _spectral_norms, _masks, _quantized, _saved_beside):
        for rewrite in kind(here, there):
            names = {info.name for info in rewrite.old}
            if not names & taken:
                taken |= names
                found.append(rewrite)
    findings = [Finding(found, certain=True)] if found else []
    return [*findings, *_adapters(here, there)]


def _weight_norms(here: Sight, there: Sight) -> Iterator[Rewrite]:
    for g_leaf, v_leaf in (("weight_g", "weight_v"), ("original0", "original1")):
        if g_leaf in there.by_leaf and v_leaf in there.by_leaf:
            continue
        for prefix, g in here.by_leaf.get(g_leaf, {}).items():
            v = here.by_leaf.get(v_leaf, {}).get(prefix)
            if v is None or (g_leaf == "original0" and not prefix.endswith(_PARAMETRIZED)):
                continue
            axis = _magnitude_axis(g, v)
            if axis is None:
                continue
            owner = prefix.removesuffix(_PARAMETRIZED)
            weight = v._replace(name=f"{owner}weight", role="", module=_layer(here, owner, v))
            yield Rewrite(
                (g, v),
                (weight,),
                {weight.name: Expression((g.name, v.name), (WeightNorm(axis),))},
                {
                    g.name: Expression((weight.name,), (Norm(axis), Reshape(g.shape))),
                    v.name: Expression.of(weight.name),
                },
                "a weight norm's magnitude and direction, merged into the weight",
            )


# Endings of the stored weight and of the vectors of its power iteration, old form and new.
_SPECTRAL = (
    ("weight_orig", "weight_u", "weight_v", ""),
    ("original", "0._u", "0._v", _PARAMETRIZED),
)


def _spectral_norms(here: Sight, there: Sight) -> Iterator[Rewrite]:
    for leaf, u_leaf, v_leaf, below in _SPECTRAL:
        for prefix, original in here.by_leaf.get(leaf, {}).items():
            u, v = (here.catalogue.get(prefix + end) for end in (u_leaf, v_leaf))
            if u is None or v is None or not prefix.endswith(below):
                continue
            if prefix + u_leaf in there.catalogue:
                continue
            axis = _rows_of(original, u, v)
            if axis is None:
                continue
            owner = prefix.removesuffix(below)
            module = _layer(here, owner, original)
            weight = original._replace(name=f"{owner}weight", role="", module=module)
            yield Rewrite(
                (original, u, v),
                (weight,),
                {weight.name: Expression((original.name, u.name, v.name), (SpectralNorm(axis),))},
                {},
                "a weight divided by its spectral norm",
            )


def _rows_of(weight: TensorInfo, u: TensorInfo, v: TensorInfo) -> int | None:
    """The axis whose entries are the rows of the matrix that u and v belong to: 0, and 1 for
    transposed convolutions; `None` where they fit none or both."""
    fitting = [
        axis for axis, n in enumerate(weight.shape[:2])
        if u.shape == (n,) and v.shape == (weight.size // max(1, n),)
    ]  # fmt: skip
    if len(fitting) == 2:
        return int(transposed(weight.module, "")) if weight.module else 0
    return fitting[0] if fitting else None


_SAVED, _BEFORE = ".modules_to_save.", ".original_module."


def _saved_beside(here: Sight, there: Sight) -> Iterator[Rewrite]:
    """A layer that was trained beside adapters stands in the place of what it was before."""
    names = here.catalogue
    for name, saved in names.items():
        owner, found, rest = name.partition(_SAVED)
        adapter, _, leaf = rest.partition(".")
        before = names.get(f"{owner}{_BEFORE}{leaf}")
        others = sum(other.startswith(f"{owner}{_SAVED}") and other.endswith(f".{leaf}")
                     for other in names) if found and leaf else 0  # fmt: skip
        if before is None or before.shape != saved.shape or others != 1 or name in there.catalogue:
            continue
        weight = saved._replace(name=f"{owner}.{leaf}")
        yield Rewrite(
            (saved, before),
            (weight,),
            {weight.name: Expression.of(saved.name)},
            {saved.name: Expression.of(weight.name)},
            f"trained beside the adapter {adapter}, in the place of the layer as it was before",
        )


def _layer(here: Sight, owner: str, v: TensorInfo) -> str:
    """The class of the layer that owns a parametrization, as its other tensors tell it."""
    if "Parametrization" not in v.module:
        return v.module
    bias = here.catalogue.get(f"{owner}bias")
    return bias.module if bias else ""


def _magnitude_axis(g: TensorInfo, v: TensorInfo) -> int | None:
    if math.prod(g.shape) == 1 and not g.shape:
        return -1
    if len(g.shape) == len(v.shape):
        kept = [axis for axis, n in enumerate(g.shape) if n != 1]
        if not kept:
            kept = [axis for axis, n in enumerate(v.shape) if n == 1][:1]
        return kept[0] if len(kept) == 1 and g.shape[kept[0]] == v.shape[kept[0]] else None
    return 0 if v.shape and g.shape == v.shape[:1] else None


def _masks(here: Sight, there: Sight) -> Iterator[Rewrite]:
    for leaf, originals in here.by_leaf.items():
        stem = leaf.removesuffix("_orig")
        if stem == leaf or f"{stem}_mask" in there.by_leaf:
            continue
        for prefix, original in originals.items():
            mask = here.by_leaf.get(f"{stem}_mask", {}).get(prefix)
            if mask is None or mask.shape != original.shape:
                continue
            weight = original._replace(name=f"{prefix}{stem}")
            yield Rewrite(
                (original, mask),
                (weight,),
                {weight.name: Expression((original.name, mask.name), (Multiply(),))},
                {original.name: Expression.of(weight.name)},
                "a pruned weight, multiplied by its mask",
            )


def _quantized(here: Sight, there: Sight) -> Iterator[Rewrite]:
    for leaf, tensors in list(here.by_leaf.items()):
        for prefix, codes in tensors.items():
            if codes.dtype not in _CODES and not codes.dtype.startswith("float8"):
                continue
            named, along = _KERAS_SCALES.get(leaf, ("", 0))
            keras = here.by_leaf.get(named, {}).get(prefix)
            scale = keras or _beside(here, prefix, leaf, _SCALES)
            if scale is None or _has_codes(there, leaf, codes, scale):
                continue
            zero = _beside(here, prefix, leaf, _ZEROS)
            parts = (codes, scale, *((zero,) if zero else ()))
            axis = _scale_axis(codes, scale) if keras is None else _keras_axis(codes, scale, along)
            # LLM.int8 keeps the largest value of each row, which is code 127.
            levels = 127 if scale.name.lower().endswith("scb") else 1
            if axis is None or len(codes.shape) < 2:
                continue
            weight = codes._replace(dtype="float32")
            names = tuple(part.name for part in parts)
            verb = "multiplied" if keras is None else "divided"
            yield Rewrite(
                parts,
                (weight,),
                {weight.name: Expression(names, (Dequantize(axis, levels, keras is not None),))},
                {},
                f"{codes.dtype} codes, {verb} by their scales",
            )


def _has_codes(there: Sight, leaf: str, codes: TensorInfo, scale: TensorInfo) -> bool:
    """Whether the other side has such codes with such scales, whatever it calls its layers."""
    beside = there.by_leaf.get(scale.name.removeprefix(codes.name.removesuffix(leaf)), {})
    return any(
        info.dtype == codes.dtype and info.shape == codes.shape and prefix in beside
        for prefix, info in there.by_leaf.get(leaf, {}).items()
    )


def _beside(here: Sight, prefix: str, leaf: str, words: Sequence[str]) -> TensorInfo | None:
    """A tensor of the same layer under one of these names, or `<leaf>_<word>`."""
    for word in words:
        for name in (f"{leaf}_{word}", word, word.upper()):
            found = here.by_leaf.get(name, {}).get(prefix)
            if found is not None:
                return found
    return None


def _scale_axis(codes: TensorInfo, scale: TensorInfo) -> int | None:
    count = math.prod(scale.shape)
    if count == 1:
        return 0
    if len(scale.shape) == len(codes.shape):  # [out, 1], or a number for each block
        divided = all(n and not c % n for c, n in zip(codes.shape, scale.shape, strict=True))
        return 0 if divided else None
    fitting = [axis for axis, n in enumerate(codes.shape) if n == count]
    return fitting[0] if fitting else None


def _keras_axis(codes: TensorInfo, scale: TensorInfo, along: int) -> int | None:
    """Keras' own axis; none for codes of which several lie in a byte (int4), in groups of rows."""
    return along % len(codes.shape) if scale.shape == (codes.shape[along],) else None


# PEFT's names of the factors, and those of the embedding layers' adapters.
_FACTORS = (("lora_A", "lora_B", False), ("lora_embedding_A", "lora_embedding_B", True))
# Usual values of alpha/r, tried where no config tells it.
_USUAL_SCALES = (1.0, 2.0, 0.5, 4.0, 0.25)


def _adapters(here: Sight, there: Sight) -> Iterator[Finding]:
    if any("lora_" in name for name in there.catalogue):
        return
    pairs = list(_factor_pairs(here))
    if not pairs:
        return
    known = _known_scale(here)
    scales = [known] if known is not None else list(_USUAL_SCALES)
    readings = [[_merged(here, *pair, scale) for pair in pairs] for scale in scales]
    yield Finding(readings[0], readings[1:], "scale of the adapters (alpha / r)", certain=True)


def _factor_pairs(here: Sight) -> Iterator[tuple[TensorInfo, TensorInfo, TensorInfo, bool]]:
    """Weight, A, B, and whether the weight is `[in, out]`, for each adapted layer."""
    names = here.catalogue
    for a_word, b_word, embedding in _FACTORS:
        for name, a in names.items():
            owner, found, rest = name.partition(f"{a_word}")
            b = names.get(f"{owner}{b_word}{rest}")
            if not found or b is None:
                continue
            places = (f"{owner}weight", f"{owner}base_layer.weight")
            base = next((names[place] for place in places if place in names), None)
            if base is None and owner.startswith("base_model.model."):
                plain = owner.removeprefix("base_model.model.")
                base = names.get(f"{plain}weight")
            if base is None:
                continue
            update = (b.shape[0], *a.shape[1:])
            if embedding or update != base.shape:
                yield base, a, b, True
            else:
                yield base, a, b, False


def _known_scale(here: Sight) -> float | None:
    """alpha / r, or alpha / √r under rank stabilisation, as the adapter's config says of all layers
    alike."""
    told = {key.removeprefix("adapter."): v for key, v in here.view.stored.metadata.items()}
    if any(told.get(key, "{}") != "{}" for key in ("rank_pattern", "alpha_pattern")):
        return None
    try:
        alpha, rank = float(told["lora_alpha"]), float(told["r"])
    except (KeyError, ValueError):
        return None
    stabilised = told.get("use_rslora", "").lower() == "true"
    return alpha / (math.sqrt(rank) if stabilised else rank)


def _merged(
    here: Sight, base: TensorInfo, a: TensorInfo, b: TensorInfo, transposed: bool, scale: float
) -> Rewrite:
    name = base.name.replace("base_layer.", "")
    weight = base._replace(name=name)
    old: list[TensorInfo] = [base, a, b]
    new: list[TensorInfo] = [weight]
    down = {name: Expression((base.name, a.name, b.name), (LowRank(scale, transposed),))}
    up = {base.name: Expression.of(name)}
    bias = here.catalogue.get(base.name.removesuffix("weight") + "bias")
    if bias is not None and "base_layer." in bias.name:
        moved = bias._replace(name=bias.name.replace("base_layer.", ""))
        old.append(bias)
        new.append(moved)
        down[moved.name] = Expression.of(bias.name)
        up[bias.name] = Expression.of(moved.name)
    text = f"a low-rank adapter, added to its weight times {scale:g}"
    return Rewrite(tuple(old), tuple(new), down, up, text)
