"""Operations, stored tensors and what they mean to one another, without any format.

What a graph file is brought to before it is read (`_op_graph`), and what comes of the reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from regraft.tensors import FlowNode

_NONE: frozenset[str] = frozenset()


class Op(NamedTuple):
    """One operation; its kind is `""` where control flow joins values, an absent input is `""`.

    `settings` are the integers among its attributes.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, tuple[int, ...]] = {}


class Param(NamedTuple):
    """A stored tensor, as far as a graph needs to know it."""

    name: str
    shape: tuple[int, ...]
    floating: bool

    @property
    def vector(self) -> bool:
        """More than one value along one axis, axes of size 1 not counted."""
        return math.prod(self.shape) == max(self.shape, default=1) > 1


class Dialect(NamedTuple):
    """What the operations of one format mean, by their kinds.

    - `parameters`: which inputs are a layer's tensors, and their roles.
    - `dense`: operations that multiply matrices, with the settings that turn their two inputs.
    - `add`, `subtract`, `multiply`: arithmetic of two inputs.
    - `unchanged`: the output holds the first input's values as they are.
    - `transpose`, `reshape`, `flatten`, `concat`: what moves axes, and what makes shapes for it.
    - `sizes`: gives sizes, or makes tensors from sizes, which are no data.
    - `steered`: takes stored tensors as settings: bounds, scales of a resize or a quantization.
    """

    parameters: Mapping[str, Mapping[int, str]]
    dense: Mapping[str, tuple[str, str]]
    add: frozenset[str]
    subtract: frozenset[str]
    multiply: frozenset[str]
    unchanged: frozenset[str]
    transpose: frozenset[str]
    reshape: frozenset[str]
    concat: frozenset[str]
    sizes: frozenset[str]
    steered: frozenset[str]
    flatten: frozenset[str] = _NONE


class Use(NamedTuple):
    """What a tensor is to the layer that owns it."""

    owner: str
    module: str
    role: str


class Reading(NamedTuple):
    """What a graph says.

    - `uses`: by tensor, where it is a layer's.
    - `order`: all tensors that are read, in the order of first use.
    - `settings`: those that are never read but as settings.
    - `flow`: the dataflow; empty where it is too long.
    """

    uses: dict[str, Use]
    order: tuple[str, ...]
    settings: frozenset[str]
    flow: tuple[FlowNode, ...]
