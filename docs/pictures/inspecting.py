"""Makes docs/inspect.svg: what `regraft inspect` prints on a terminal, photographed.

A ViT with random weights is saved as a training script would have done, with a few faults; the
commands then run on a pseudo-terminal, so that the picture shows what a person sees.

    python docs/pictures/inspecting.py
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import torch
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text
from torch import nn

PICTURE = Path(__file__).parents[1] / "inspect.svg"
COLUMNS, LINES = 110, 40
_TEXT = r'x="([0-9.]+)"([^>]*)textLength="([0-9.]+)"[^>]*>([^<\n]+)(?=</text>)'
COMMANDS = (
    "regraft inspect vit_small.pth",
    "regraft inspect vit_small.pth --stats --names 'module.blocks.11.mlp.*'",
)


def block(width: int) -> nn.Module:
    """A block of a ViT under timm's names."""
    linear = nn.Linear
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(width),
            "attn": nn.ModuleDict({"qkv": linear(width, 3 * width), "proj": linear(width, width)}),
            "norm2": nn.LayerNorm(width),
            "mlp": nn.ModuleDict(
                {"fc1": linear(width, 4 * width), "fc2": linear(4 * width, width)}
            ),
        }
    )


def vit(width: int, depth: int, classes: int) -> dict[str, torch.Tensor]:
    model = nn.ModuleDict(
        {
            "patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)}),
            "blocks": nn.ModuleList(block(width) for _ in range(depth)),
            "norm": nn.LayerNorm(width),
            "head": nn.Linear(width, classes),
        }
    )
    tokens = {"cls_token": torch.randn(1, 1, width), "pos_embed": torch.randn(1, 197, width)}
    return tokens | model.state_dict()


def checkpoint(path: Path) -> None:
    """A fine-tuned ViT between an average of it and an optimizer; one layer has gone wrong."""
    torch.manual_seed(0)
    state = {f"module.{name}": tensor for name, tensor in vit(384, 12, 37).items()}
    average = {name: tensor.clone() for name, tensor in state.items()}
    state["module.blocks.11.mlp.fc1.weight"][40:44] = 0
    state["module.blocks.11.mlp.fc2.weight"][7, 9] = float("nan")
    adam = {"state": {0: {"exp_avg": torch.zeros(384), "exp_avg_sq": torch.zeros(384)}}}
    content = {"state_dict": state, "ema": average, "optimizer": adam, "epoch": 12}
    torch.save({**content, "arch": "vit_small_patch16_224"}, path)


def on_terminal(command: str, folder: Path) -> str:
    """What a command writes to a terminal, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
    running = subprocess.Popen(
        command, shell=True, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, "PATH": path, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    found = b""
    while True:
        try:
            found += os.read(ours, 65536)
        except OSError:  # the end of a terminal
            break
    running.wait()
    os.close(ours)
    # The progress bar wipes itself away, which a picture cannot show otherwise.
    text = found.decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[\?25l.*\x1b\[\?25h\s*\x1b\[1A\x1b\[2K", "", text, flags=re.DOTALL)


def unindented(text: re.Match[str]) -> str:
    """A piece of text without blanks before and after it: not every program draws those."""
    x, attributes, length, content = text.groups()
    blank, cell = "&#160;", float(length) / len(re.sub("&[^;]*;", " ", content))
    inner = re.sub(f"^(?:{blank})+", "", content)
    x = float(x) + cell * ((len(content) - len(inner)) // len(blank))
    inner = re.sub(f"(?:{blank})+$", "", inner)
    width = cell * len(re.sub("&[^;]*;", " ", inner))
    return f'x="{x:g}"{attributes}textLength="{width:g}"' + text[0].split(f'"{length}"', 1)[
        1
    ].replace(content, inner)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(Path(folder) / "vit_small.pth")
        console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        for command in COMMANDS:
            console.print(Text("$ ", "bold green") + Text(command, "bold"))
            console.print(Text.from_ansi(on_terminal(command, Path(folder)).rstrip()))
            console.print()
    # No fonts from the network: a reader's own monospaced one will do.
    style = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    style = style.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas")
    svg = console.export_svg(
        title="regraft inspect", code_format=style, unique_id="regraft-inspect"
    )
    PICTURE.write_text(re.sub(_TEXT, unindented, svg))


if __name__ == "__main__":
    main()
