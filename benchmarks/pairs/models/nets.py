"""Small torch networks whose names can be chosen freely, so that one network has many spellings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module at `a.b.0.c`, making plain modules on the way."""
    *parents, leaf = path.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # pyright: ignore[reportAssignmentType]
    root.add_module(leaf, module)


class Chain(nn.Module):
    """Layers one after another, under any names. A step without a name has no tensors.

    `defined`: the order in which they are defined, as indices of steps, where it is not the order
    of use.
    """

    def __init__(
        self,
        steps: Iterable[tuple[str, nn.Module]],
        defined: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        self._steps = list(steps)
        order = range(len(self._steps)) if defined is None else defined
        for index in order:
            path, module = self._steps[index]
            if path:
                place(self, path, module)
        # Plain attributes: registered again, modules would be listed twice.
        self.__dict__["_run"] = tuple(module for _, module in self._steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.__dict__["_run"]:
            x = module(x)
        return x


class Residual(nn.Module):
    """A pre-norm block of two dense layers; `names` of the norm and of both layers."""

    def __init__(
        self, width: int, hidden: int, names: tuple[str, str, str] = ("norm", "fc1", "fc2")
    ) -> None:
        super().__init__()
        place(self, names[0], nn.LayerNorm(width))
        place(self, names[1], nn.Linear(width, hidden))
        place(self, names[2], nn.Linear(hidden, width))
        self._names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, first, second = (self.get_submodule(name) for name in self._names)
        return x + second(F.gelu(first(norm(x))))


class ConvUnit(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(
        self, before: int, after: int, stride: int = 1, names: tuple[str, str] = ("conv", "bn")
    ) -> None:
        super().__init__()
        place(self, names[0], nn.Conv2d(before, after, 3, stride, 1, bias=False))
        place(self, names[1], nn.BatchNorm2d(after))
        self._names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm = (self.get_submodule(name) for name in self._names)
        return F.relu(norm(conv(x)))


class SmallResNet(nn.Module):
    """A residual network as people write it; `classes=0` leaves the head out."""

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.downsample = None
            if stride > 1 or before != after:
                self.downsample = nn.Sequential(
                    nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    def __init__(
        self, classes: int = 10, channels: int = 3, depths: tuple[int, ...] = (2, 2)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        for index, depth in enumerate(depths):
            width = 16 * 2**index
            blocks = [
                self.Block(width if i else before, width, 2 if index and not i else 1)
                for i in range(depth)
            ]
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
            before = width
        self.depths = depths
        self.fc = nn.Linear(before, classes) if classes else None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(len(self.depths)):
            x = getattr(self, f"layer{index + 1}")(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return x if self.fc is None else self.fc(x.mean((2, 3)))


class Segmentor(nn.Module):
    """A backbone with a neck and two heads."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.backbone = SmallResNet(0)
        self.neck = nn.ModuleDict({"lateral": nn.Conv2d(32, 24, 1), "fuse": ConvUnit(24, 24)})
        self.decode_head = nn.ModuleDict({"conv_seg": nn.Conv2d(24, classes, 1)})
        self.auxiliary_head = nn.ModuleDict({"conv_seg": nn.Conv2d(32, classes, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.backbone.features(x)
        y = self.neck["fuse"](self.neck["lateral"](features))
        return self.decode_head["conv_seg"](y) + self.auxiliary_head["conv_seg"](features)


class Perceptron(nn.Module):
    """Dense layers of given widths with ReLU between, as `layers.{i}`."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Generator(nn.Module):
    """A DCGAN generator on 8×8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(12, 16, 2, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


class Discriminator(nn.Module):
    """Its counterpart, whose layers have the shapes of the generator's."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
            nn.Conv2d(16, 1, 2, 1, 0, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)
