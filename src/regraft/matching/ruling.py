"""What a person says comes first: rules take tensors out before anything is matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from regraft import operations
from regraft.errors import PlanError, RuleMatchedNothing, ShapeMismatch
from regraft.matching.layouts import conversions
from regraft.matching.modules import Leaf
from regraft.matching.settling import Pair, Settled, graft, spec_of
from regraft.plans import Evidence, Graft
from regraft.rules import Fresh, Leave, Pin, Rename, Rule, Widen, carry, fill, matches, pattern
from regraft.tensors import Catalogue


def apply_rules(
    rules: Iterable[Rule],
    source: Catalogue,
    target: Catalogue,
    leaves: tuple[Mapping[str, Leaf], Mapping[str, Leaf]],
    state: Settled,
) -> set[str]:
    """Settles what rules say, earlier rules first; returns the source names to leave alone.

    **Raises** `RuleMatchedNothing`, `ShapeMismatch` or `PlanError`, naming the rule.
    """
    left: set[str] = set()
    for rule in rules:
        says = Evidence("rule", 10.0, f"{_text(rule)}{f' ({rule.origin})' if rule.origin else ''}")
        match rule:
            case Fresh(target=template):
                hits = [n for n in target if matches(template, n)]
                for name in hits:
                    if not _taken(name, state):
                        new = Graft(name, spec_of(target[name]), "fresh", evidence=(says,))
                        state.grafts[name] = new
            case Leave(source=template):
                hits = [n for n in source if matches(template, n)]
                left.update(hits)
            case Widen(target=template):  # asked for later, of what nothing fits
                hits = [n for n in target if matches(template, n)]
            case Rename():
                hits = _rename(rule, source, target, leaves, state, says)
            case Pin():
                hits = _pin(rule, source, target, state, says)
        if not hits:
            raise RuleMatchedNothing(
                _text(rule),
                found=f"no tensor of {source.label} or {target.label} that it speaks of",
                expected="at least one",
                hint="list the names with `regraft inspect`; * matches dots, {i} one integer",
            )
    return left


def _text(rule: Rule) -> str:
    match rule:
        case Rename(source=a, target=b):
            return f"rename({a!r}, {b!r})"
        case Fresh(target=name):
            return f"fresh({name!r})"
        case Leave(source=name):
            return f"leave({name!r})"
        case Widen(target=name):
            return f"widen({name!r})"
        case Pin(target=name, sources=sources):
            return f"pin({name!r}, {', '.join(map(repr, sources))})"


def _taken(name: str, state: Settled) -> bool:
    return name in state.grafts or any(p.target.info.name == name for p in state.pairs)


def _rename(
    rule: Rename,
    source: Catalogue,
    target: Catalogue,
    leaves: tuple[Mapping[str, Leaf], Mapping[str, Leaf]],
    state: Settled,
    says: Evidence,
) -> list[str]:
    hits: list[str] = []
    for name in source:
        to = carry(rule.source, name, rule.target)
        if to is None or to not in target:
            continue
        if _taken(to, state):
            if to in hits:
                raise PlanError(
                    _text(rule), found=f"two sources for {to}", expected="one source for each"
                )
            continue
        hits.append(to)
        ours, theirs = leaves[0].get(name), leaves[1].get(to)
        if ours and theirs and conversions(ours, theirs):
            state.pairs.append(Pair(ours, theirs, (says,)))
        elif source[name].shape == target[to].shape:
            state.grafts[to] = graft(target[to], [source[name]], (), (says,))
        else:
            raise ShapeMismatch(
                to,
                found=f"{spec_of(source[name])}  {name} in {source.label}",
                expected=f"{spec_of(target[to])}  {target.label}",
                hint=f"pin {to!r} with the operations that convert it, or drop {_text(rule)}",
            )
    return hits


def _keeps(op: operations.Op) -> bool:
    branches = op.branches if isinstance(op, operations.Each) else ()
    return isinstance(op, operations.Keep) or any(_keeps(o) for ops in branches for o in ops)


def _pin(
    rule: Pin, source: Catalogue, target: Catalogue, state: Settled, says: Evidence
) -> list[str]:
    ends = bool(rule.ops) and isinstance(rule.ops[-1], operations.Keep)
    if any(map(_keeps, rule.ops[:-1] if ends else rule.ops)):
        raise PlanError(
            _text(rule),
            found="a Keep among other operations",
            expected="Keep as the last one: it gives the tensor that the target holds",
        )
    hits: list[str] = []
    for name in target:
        found = pattern(rule.target).fullmatch(name)
        if found is None or _taken(name, state):
            continue
        wanted = [fill(text, found.groupdict(), rule.target) for text in rule.sources]
        absent = [text for text in wanted if text not in source]
        if absent:
            raise RuleMatchedNothing(
                _text(rule),
                found=f"no source tensor {absent[0]!r} for {name}",
                expected=f"a name of {source.label}",
            )
        hits.append(name)
        infos = [source[text] for text in wanted]
        new = graft(target[name], infos, rule.ops, (says,))
        made = operations.infer(new.ops, tuple(info.shape for info in infos))
        if made != target[name].shape:
            raise ShapeMismatch(
                name,
                found=f"{list(made)}  {' + '.join(wanted)} in {source.label}",
                expected=f"{list(target[name].shape)}  {target.label}",
                hint=f"correct the operations of {_text(rule)}"
                + (f", {rule.origin}" if rule.origin else ""),
            )
        state.grafts[name] = new
    return hits
