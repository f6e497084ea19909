"""How long planning takes, and how much memory, as models grow: two implementations, no weights.

One process per row and size, on one core. Shapes and names only, so that nothing but matching is
measured. The last column is the growth from the size before, over n log n: 1.0 and less is what the
bar asks for. The bars: 1 s for 1,000 tensors, 20 s for 20,000, 500 MiB. Nothing here fails: it
prints.

    python -m benchmarks.plan_speed [--only PART] [tensors ...]
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

Named = Iterator[tuple[str, tuple[int, ...]]]
Sides = tuple[Named, str, Named, str]
SIZES = (1_000, 5_000, 20_000)


def decoder(layers: int, names: list[str], around: tuple[str, str, str]) -> Named:
    """A language model without biases: q, k, v, o, gate, up, down and two norms a layer."""
    d, kv, hidden, words = 64, 16, 176, 512
    shapes = [(d, d), (kv, d), (kv, d), (d, d), (hidden, d), (hidden, d), (d, hidden), (d,), (d,)]
    yield around[0], (words, d)
    for i in range(layers):
        for name, shape in zip(names, shapes, strict=True):
            yield name.format(i=i), shape
    yield around[1], (d,)
    yield around[2], (words, d)


_HF = [
    *(f"model.layers.{{i}}.self_attn.{x}_proj.weight" for x in "qkvo"),
    *(f"model.layers.{{i}}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    "model.layers.{i}.input_layernorm.weight",
    "model.layers.{i}.post_attention_layernorm.weight",
]
_AUTHORS = [
    *(f"layers.{{i}}.attention.w{x}.weight" for x in "qkvo"),
    *(f"layers.{{i}}.feed_forward.w{x}.weight" for x in (1, 3, 2)),
    "layers.{i}.attention_norm.weight",
    "layers.{i}.ffn_norm.weight",
]
_HF_AROUND = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_AUTHORS_AROUND = ("tok_embeddings.weight", "norm.weight", "output.weight")


def renamed(count: int) -> Sides:
    layers = count // 9
    ours = decoder(layers, _AUTHORS, _AUTHORS_AROUND)
    return ours, "torch", decoder(layers, _HF, _HF_AROUND), "torch"


def wrapped(count: int) -> Sides:
    layers = count // 9
    ours = ((f"module.{n}", s) for n, s in decoder(layers, _HF, _HF_AROUND))
    return ours, "torch", decoder(layers, _HF, _HF_AROUND), "torch"


def fused(count: int) -> Sides:
    """GPT-2's c_attn, input first, to q, k and v of their own."""

    def ours() -> Named:
        yield "wte.weight", (512, 64)
        for i in range(count // 16):
            for name, shape in (
                ("ln_1", (64,)), ("attn.c_attn", (64, 192)), ("attn.c_proj", (64, 64)),
                ("ln_2", (64,)), ("mlp.c_fc", (64, 256)), ("mlp.c_proj", (256, 64)),
            ):  # fmt: skip
                yield f"h.{i}.{name}.weight", shape
                yield f"h.{i}.{name}.bias", shape[-1:]

    def theirs() -> Named:
        yield "embed.weight", (512, 64)
        for i in range(count // 16):
            for name, shape in (
                ("norm1", (64,)), ("attn.q_proj", (64, 64)), ("attn.k_proj", (64, 64)),
                ("attn.v_proj", (64, 64)), ("attn.out_proj", (64, 64)), ("norm2", (64,)),
                ("mlp.fc1", (256, 64)), ("mlp.fc2", (64, 256)),
            ):  # fmt: skip
                yield f"blocks.{i}.{name}.weight", shape
                yield f"blocks.{i}.{name}.bias", shape[:1]

    return ours(), "torch", theirs(), "torch"


def experts(count: int) -> Sides:
    """Eight experts a layer, under other words."""
    layers = count // 28

    def side(text: str, parts: tuple[str, ...], router: str, attention: tuple[str, ...]) -> Named:
        for i in range(layers):
            for part, shape in zip(attention, ((64, 64), (16, 64), (64, 16)), strict=True):
                yield f"{text}.{i}.{part}.weight", shape
            yield f"{text}.{i}.{router}.weight", (8, 64)
            for j in range(8):
                for part, shape in zip(parts, ((96, 64), (64, 96), (96, 64)), strict=True):
                    yield f"{text}.{i}.{router.partition('.')[0]}.experts.{j}.{part}.weight", shape

    ours = side("layers", ("w1", "w2", "w3"), "moe.gate", ("attn.a", "attn.b", "attn.c"))
    theirs = side(
        "model.blocks", ("gate_proj", "down_proj", "up_proj"), "mlp.router",
        ("mixer.x", "mixer.y", "mixer.z"),
    )  # fmt: skip
    return ours, "torch", theirs, "torch"


def numbered(count: int) -> Sides:
    """Keras' numbers, channels last, to PyTorch's blocks: convolutions and norms of five widths."""
    blocks = count // 12

    def widths() -> Iterator[tuple[int, int, int]]:
        for i in range(blocks):
            yield i, 8 << (5 * i // blocks), 8 << (5 * max(i - 1, 0) // blocks)

    def ours() -> Named:
        number = 0
        for _, width, before in widths():
            for wide, deep in ((before, width), (width, width)):
                tail = f"_{number}" if number else ""
                yield f"conv2d{tail}.kernel", (3, 3, wide, deep)
                yield f"conv2d{tail}.bias", (deep,)
                for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                    yield f"batch_normalization{tail}.{part}", (deep,)
                number += 1

    def theirs() -> Named:
        for i, width, before in widths():
            for j, wide in ((1, before), (2, width)):
                yield f"blocks.{i}.conv{j}.weight", (width, wide, 3, 3)
                yield f"blocks.{i}.conv{j}.bias", (width,)
                for part in ("weight", "bias", "running_mean", "running_var"):
                    yield f"blocks.{i}.bn{j}.{part}", (width,)

    return ours(), "keras", theirs(), "torch"


def nameless(count: int) -> Sides:
    """Numbers instead of names."""
    layers = count // 9
    ours = decoder(layers, _HF, _HF_AROUND)
    plain = ((f"t{k}", shape) for k, (_, shape) in enumerate(ours))
    return plain, "", decoder(layers, _HF, _HF_AROUND), "torch"


ROWS: dict[str, Callable[[int], Sides]] = {
    "renamed": renamed, "wrapped": wrapped, "fused": fused, "experts": experts,
    "numbered": numbered, "nameless": nameless,
}  # fmt: skip


def measure(row: str, count: int) -> None:
    """In a process of its own: seconds, peak MiB, and what came of it."""
    import resource

    from regraft.matching import match
    from regraft.tensors import Catalogue, TensorInfo

    ours, framework, theirs, other = ROWS[row](count)
    sides = [
        Catalogue(
            (TensorInfo(name, shape, "float32") for name, shape in named),
            framework=of,
        )
        for named, of in ((ours, framework), (theirs, other))
    ]
    started = time.perf_counter()
    plan = match(*sides)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(len(sides[1]), seconds, peak, len(plan.grafts), len(plan.undecided))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tensors", nargs="*", type=int, default=SIZES)
    parser.add_argument("--only", default="")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(options.row, options.tensors[0])
        return
    print(f"{'':<10} {'tensors':>8} {'seconds':>8} {'MiB':>6} {'settled':>8} {'open':>6}  growth")
    for row in ROWS:
        before = None
        for count in options.tensors if options.only in row else ():
            command = [sys.executable, "-m", "benchmarks.plan_speed", "--row", row, str(count)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            made, seconds, peak, settled, open_ = map(float, text.split())
            growth = ""
            if before:
                fair = made * math.log(made) / (before[0] * math.log(before[0]))
                growth = f"{seconds / before[1] / fair:.2f}"
            before = made, seconds
            print(
                f"{row:<10} {made:>8.0f} {seconds:>8.2f} {peak:>6.0f} {settled:>8.0f} "
                f"{open_:>6.0f}  {growth}",
                flush=True,
            )


if __name__ == "__main__":
    main()
