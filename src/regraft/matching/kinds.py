"""Sorts of layers: what decides how a kernel's axes lie beside the role and the framework.

A class says it where it is known. Else the layer's name does (transposed convolutions, GPT-2's
Conv1D), or the tensors beside it: three times as many recurrent columns as rows are a GRU's; a
bias of two axes, or a kernel of three under the name of a projection, is one of an attention that
keeps its heads as an axis of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from regraft.matching import roles
from regraft.matching.projections import fused_of, projection_of
from regraft.matching.roles import Role
from regraft.tensors import Catalogue, TensorInfo

# "plain", "matmul", "depthwise", "transposed", "embedding", those below, "" for unknown
Kind = str
# Kernels `[d, h, k]` that give heads, and `[h, k, d]` that read them; biases `[h, k]`. Gemma's have
# their heads first, `[h, d, k]`.
TO_HEADS, FROM_HEADS, HEADS = "to heads", "from heads", "heads"
HEADS_FIRST = "to heads, heads first"
# A GRU whose candidate is reset after the recurrent product, as PyTorch's and Flax' are and Keras'
# by default. With one bias only, that of the candidate's recurrent side is zero. One that resets
# before it computes something else.
GRU, GRU_ONE_BIAS, GRU_BEFORE = "gru", "gru of one bias", "gru that resets before"

# Classes of dense layers that store [in, out], whatever their framework does else: GPT-2's Conv1D,
# and ONNX' MatMul.
MATMULS = {"torch": "Conv1D", "onnx": "MatMul"}
# GPT-2's Conv1D is a dense layer that stores [in, out], though it is PyTorch's. A file does not
# name its class: its layers' names do, and that the ones with more outputs than inputs are wide.
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
# A matrix that is a parameter of its own, called after what it does.
PROJECTION = re.compile(r"(^|_)proj(ection)?$")
# Keras' classes of layers with kernels.
_OWN_KERNELS = re.compile(r"dense|conv|attention|lstm|gru|rnn|cell", re.IGNORECASE)
# A table of biases by distance: `[distances, heads]`, in T5X `[heads, distances]`.
RELATIVE = "biases by distance"
_RELATIVE = re.compile(r"(^|[_/])rel(ative)?_?(pos|att|bias|emb|position)", re.IGNORECASE)
_EINSUMS = re.compile(r"einsum|densegeneral|lineargeneral|multihead", re.IGNORECASE)


class Habits(NamedTuple):
    """What holds for a whole catalogue.

    - `framework`: whose layouts it follows, `""` if that is not known.
    - `wide`: whether layers named like GPT-2's Conv1D are such.
    - `resets_before`: whether its config says that GRUs reset before the recurrent product.
    """

    framework: str
    wide: bool = False
    resets_before: bool = False


def says_reset_before(catalogue: Catalogue) -> bool:
    """Whether a Keras config has a GRU without `reset_after`."""
    return '"reset_after": false' in catalogue.metadata.get("model_config", "")


def of_tensor(role: Role, info: TensorInfo, path: tuple[str, ...], habits: Habits) -> Kind:
    """The sort that a tensor's own class, name and shape tell."""
    if role != "kernel":
        relative = role == "embedding" and _RELATIVE.search("/".join(path))
        return RELATIVE if relative else "embedding" if role == "embedding" else ""
    if len(info.shape) == 2 and _inputs_first(info, path, habits):
        return "matmul"
    if roles.transposed(info.module, path[-1] if path else ""):
        return "transposed"
    if "depthwise" in info.module.lower():
        return "depthwise"
    if habits.framework == "keras" and not _OWN_KERNELS.search(info.module):
        return ""  # a layer of somebody's own, whose variables may be anything
    return "plain" if info.module else ""


def _inputs_first(info: TensorInfo, path: tuple[str, ...], habits: Habits) -> bool:
    if info.module and info.module == MATMULS.get(habits.framework):
        return True
    if habits.framework != "torch":
        return False
    if path and PROJECTION.search(path[-1]) and info.name.endswith(path[-1]):
        return True
    return habits.wide and not info.module and path[-1:][0] in _CONV1D


def of_layer(
    tensors: Mapping[Role, TensorInfo], path: tuple[str, ...], habits: Habits
) -> Mapping[Role, Kind]:
    """The sorts that all tensors of a layer tell together; those not told are left out."""
    if "recurrent" in tensors:
        return _gated(tensors, habits)
    if habits.framework not in ("torch", "onnx") and "kernel" in tensors:
        return _by_head(tensors, path)
    return {}


def _gated(tensors: Mapping[Role, TensorInfo], habits: Habits) -> Mapping[Role, Kind]:
    """A GRU's: three gates, which frameworks put in different orders."""
    sizes = sorted(tensors["recurrent"].shape)
    if len(sizes) != 2 or sizes[1] != 3 * sizes[0]:
        return {}
    biases = [tensors[role] for role in ("bias", "recurrent_bias") if role in tensors]
    kinds: dict[Role, Kind] = dict.fromkeys(tensors, GRU)
    lone = len(biases) == 1 and len(biases[0].shape) == 1
    if habits.framework == "keras" and (lone or (not biases and habits.resets_before)):
        return dict.fromkeys(tensors, GRU_BEFORE)
    lone_bias: dict[Role, Kind] = {"bias": GRU_ONE_BIAS} if lone else {}
    return kinds | lone_bias


def _by_head(tensors: Mapping[Role, TensorInfo], path: tuple[str, ...]) -> Mapping[Role, Kind]:
    """A dense layer to or from heads, `[d, h, k]` or `[h, k, d]`."""
    kernel, bias = tensors["kernel"], tensors.get("bias")
    if len(kernel.shape) != 3:
        return {}
    if bias is not None and bias.shape == kernel.shape[1:]:
        return {"kernel": TO_HEADS, "bias": HEADS}
    part = projection_of(path) or ("q" if fused_of(path) else "")
    if kernel.shape[0] == 1 or not (part or _EINSUMS.search(kernel.module)):
        return {}  # a convolution of size 1, if anything
    if kernel.module and not _EINSUMS.search(kernel.module):
        return {}
    if part == "o" or (not part and bias is not None):
        return {"kernel": FROM_HEADS}
    return {"kernel": TO_HEADS} if part in ("q", "k", "v") else {}
