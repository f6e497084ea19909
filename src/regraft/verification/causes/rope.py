"""Rotary positions: another base, another layout (pairs side by side, or halves), or positions that
begin elsewhere.

Tried in the table of inverse frequencies, in the base that the code raises to a power, in the
angles of which cosine and sine are taken, and by reordering each head of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from regraft.calls import Edit, Entered, InFunction, Rewritten, Setting
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where

_BASES = (10000.0, 500000.0, 1000000.0, 100000.0, 1000.0, 100.0, 5000.0, 50000.0, 160000.0,
          8000000.0, 10000000.0, 20000.0, 40000.0, 5000000.0, 250000.0)  # fmt: skip
_NAMES = ("theta", "base", "rope_theta", "rope_base", "rotary_base", "rotary_emb_base",
          "max_wavelength")  # fmt: skip


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for path in scene.inner():
        settings = scene.modules[path].settings
        for name, value in settings.items():
            if isinstance(value, np.ndarray) and value.ndim == 1 and "freq" in name:
                yield from _frequencies(scene, path, name, value)
            elif name in _NAMES and isinstance(value, (int, float)):
                for base in _bases(scene, path, float(value)):
                    yield _of(path, (Setting(path, {name: base}),), base,
                              f"{where(path)}.{name} = {base!r}")  # fmt: skip
    for call in scene.calls("__rpow__", "pow", "__pow__"):
        for key, value in call.arguments.items():
            if isinstance(value, (int, float)) and abs(value) >= 50:
                for base in _bases(scene, call.path, float(value)):
                    edit = InFunction(call.path, call.name, call.number, {key: base})
                    fix = f"{in_forward(call.path)}: {base!r} in place of {value!r}"
                    yield _of(call.path, (edit,), base, fix)
    yield from _angles(scene)
    yield from _given_tables(scene)
    yield from _layouts(scene)


def _frequencies(scene: Scene, path: str, name: str, table: Array) -> Iterator[Hypothesis]:
    source = next(iter(scene.source_setting(path, name)), None)
    if isinstance(source, np.ndarray) and source.shape == table.shape:
        if not np.array_equal(source, table):
            yield _of(path, (Setting(path, {name: source}),), _base_of(source),
                      f"{where(path)}.{name}: base {_base_of(source):g}")  # fmt: skip
        return
    for base in _BASES:
        made = base ** (-np.arange(table.size) / table.size)
        yield _of(path, (Setting(path, {name: made.astype(table.dtype)}),), base,
                  f"{where(path)}.{name}: base {base:g}")  # fmt: skip


def _base_of(table: Array) -> float:
    if table.size < 2 or not table[1] > 0:
        return 0.0
    return float(f"{float(table[1]) ** -table.size:.4g}")


def _bases(scene: Scene, path: str, present: float) -> Iterator[float]:
    own = [float(v) for v in scene.source_setting(path, *_NAMES) if isinstance(v, (int, float))]
    yield from (b for b in dict.fromkeys((*own, *_BASES)) if b != present)


def _angles(scene: Scene) -> Iterator[Hypothesis]:
    """Cosines and sines in the code, of angles that another base or another beginning gives."""
    calls = list(scene.calls("cos", "sin"))
    if not calls:
        return
    changes: dict[str, Callable[[Array], Array]] = {
        f"base {base:g}": _rebased(base) for base in _BASES
    }
    changes |= {"positions one later": _moved(1), "positions one earlier": _moved(-1)}
    for text, change in changes.items():
        edits = tuple(InFunction(c.path, c.name, c.number, before=_first(change)) for c in calls)
        paths = tuple(dict.fromkeys(c.path for c in calls))
        yield Hypothesis(
            "rope", edits, paths, f"rotary {text}", f"{in_forward(paths[0])}: rotary {text}"
        )


def _given_tables(scene: Scene) -> Iterator[Hypothesis]:
    """Tables of rotations that a module is given, with those of another base in their place."""
    kind, path, _ = scene.site.place
    if kind != "input" or _made_of(scene.site.actual) is None:
        return
    for base in _BASES:
        yield Hypothesis(
            "rope", (Entered(path, _with_tables(base)),), (scene.site.module,),
            f"rotary base {base:g}",
            f"{in_forward(scene.site.module)}: base {base:g} in the tables that {path!r} is given",
        )  # fmt: skip


def _with_tables(base: float) -> Callable[[list[Array]], list[Array]]:
    def change(arrays: list[Array]) -> list[Array]:
        made = [_made_of(array, base) for array in arrays]
        return [a if m is None else m for a, m in zip(arrays, made, strict=True)]

    return change


_WAVES: tuple[Callable[[Array], Array], ...] = (np.cos, np.sin, lambda a: np.exp(1j * a))
_SPREADS: tuple[Callable[[Array], Array], ...] = (
    lambda a: a,
    lambda a: np.concatenate([a, a], -1),
    lambda a: np.repeat(a, 2, -1),
)


def _made_of(array: Array, base: float | None = None) -> Array | None:
    """What a table of cosines, sines or rotations is with another base; None where it is none."""
    if array.ndim < 2 or array.dtype.kind not in "fc" or array.size < 4:
        return None
    rows, columns = array.shape[-2:]
    for wave in _WAVES:
        if (array.dtype.kind == "c") != (wave is _WAVES[2]):
            continue
        for spread in _SPREADS:
            width = columns if spread is _SPREADS[0] else columns // 2
            if spread(np.zeros(width)).size != columns:
                continue

            def table(of: float, wave: Any = wave, spread: Any = spread, n: int = width) -> Array:
                return wave(spread(np.outer(np.arange(rows), of ** (-np.arange(n) / n))))

            if any(np.allclose(array, table(b), atol=1e-4) for b in _BASES):
                made = table(_BASES[0] if base is None else base)
                return np.broadcast_to(made, array.shape).astype(array.dtype)
    return None


def _rebased(base: float) -> Callable[[Array], Array]:
    def change(angles: Array) -> Array:
        frequencies, positions = _parts(angles)
        if frequencies is None or positions is None:
            return angles
        count = frequencies.shape[-1]
        doubled = count > 1 and bool(
            np.allclose(frequencies[..., : count // 2], frequencies[..., count // 2 :])
        )
        half = count // 2 if doubled else count
        pairwise = not doubled and count > 1 and bool(np.isclose(frequencies[0], frequencies[1]))
        exponent = (
            np.arange(count) % half / half if not pairwise else np.arange(count) // 2 * 2 / count
        )
        return (positions * base ** (-exponent)).astype(angles.dtype)

    return change


def _moved(by: int) -> Callable[[Array], Array]:
    def change(angles: Array) -> Array:
        frequencies, _ = _parts(angles)
        return angles if frequencies is None else (angles + by * frequencies).astype(angles.dtype)

    return change


def _parts(angles: Array) -> tuple[Array, Array] | tuple[None, None]:
    """Frequencies (along the last axis) and positions (the first angle, whose frequency is 1)."""
    rows = angles.reshape(-1, angles.shape[-1]).astype(np.float64)
    lead = rows[:, 0]
    if not lead.any():
        return None, None
    at = int(np.argmax(np.abs(lead)))
    return rows[at] / lead[at], angles[..., :1].astype(np.float64)


def _layouts(scene: Scene) -> Iterator[Hypothesis]:
    """Halves for pairs and the other way round: each head of queries and of keys reordered."""
    widths: dict[int, None] = {}
    for call in scene.functions:
        if len(call.output) > 3 and call.output[-1] % 2 == 0:
            widths[call.output[-1]] = None
    named = [p for p in scene.children if _is_query(p) or _is_key(p)]
    fused = [
        p
        for p, c in scene.children.items()
        if all(arrays and arrays[0].ndim for arrays in (c.outputs, c.inputs))
        and c.outputs[0].shape[-1] == 3 * c.inputs[0].shape[-1]
    ]
    for width in widths:
        for text, order in _orders(width):
            edits: list[Edit] = []
            if any(map(_is_query, named)) and any(map(_is_key, named)):
                edits = [Rewritten(p, _by_head(order, 1.0)) for p in named]
            elif fused:
                edits = [Rewritten(fused[0], _by_head(order, 2 / 3))]
            if edits:
                yield Hypothesis(
                    "rope", tuple(edits), (scene.site.module,), f"rotary {text}",
                    f"{in_forward(scene.site.module)}: rotary {text}",
                )  # fmt: skip


def _orders(width: int) -> Iterator[tuple[str, Array]]:
    whole = np.arange(width)
    yield "halves instead of pairs", whole.reshape(2, -1).T.reshape(-1)
    yield "pairs instead of halves", whole.reshape(-1, 2).T.reshape(-1)


def _by_head(order: Array, share: float) -> Callable[[list[Array], list[Array]], list[Array]]:
    def change(_: list[Array], outputs: list[Array]) -> list[Array]:
        first = outputs[0]
        total = int(first.shape[-1] * share + 0.5)
        heads = first[..., :total].reshape(*first.shape[:-1], -1, order.size)[..., order]
        turned = heads.reshape(*first.shape[:-1], total)
        return [np.concatenate([turned, first[..., total:]], -1), *outputs[1:]]

    return change


def _is_query(path: str) -> bool:
    return _last(path) in ("q", "q_proj", "query", "wq", "to_q", "query_proj", "q_lin", "fc_q")


def _is_key(path: str) -> bool:
    return _last(path) in ("k", "k_proj", "key", "wk", "to_k", "key_proj", "k_lin", "fc_k")


def _last(path: str) -> str:
    return path.replace("/", ".").rpartition(".")[2].lower()


def _first(change: Callable[[Array], Array]) -> Callable[[list[Array]], list[Array]]:
    return lambda arrays: [change(arrays[0]), *arrays[1:]]


def _of(path: str, edits: tuple[Any, ...], base: float, fix: str) -> Hypothesis:
    return Hypothesis("rope", edits, (path,), f"rotary base {base:g}", fix)
