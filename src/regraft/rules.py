"""What a person says about a plan: rename, fresh, leave, pin and widen, with templates for names.

A template matches whole tensor names. `{i}` (any word in braces) stands for one integer and
carries it from the source's side to the target's; `*` stands for any characters, dots included,
and is carried in order of appearance; `?` and `[...]` have no special meaning.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import msgspec

from regraft.errors import PlanError
from regraft.operations import AnyOp


class _Rule(msgspec.Struct, frozen=True, tag_field="rule", tag=str.lower, kw_only=True):
    """Base of the rules. `origin` says where it was written, for error messages."""

    origin: str = ""


class Rename(_Rule, frozen=True):
    """Source tensors named like `source` go to the target tensors named like `target`."""

    source: str
    target: str


class Fresh(_Rule, frozen=True):
    """Target tensors named like `target` keep the values the model was made with."""

    target: str


class Leave(_Rule, frozen=True):
    """Source tensors named like `source` are not used."""

    source: str


class Pin(_Rule, frozen=True):
    """The target tensor is made from exactly these sources through exactly these operations.

    Names may hold `{i}`: the rule then stands for every value that the target has.
    """

    target: str
    sources: tuple[str, ...]
    ops: tuple[AnyOp, ...] = ()


class Widen(_Rule, frozen=True):
    """Layers whose target tensors are named like `target` may be wider than the source's: their
    units are repeated (`regraft.matching.adapting.widths`)."""

    target: str


Rule: TypeAlias = Rename | Fresh | Leave | Pin | Widen


def rename(source: str, target: str) -> Rename:
    """`rename("blocks.{i}.attn.*", "encoder.{i}.attention.*")`; see `Rename`."""
    return Rename(source=source, target=target)


def fresh(target: str) -> Fresh:
    """`fresh("head.*")`; see `Fresh`."""
    return Fresh(target=target)


def leave(source: str) -> Leave:
    """`leave("aux.*")`; see `Leave`."""
    return Leave(source=source)


def pin(target: str, sources: str | Iterable[str], ops: Iterable[AnyOp] = ()) -> Pin:
    """`pin("conv{i}.weight", "conv{i}/weights", [Transpose((3, 2, 1, 0))])`; see `Pin`."""
    several = (sources,) if isinstance(sources, str) else tuple(sources)
    return Pin(target=target, sources=several, ops=tuple(ops))


def widen(target: str) -> Widen:
    """`widen("layers.*.mlp.*")`; see `Widen`. Name the wider layers and those that they feed."""
    return Widen(target=target)


class _RuleFile(msgspec.Struct, forbid_unknown_fields=True):
    rule: list[Rule] = []


def load_rules(path: str | os.PathLike[str]) -> list[Rule]:
    """Rules from a TOML file of `[[rule]]` tables, each with `rule = "rename"` and so on.

    **Raises** `PlanError` where the file cannot be read or says something unknown.
    """
    try:
        tables = tomllib.loads(Path(path).read_text("utf-8"))
        rules = msgspec.convert(tables, _RuleFile).rule
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PlanError(
            str(path),
            found=str(error),
            expected='[[rule]] tables such as rule = "fresh", target = "head.*"',
        ) from error
    return [
        msgspec.structs.replace(rule, origin=f"{path} rule {number}")
        for number, rule in enumerate(rules, 1)
    ]


_HOLE = re.compile(r"\{(\w+)\}|(\*)")


@lru_cache(maxsize=4096)
def pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template: `{i}` becomes group `i`, each `*` a numbered one."""
    parts: list[str] = []
    end = stars = 0
    named: set[str] = set()
    for hole in _HOLE.finditer(template):
        parts.append(re.escape(template[end : hole.start()]))
        end = hole.end()
        if hole[2]:
            parts.append(f"(?P<_star{stars}>.*)")
            stars += 1
        elif hole[1] in named:
            parts.append(f"(?P={hole[1]})")
        else:
            named.add(hole[1])
            parts.append(rf"(?P<{hole[1]}>\d+)")
    parts.append(re.escape(template[end:]))
    return re.compile("".join(parts), re.DOTALL)


def matches(template: str, name: str) -> bool:
    """Whether the whole name is like the template."""
    return pattern(template).fullmatch(name) is not None


def matches_any(templates: Iterable[str], name: str) -> bool:
    """Whether any of the templates matches the whole name."""
    return any(matches(template, name) for template in templates)


def carry(template: str, name: str, into: str) -> str | None:
    """`name` rewritten from `template` to `into`, or `None` where it does not match.

    **Raises** `PlanError` where `into` has a hole that `template` does not fill.
    """
    found = pattern(template).fullmatch(name)
    return None if found is None else fill(into, found.groupdict(), template)


def fill(template: str, values: dict[str, str], origin: str) -> str:
    """Puts values in the holes of a template."""
    stars = 0

    def value(hole: re.Match[str]) -> str:
        nonlocal stars
        key = hole[1] or f"_star{stars}"
        stars += not hole[1]
        if key not in values:
            raise PlanError(
                template,
                found=f"{hole[0]}, which {origin!r} does not fill",
                expected="the same {names} and as many * on both sides",
            )
        return values[key]

    return _HOLE.sub(value, template)
