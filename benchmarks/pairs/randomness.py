"""Random values as training leaves them, distinct everywhere, so that any swap shows."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Array = Any
# Words in the names of tensors that scale, so that they lie near 1; variances lie above 0.
_SCALES = ("gamma", "scale", "lambda", "weight_g", "original0", "layer_scale")
_VARIANCES = ("running_var", "moving_variance", "var")
_MEANS = ("running_mean", "moving_mean", "mean")


def generator(seed: int, name: str = "") -> np.random.Generator:
    """A generator of its own for each name, so that values do not depend on the order of names."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def value(
    name: str, shape: tuple[int, ...], *, seed: int, scale: bool, fan_in: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A float32 array: a variance, a mean, a scale near 1, a shift near 0, or a kernel."""
    random = generator(seed, name)
    leaf = name.replace("/", ".").rpartition(".")[2]
    noise = random.standard_normal(shape)
    if leaf in _VARIANCES:
        made = random.uniform(0.5, 1.5, shape)
    elif leaf in _MEANS:
        made = 0.2 * noise
    elif scale or (len(shape) <= 1 and any(word in leaf for word in _SCALES)):
        made = 1 + 0.2 * noise
    elif len(shape) <= 1:
        made = 0.2 * noise
    else:
        made = noise * (1.5 / max(1, fan_in)) ** 0.5
    return np.asarray(made, np.float32)


def random_torch(model: Any, seed: int = 0) -> Any:
    """Random values in a torch module, in evaluation mode. Ties stay ties."""
    import torch

    model = model.eval()
    done: set[int] = set()
    with torch.no_grad():
        for path, module in model.named_modules():
            held = list(module.named_parameters(recurse=False))
            # Other buffers are constants: masks, frequencies, indices.
            statistics = (*_VARIANCES, *_MEANS)
            held += [b for b in module.named_buffers(recurse=False) if b[0] in statistics]
            kept = module.state_dict(keep_vars=True)
            for leaf, tensor in held:
                if id(tensor) in done or leaf not in kept or not tensor.dtype.is_floating_point:
                    continue
                done.add(id(tensor))
                name = f"{path}.{leaf}" if path else leaf
                shape = tuple(tensor.shape)
                kind = type(module).__name__
                scale = leaf == "weight" and "norm" in kind.lower() and len(shape) == 1
                fan_in = 4 if kind == "Embedding" else int(np.prod(shape[1:]))
                made = value(name, shape, seed=seed, scale=scale, fan_in=fan_in)
                if kind == "PReLU":
                    made = np.float32(0.25) + 0.1 * (made if len(shape) else made - 1)
                tensor.copy_(torch.from_numpy(np.array(made)).to(tensor.dtype))
    return model


def random_keras(model: Any, seed: int = 0) -> Any:
    """Random values in a built Keras model."""
    for index, variable in enumerate(model.weights):
        if not str(variable.dtype).startswith("float"):
            continue
        shape, path = tuple(variable.shape), variable.path
        leaf = path.rpartition("/")[2]
        fan_in = 4 if "embedding" in leaf else int(np.prod(shape[:-1]))
        if leaf == "depthwise_kernel":
            fan_in = int(np.prod(shape[:-2]))
        name = f"{index}.{leaf}"
        made = value(
            name, shape, seed=seed, scale=leaf == "gamma" or "layer_scale" in path, fan_in=fan_in
        )
        if leaf == "alpha":  # PReLU
            made = np.float32(0.25) + 0.1 * generator(seed, name).standard_normal(shape)
        variable.assign(made.astype(np.float32))
    return model


def random_tree(tree: Any, seed: int = 0) -> Any:
    """A JAX tree of the same structure with random values."""
    import jax

    def fill(path: Any, leaf: Any) -> Any:
        name = ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
        shape = tuple(leaf.shape)
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            return leaf
        fan_in = 4 if "embed" in name.lower() else int(np.prod(shape[:-1]))
        scale = name.endswith(("scale", "gamma"))
        made = value(name, shape, seed=seed, scale=scale, fan_in=fan_in)
        return jax.numpy.asarray(made.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(fill, tree)


def images(*shape: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random inputs of a shape such as (2, 3, 32, 32)."""
    return generator(seed, "images").standard_normal(shape).astype(np.float32)


def tokens(*shape: int, vocabulary: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Random token ids from 3 on, so that none is a padding id."""
    return generator(seed, "tokens").integers(3, vocabulary, shape)
