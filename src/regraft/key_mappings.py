"""A plan that only renames, as the regular expressions that transformers' `from_pretrained` takes.

`key_mapping` is a dictionary of patterns and replacements. Up to transformers 4 the first pattern
that is found in a key is replaced (`re.subn`); from 5 on every pattern is applied in turn, its
first match is replaced, and a replacement may name one group
(`core_model_loading.WeightTransform`). The mapping is made for both, and tried on every name of the
source before it is given out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from regraft.errors import PlanError
from regraft.operations import Cast
from regraft.plans import Graft, Plan, Summary
from regraft.rules import fill, pattern

_HOLES = re.compile(r"\{(\w+)\}")
_SHOWN = 20


def key_mapping(plan: Plan) -> dict[str, str]:
    """See `Plan.to_key_mapping`."""
    wanted = _renamed(plan)
    rules = [_expression(rule) for rule in _one_hole(plan.summary, plan.source.tensors)]
    mapping = {source: target for source, target in rules if source != target}
    # Longer expressions first: of two that are found in one key, they say more.
    mapping = dict(sorted(mapping.items(), key=lambda item: -len(item[0])))
    for apply in (_first_found, _one_by_one):
        made = {name: apply(mapping, name) for name in plan.source.tensors}
        wrong = [name for name, target in wanted.items() if made[name] != target]
        taken = set(wanted.values())
        wrong += [name for name in plan.unused if made[name] in taken]
        if wrong:
            raise PlanError(
                plan.source.label,
                found=f"{wrong[0]} would become {made[wrong[0]]}",
                expected="names that regular expressions tell apart, one after another",
                hint="use rg.load, or plan.to_python for a script of its own",
                problems=wrong[:_SHOWN],
            )
    return mapping


def _renamed(plan: Plan) -> dict[str, str]:
    """Target name by source name. **Raises** `PlanError` where more than names changes."""
    written = [graft for graft in plan.grafts.values() if graft.written]
    more = [graft for graft in written if not _renames(graft)]
    names = [graft.sources[0] for graft in written if _renames(graft)]
    problems = [f"{g.target}: {', '.join(map(str, g.ops)) or 'no source'}" for g in more]
    problems += [f"{name}: goes to several tensors" for name in names if names.count(name) > 1]
    if not plan.complete:
        problems += [f"{name}: undecided" for name in plan.undecided]
    if problems:
        raise PlanError(
            plan.target.label,
            found=problems[0],
            expected="a complete plan in which every tensor is only renamed (and cast)",
            hint="use rg.load, or plan.to_python for a script of its own",
            problems=problems[:_SHOWN],
        )
    return {graft.sources[0]: graft.target for graft in written}


def _renames(graft: Graft) -> bool:
    return len(graft.sources) == 1 and all(isinstance(op, Cast) for op in graft.ops)


def _one_hole(rules: Iterable[Summary], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The rules' templates; of several `{i}` one stays, the others are written out."""
    names = list(names)
    for rule in rules:
        holes = list(dict.fromkeys(_HOLES.findall(rule.source)))
        kept = holes[-1:]
        if len(holes) < 2:
            yield rule.source, rule.target
            continue
        found = (pattern(rule.source).fullmatch(name) for name in names)
        met = [match.groupdict() for match in found if match]
        for values in {tuple((hole, m[hole]) for hole in holes[:-1]) for m in met}:
            known = dict(values) | {hole: f"{{{hole}}}" for hole in kept}
            yield tuple(_filled(side, known) for side in (rule.source, rule.target))  # pyright: ignore[reportReturnType]


def _filled(template: str, values: Mapping[str, str]) -> str:
    stars = {f"_star{k}": "*" for k in range(template.count("*"))}
    return fill(template, dict(values) | stars, template)


def _expression(templates: tuple[str, str]) -> tuple[str, str]:
    """A pattern from the beginning of a name, to its end unless the template ends with `*`."""
    source, target = templates
    whole = not source.endswith("*")
    start, into = (side if whole else side[:-1] for side in (source, target))
    parts = _HOLES.split(start)
    expression = "^" + re.escape(parts[0])
    for place in range(2, len(parts), 2):
        # The same hole again is the same number: one group, then whatever stood in it.
        expression += (r"(\d+)" if place == 2 else r"\d+") + re.escape(parts[place])
    return expression + "$" * whole, _HOLES.sub(r"\\1", into)


def _first_found(mapping: Mapping[str, str], name: str) -> str:
    for expression, replacement in mapping.items():
        renamed, count = re.subn(expression, replacement, name)
        if count:
            return renamed
    return name


def _one_by_one(mapping: Mapping[str, str], name: str) -> str:
    for expression, replacement in mapping.items():
        end = r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", expression) else ""
        match = re.search(expression + end, name)
        if match:
            group = match[1] if match.re.groups else ""
            name = name.replace(match[0], replacement.replace(r"\1", group), 1)
    return name
