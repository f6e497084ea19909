"""What pairs of models for images showed that nobody had tuned for: exact values are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.targets import _rotary
from regraft.tensors import Rows
from tests.matching.test_naming import Values, both_ways, check, planned, random

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def test_norms_that_stand_before_the_layers_of_their_numbers() -> None:
    """Only where sizes are equal could a norm follow the layer of its number."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate((6, 8, 10)):
        shapes |= {f"b.{i}.norm1.{s}": (width,) for s in STATISTICS}
        shapes[f"b.{i}.conv1.weight"] = (8, width, 1, 1)
        shapes |= {f"b.{i}.norm2.{s}": (8,) for s in STATISTICS}
        shapes[f"b.{i}.conv2.weight"] = (2, 8, 3, 3)
    target = random(shapes)
    words = {"norm1": "n_0", "conv1": "c_1", "norm2": "n_1", "conv2": "c_2"}
    source: Values = {}
    for name, array in target.items():
        block, layer, word = name[2:].split(".")
        source[f"blocks.{block}.{words[layer]}.{word}"] = array
    check(planned(dict(sorted(source.items())), target, "sorted"), source, target)


def test_a_scale_and_a_shift_that_broadcast_over_maps() -> None:
    target = random({f"s.{i}.grn.{n}": (7,) for i in range(2) for n in ("weight", "bias")})
    target |= random({f"s.{i}.fc.weight": (7, 5) for i in range(2)})
    source = {n: a.reshape(1, 1, 1, 7) if "grn" in n else a for n, a in target.items()}
    both_ways(source, target)


@pytest.mark.parametrize("word", ["layer_scale_{}", "gamma_{}", "lambda_{}"])
def test_scales_that_are_parameters_of_a_block(word: str) -> None:
    names = [f"b.{i}.layer_scale{k}.scale" for i in range(3) for k in (1, 2)]
    target = random(dict.fromkeys(names, (4,)) | {f"b.{i}.fc.weight": (4, 6) for i in range(3)})
    rules = {f"layer_scale{k}.scale": word.format(k) for k in (1, 2)}
    source: Values = {}
    for name, array in target.items():
        for old, new in rules.items():
            name = name.replace(old, new)
        source[name] = array
    both_ways(source, target)


def test_norms_before_and_after() -> None:
    shapes = {f"b.{i}.{n}.{w}": (4,) for i in range(2) for n in ("norm1", "norm2")
              for w in ("weight", "bias")}  # fmt: skip
    target = random(shapes | {f"b.{i}.fc.weight": (4, 6) for i in range(2)})
    words = {"norm1": "before_norm", "norm2": "after_norm"}
    source = {n.replace("norm1", words["norm1"]).replace("norm2", words["norm2"]): a
              for n, a in target.items()}  # fmt: skip
    check(planned(dict(sorted(source.items())), target, "sorted"), source, target)


def test_a_scale_alone_and_a_norm_of_one_size() -> None:
    target = random(
        {f"b.{i}.{n}": (4,) for i in range(2) for n in ("norm.weight", "norm.bias", "ls.gamma")}
        | {f"b.{i}.fc.weight": (4, 6) for i in range(2)}
    )
    words = {"norm.": "y.", "ls.gamma": "x.scale", "fc": "z"}
    source: Values = {}
    for name, array in target.items():
        for old, new in words.items():
            name = name.replace(old, new)
        source[name] = array
    check(planned(dict(sorted(source.items())), target, "sorted"), source, target)


def test_layers_behind_equal_names_are_told_by_their_shapes() -> None:
    """Nearly all names are equal; the others are a complete set of counterparts."""
    body = {f"features.{i}.weight": (4, 4, 3, 3) for i in range(20)}
    rest = {"classifier.0": (9, 4 * 4), "classifier.3": (6, 9)}
    source = random(body | {f"{n}.weight": s for n, s in rest.items()})
    target = {n.replace("classifier.0", "pre.a").replace("classifier.3", "pre.b"): a
              for n, a in source.items()}  # fmt: skip
    check(planned(source, target), source, target)


def test_one_layer_of_another_name_is_not_told_by_its_shape() -> None:
    body = {f"features.{i}.weight": (4, 4, 3, 3) for i in range(20)}
    source = random(body | {"projector.weight": (9, 4)})
    target = {n.replace("projector", "classifier"): a for n, a in source.items()}
    assert planned(source, target).grafts["classifier.weight"].kind == "fresh"


# An experiment with images


class Attention(nn.Module):
    """On the cells of a map, without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).mT
        q, k, v = (
            f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(1, 2).flatten(2).mean(1))


def test_a_model_of_images_is_asked_with_an_image() -> None:
    model = Attention().eval()
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = _rotary.rotary_of(model, [(Rows("query.weight"), Rows("key.weight"))])
    assert found is not None
    assert found.layout == "none"
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), held[name].numpy())


def test_a_table_that_has_a_number_for_a_name() -> None:
    """A store of Keras names a layer's own variables by numbers."""
    target = random(
        {"embeddings.cls_token": (1, 1, 4), "embeddings.position_embeddings": (1, 9, 4)}
    )
    source = dict(zip(("embeddings/0", "embeddings/1"), target.values(), strict=True))
    check(planned(source, target), source, target)


def test_the_shortcut_of_a_block_of_keras_has_the_number_0() -> None:
    shapes = {"conv1": (8, 8, 1, 1), "conv2": (8, 8, 3, 3), "conv3": (16, 8, 1, 1)}
    layers = {**shapes, "downsample.0": (16, 8, 1, 1)}
    target = random({f"layer1.0.{n}.weight": s for n, s in layers.items()})
    words = {"conv1": "1", "conv2": "2", "downsample.0": "0", "conv3": "3"}  # in Keras' order
    source = {
        f"stack0_block0_{number}_conv/kernel":
            target[f"layer1.0.{name}.weight"].transpose(2, 3, 1, 0)
        for name, number in words.items()
    }  # fmt: skip
    check(planned(source, target), source, target)
