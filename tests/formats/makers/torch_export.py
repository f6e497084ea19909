from __future__ import annotations

from pathlib import Path

import torch

from formats.samples import Values, arrays

SUFFIX = ".pt2"


class _Program(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, value in _values().items():
            tensor = torch.from_numpy(value.copy())
            if name.startswith("stem"):
                self.register_parameter(_attribute(name), torch.nn.Parameter(tensor))
            else:
                self.register_buffer(_attribute(name), tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for value in (*self.parameters(), *self.buffers()):
            x = x + value.sum()
        return x


def _values() -> Values:
    return {name: value for name, value in arrays().items() if value.size}  # it saves no empty ones


def _attribute(name: str) -> str:
    return f"a_{name.replace('.', '_')}"


def make(path: Path) -> Values:
    torch.export.save(torch.export.export(_Program(), (torch.ones(2),)), path)
    return {_attribute(name): value for name, value in _values().items()}
