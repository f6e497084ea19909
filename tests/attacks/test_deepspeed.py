"""DeepSpeed folders whose files, vectors or shapes do not add up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attacks.building import (
    called,
    get,
    mapping,
    named,
    number,
    put,
    sizes,
    tensor,
    text,
    torch_file,
    whole,
)
from attacks.harness import REFUSED, Attack, Make, check
from regraft.errors import FormatError, MissingShard, UnsafeFile

MODEL = "mp_rank_00_model_states.pt"
OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def saved(value: bytes) -> bytes:
    return torch_file(whole(value, protocol=2))


def size_of(values: Sequence[int]) -> bytes:
    return called(named("torch", "Size"), sizes(values))


def model(
    shapes: bytes | None = None, buffers: bytes = b"]", module: bytes = b"}",
    *more: tuple[bytes, bytes],
) -> bytes:  # fmt: skip
    """The model's file: `w` of four elements, in one group."""
    groups = b"](" + mapping((text("w"), size_of((4,)))) + b"e" if shapes is None else shapes
    return saved(mapping(
        (text("module"), module), (text("buffer_names"), buffers),
        (text("param_shapes"), groups), *more))  # fmt: skip


def one(shape: bytes) -> bytes:
    return model(b"](" + mapping((text("w"), shape)) + b"e")


def optimizer(
    stage: bytes = number(1), count: bytes = number(1), vectors: bytes | None = None,
    key: str = "single_partition_of_fp32_groups",
) -> bytes:  # fmt: skip
    flat = b"](" + tensor() + b"e" if vectors is None else vectors
    return saved(
        mapping(
            (
                text("optimizer_state_dict"),
                mapping(
                    (text("zero_stage"), stage), (text("partition_count"), count), (text(key), flat)
                ),
            )
        )
    )


def zero(
    models: bytes | Callable[[Path], bytes] | None = None,
    *optimizers: bytes,
    prepare: Callable[[Path], Any] | None = None,
) -> Make:
    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (folder / "outside_model_states.pt").write_bytes(model())
        content = models(marker) if callable(models) else model() if models is None else models
        (inner / MODEL).write_bytes(content)
        for rank, data in enumerate(optimizers or (optimizer(),)):
            (inner / OPTIMIZER.format(rank)).write_bytes(data)
        if prepare is not None:
            prepare(inner)
        return inner

    return make


def instead(how: Callable[[Path], Any], name: str = MODEL, alone: bool = False) -> Make:
    """A folder of which one file is made by `how`; `alone` leaves the optimizer's out."""

    def prepare(inner: Path) -> None:
        if alone:
            (inner / OPTIMIZER.format(0)).unlink()
        (inner / name).unlink(missing_ok=True)
        how(inner / name)

    return zero(prepare=prepare)


def latest(tag: bytes, prepare: Callable[[Path], Any] | None = None) -> Make:
    """A folder whose file `latest` names another, beside one outside."""

    def make(folder: Path, marker: Path) -> Path:
        zero()(folder, marker)  # what must not be opened: it is not in this folder
        outer = folder / "outer"
        (outer / "step").mkdir(parents=True)
        (outer / "step" / MODEL).write_bytes(model())
        (outer / "step" / OPTIMIZER.format(0)).write_bytes(optimizer())
        (outer / "zero_to_fp32.py").write_bytes(b"raise SystemExit")
        (outer / "latest").write_bytes(tag)
        if prepare is not None:
            prepare(outer)
        return outer

    return make


def runs(marker: Path) -> bytes:
    return saved(called(named("os", "system"), text(f"touch {marker}")))


def frozen(shape: Sequence[int], fragment: bytes) -> bytes:
    return model(None, b"]", b"}",
                 (text("frozen_param_shapes"), mapping((text("f"), size_of(shape)))),
                 (text("frozen_param_fragments"), mapping((text("f"), fragment))))  # fmt: skip


def stage3(shape: Sequence[int], *vectors: bytes) -> Make:
    parts = [
        optimizer(number(3), number(len(vectors)), b"](" + v + b"e", "fp32_flat_groups")
        for v in vectors
    ]
    return zero(one(size_of(shape)), *parts)


def shared(*pairs: tuple[str, str]) -> bytes:
    told = mapping(*((text(a), text(b)) for a, b in pairs))
    return model(None, b"]", b"}", (text("shared_params"), told))


def _again(count: int) -> bytes:
    """A group of many names of one shape, which takes no element."""
    return b"](" + size_of((0,)) + put(900) + b"0" + mapping(
        *((text(f"v{i}"), get(900)) for i in range(count))) + b"e"  # fmt: skip


ATTACKS = {
    "an honest folder": Attack(zero(), {"w": (4,)}),
    "an honest folder of stage 3": Attack(stage3((4,), tensor((2,)), tensor((2,))), {"w": (4,)}),
    "an honest latest": Attack(latest(b"step"), {"w": (4,)}),
    "a model's file that runs a command": Attack(zero(runs), UnsafeFile, MODEL),
    "an optimizer's file that runs a command": Attack(
        lambda f, m: zero(None, runs(m))(f, m), UnsafeFile, "optim_states"),
    "an enumeration that runs a command": Attack(
        lambda f, m: zero(None, optimizer(called(named("subprocess", "call"), text("true"))))(f, m),
        UnsafeFile, "optim_states"),
    "a model's file that is a pipe": Attack(instead(lambda p: os.mkfifo(p)), FormatError, ""),
    "a model's file that is a pipe, alone": Attack(
        instead(lambda p: os.mkfifo(p), alone=True), FormatError, ""),
    "a model's file that links to a device": Attack(
        instead(lambda p: p.symlink_to("/dev/zero")), FormatError, ""),
    "a model's file that links outside": Attack(
        instead(lambda p: p.symlink_to("../outside_model_states.pt")), UnsafeFile, ""),
    "a model's file that links outside, alone": Attack(
        instead(lambda p: p.symlink_to("../outside_model_states.pt"), alone=True), UnsafeFile, ""),
    "a model's file that links to itself": Attack(
        instead(lambda p: p.symlink_to(p.name)), FormatError, ""),
    "a model's file that is empty": Attack(zero(b""), FormatError, MODEL),
    "a model's file that is cut off": Attack(zero(model()[:-30]), REFUSED, MODEL),
    "a model's file that is no checkpoint": Attack(zero(saved(b"]")), REFUSED, MODEL),
    "an optimizer's file that is a pipe": Attack(
        instead(lambda p: os.mkfifo(p), OPTIMIZER.format(0)), FormatError, ""),
    "an optimizer's file that links outside": Attack(
        instead(lambda p: p.symlink_to("../outside_model_states.pt"), OPTIMIZER.format(0)),
        UnsafeFile, ""),
    "an optimizer's file that is missing": Attack(
        zero(None, optimizer(count=number(2))), MissingShard, ""),
    "an optimizer's file too many": Attack(zero(None, optimizer(), optimizer()), REFUSED, ""),
    "2^40 processes": Attack(zero(None, optimizer(count=number(1 << 40))), MissingShard, ""),
    "a negative number of processes": Attack(
        zero(None, optimizer(count=number(-1))), REFUSED, ""),
    "a number of processes that is text": Attack(
        zero(None, optimizer(count=text("1"))), REFUSED, ""),
    "numbers of processes that differ": Attack(
        zero(None, optimizer(count=b"](" + number(1) + number(2) + b"e")), FormatError, ""),
    "an unknown stage": Attack(zero(None, optimizer(stage=number(7))), REFUSED, ""),
    "no stage": Attack(zero(None, optimizer(stage=b"N")), REFUSED, ""),
    "no vectors": Attack(zero(None, optimizer(vectors=b"N")), REFUSED, ""),
    "vectors of another stage": Attack(
        zero(None, optimizer(key="fp32_flat_groups")), REFUSED, ""),
    "a vector that is no tensor": Attack(
        zero(None, optimizer(vectors=b"](" + number(3) + b"e")), REFUSED, ""),
    "a vector of two axes": Attack(
        zero(None, optimizer(vectors=b"](" + tensor((2, 2), (2, 1)) + b"e")), REFUSED, ""),
    "a vector with gaps": Attack(
        zero(None, optimizer(vectors=b"](" + tensor((2,), (2,)) + b"e")), REFUSED, ""),
    "a vector spread by a stride of 0": Attack(
        zero(None, optimizer(vectors=b"](" + tensor((1 << 20,), (0,)) + b"e")), REFUSED, ""),
    "a vector behind its storage": Attack(
        zero(None, optimizer(vectors=b"](" + tensor((4,), (1,), 3) + b"e")), REFUSED, ""),
    "a vector that is too short": Attack(zero(one(size_of((5,)))), REFUSED, ""),
    "a vector that is too long": Attack(
        zero(one(size_of((1,))), optimizer()), REFUSED, ""),
    "a vector twice": Attack(
        zero(None, optimizer(vectors=b"](" + tensor() + put(900) + get(900) + b"e")), REFUSED, ""),
    "vectors of several dtypes": Attack(
        zero(None, optimizer(vectors=b"](" + tensor() + tensor(
            (2,), function="_rebuild_parameter") + b"e")), REFUSED, ""),
    "processes with other numbers of groups": Attack(
        zero(None, optimizer(count=number(2)),
             optimizer(count=number(2), vectors=b"]")), REFUSED, ""),
    "a shape of petabytes": Attack(zero(one(size_of((1 << 50,)))), REFUSED, ""),
    "a shape whose product overflows": Attack(
        zero(one(size_of((1 << 40, 1 << 40)))), REFUSED, ""),
    "a shape that is negative": Attack(zero(one(size_of((-4,)))), REFUSED, ""),
    "a shape of nothing beside a huge size": Attack(
        zero(one(size_of((0, 1 << 61, 1 << 61))), optimizer(vectors=b"](" + tensor((0,)) + b"e")),
        REFUSED, ""),
    "a shape of a thousand axes": Attack(zero(one(size_of((1,) * 1000))), REFUSED, ""),
    "a shape that is text": Attack(zero(one(text("4"))), REFUSED, ""),
    "a name that is a number": Attack(
        zero(model(b"](" + mapping((number(3), size_of((4,)))) + b"e")), REFUSED, ""),
    "a name of control characters": Attack(
        zero(model(b"](" + mapping((text("\x1b]0;owned\x07"), size_of((5,)))) + b"e")), REFUSED,
        ""),
    "a parameter in two groups": Attack(
        zero(model(b"](" + mapping((text("w"), size_of((2,))))
                   + mapping((text("w"), size_of((2,)))) + b"e"),
             optimizer(vectors=b"](" + tensor((2,)) + tensor((2,)) + b"e")), REFUSED, "'w'"),
    "a parameter that is a buffer, too": Attack(
        zero(model(None, b"](" + text("w") + b"e", mapping((text("w"), tensor())))), REFUSED,
        "'w'"),
    "a buffer that is a record of code": Attack(
        zero(model(None, b"](" + text("b") + b"e", mapping((text("b"), called(
            named("posix", "system"), text("true")))))), UnsafeFile, MODEL),
    "300,000 parameters of one shape": Attack(zero(model(_again(300_000))), REFUSED, ""),
    "a frozen parameter of another shape": Attack(
        zero(frozen((5,), tensor())), REFUSED, "'f'"),
    "a frozen parameter without values": Attack(zero(frozen((4,), b"N")), REFUSED, "f"),
    "shared names in a ring": Attack(zero(shared(("a", "b"), ("b", "a"))), {"w": (4,)}),
    "a shared name that is its own": Attack(zero(shared(("w", "w"))), {"w": (4,)}),
    "parts of stage 3 that are too short": Attack(
        stage3((4,), tensor((2,)), tensor((1,))), REFUSED, ""),
    "parts of stage 3 of petabytes": Attack(
        stage3((1 << 50,), tensor((2,)), tensor((2,))), REFUSED, ""),
    "a latest that leads above": Attack(latest(b"../inner"), FormatError, ""),
    "a latest with an absolute path": Attack(
        lambda f, m: latest(str(f / "inner").encode())(f, m), UnsafeFile, ""),
    "a latest that links outside": Attack(
        latest(b"linked", lambda p: (p / "linked").symlink_to("../inner")), UnsafeFile, ""),
    "a latest that is a pipe": Attack(
        latest(b"step", lambda p: ((p / "latest").unlink(), os.mkfifo(p / "latest"))), FormatError,
        ""),
    "a latest that is this folder": Attack(latest(b"."), FormatError, ""),
    "a latest of a megabyte": Attack(latest(b"n" * (1 << 20)), FormatError, ""),
    "a latest that is no text": Attack(latest(b"\xff\0\xfe"), FormatError, ""),
    "a latest of nothing": Attack(latest(b"gone"), MissingShard, ""),
}  # fmt: skip


def test_deepspeed(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])
