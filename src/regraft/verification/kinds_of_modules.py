"""What modules are for, by the names of their classes in the frameworks."""

from __future__ import annotations

import re

from regraft.calls import Module

_KINDS = {
    "pool": r"pool",
    "activation": r"relu|gelu|silu|swish|sigmoid|tanh|elu$|mish|softplus|activation|^act|hardsw",
    "norm": r"norm",
    "resize": r"upsampl|resiz|interpol",
    "flatten": r"flatten|reshape|permute",
    "padding": r"pad(ding)?\d?d?$|zeropad|samepad",
    "rotary": r"rotary|rope",
    "softmax": r"softmax",
    "dropout": r"dropout|droppath|stochasticdepth",
    "identity": r"^identity$|inputlayer",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}


def category(module: Module) -> str | None:
    """One of a few kinds of modules, or None for a class of another name."""
    name = module.kind.lower()
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), None)


def is_norm(module: Module) -> bool:
    return category(module) == "norm"


def is_activation(module: Module) -> bool:
    return category(module) == "activation"
