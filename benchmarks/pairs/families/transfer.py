"""Models that were changed on purpose: what stays fresh, what is adapted, what is left unused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families.numbering import residual_stack, vectors
from benchmarks.pairs.randomness import images, random_torch, tokens
from benchmarks.pairs.truths import Renames, arrays_of, load_torch, renamed

Arrays = dict[str, Any]
Change = Callable[[Arrays], Arrays]
Saved = Callable[[Path, Any], Path]


def changed(
    folder: Path,
    source: Any,
    target: Any,
    inputs: Any,
    sets: Sets,
    *,
    change: Change = dict,
    stays: str = "",
    unused: str = "",
    saved: Saved = files.pth,
    **options: Any,
) -> Built:
    """A torch transfer. `change` makes the target's arrays of the source's; `stays` and `unused`
    are regular expressions of what the target keeps and of what is not used."""
    random_torch(source, 0)
    random_torch(target, 9)
    arrays = change({name: np.array(array) for name, array in arrays_of(source).items()})

    def truth(model: Any) -> Any:
        return load_torch(model, arrays, stays=stays, unused=unused)

    return Built(saved(folder, source), target, None, inputs, truth=truth, sets=sets, **options)


def _resnet(*arguments: Any, **options: Any) -> Any:
    from benchmarks.pairs.models.nets import SmallResNet

    return SmallResNet(*arguments, **options)


X = (2, 3, 16, 16)
HEAD = Sets(fresh=("fc.*",), unused=("fc.*",))


@pair("other number of classes", "transfer")
def _(folder: Path) -> Built:
    return changed(
        folder, _resnet(10), _resnet(7), images(*X), HEAD, stays=r"^fc\.", unused=r"^fc\."
    )  # fmt: skip


@pair("no head in the file", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(fresh=("fc.*",))
    return changed(folder, _resnet(0), _resnet(7), images(*X), sets, stays=r"^fc\.")


@pair("no head in the model", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(unused=("fc.*",))
    return changed(folder, _resnet(7), _resnet(0), images(*X), sets, unused=r"^fc\.")


@pair("other head of two layers, wrapped", "transfer")
def _(folder: Path) -> Built:
    from torch import nn

    target = _resnet(7)
    target.fc = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 7))

    def saved(folder: Path, model: Any) -> Path:
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        return files.pth(folder, {"state_dict": state})

    sets = Sets(fresh=("fc.*",), unused=("module.fc.*",))
    return changed(
        folder, _resnet(10), target, images(*X), sets, stays=r"^fc\.", unused=r"^fc\.", saved=saved
    )


@pair("a head of one shape by chance is no other head", "transfer")
def _(folder: Path) -> Built:
    """Both have ten classes and equal names: here everything is copied."""
    return changed(folder, _resnet(10), _resnet(10), images(*X), Sets())


def _gray(arrays: Arrays) -> Arrays:
    name = next(n for n, a in arrays.items() if a.ndim == 4)
    return arrays | {name: arrays[name].sum(1, keepdims=True)}


@pair("three input channels to one, and another head", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(fresh=("fc.*",), adapted=("conv1.weight",), unused=("fc.*",))
    return changed(
        folder, _resnet(10), _resnet(7, 1), images(2, 1, 16, 16), sets, change=_gray,
        stays=r"^fc\.", unused=r"^fc\.",
    )  # fmt: skip


@pair("three input channels to four", "transfer")
def _(folder: Path) -> Built:
    """Repeated, and scaled so that the sum over channels of equal values stays."""

    def more(arrays: Arrays) -> Arrays:
        kernel = arrays["conv1.weight"]
        return arrays | {"conv1.weight": np.tile(kernel, (1, 2, 1, 1))[:, :4] * (3 / 4)}

    sets = Sets(adapted=("conv1.weight",))
    return changed(folder, _resnet(10), _resnet(10, 4), images(2, 4, 16, 16), sets, change=more)


def _vit_timm(size: int, classes: int = 10, **options: Any) -> Any:
    from timm.models import VisionTransformer

    return VisionTransformer(
        size, 8, num_classes=classes, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, **options
    )


def _resized(name: str, old: int, new: int, prefix: int = 1) -> Change:
    """A position embedding as timm resizes it, without its first `prefix` tokens."""

    def change(arrays: Arrays) -> Arrays:
        import torch
        from timm.layers import resample_abs_pos_embed

        table = torch.from_numpy(arrays[name])
        made = resample_abs_pos_embed(
            table, [new // 8] * 2, [old // 8] * 2, num_prefix_tokens=prefix
        )
        return arrays | {name: made.numpy()}

    return change


@pair("position embeddings for larger images", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(adapted=("pos_embed",))
    return changed(
        folder, _vit_timm(32), _vit_timm(48), images(2, 3, 48, 48), sets,
        change=_resized("pos_embed", 32, 48), saved=files.safetensors,
    )  # fmt: skip


@pair("position embeddings for smaller images, and another head", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(fresh=("head.*",), adapted=("pos_embed",), unused=("head.*",))
    return changed(
        folder, _vit_timm(64), _vit_timm(32, 3), images(2, 3, 32, 32), sets,
        change=_resized("pos_embed", 64, 32), stays=r"^head\.", unused=r"^head\.",
        saved=files.safetensors,
    )  # fmt: skip


@pair("vit: transformers to timm with another head, split to fused", "transfer")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.families.vision_transformers import hf_to_timm

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=10, layer_norm_eps=1e-6,
    )  # fmt: skip
    source = transformers.ViTForImageClassification(config)
    sets = Sets(fresh=("head.*",), unused=("classifier.*",))

    def change(arrays: Arrays) -> Arrays:
        return {n: a for n, a in hf_to_timm(arrays).items() if not n.startswith("head.")}

    return changed(
        folder, source, _vit_timm(32, 3), images(2, 3, 32, 32), sets, change=change,
        stays=r"^head\.", saved=files.safetensors,
    )  # fmt: skip


@pair("relative position tables of larger windows", "transfer")
def _(folder: Path) -> Built:
    """Values are as timm resizes them."""
    from timm.layers import resize_rel_pos_bias_table
    from timm.models.swin_transformer import SwinTransformer

    def swin(size: int, window: int) -> Any:
        return SwinTransformer(
            size, 4, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
            window_size=window,
        )  # fmt: skip

    def change(arrays: Arrays) -> Arrays:
        import torch

        made: Arrays = {}
        for name, array in arrays.items():
            if "relative_position_bias_table" in name:
                shape = (15 * 15, array.shape[1])
                array = resize_rel_pos_bias_table(torch.from_numpy(array), (8, 8), shape).numpy()
            made[name] = array
        return made

    sets = Sets(adapted=("*.relative_position_bias_table",))
    return changed(
        folder, swin(32, 4), swin(64, 8), images(1, 3, 64, 64), sets, change=change,
        saved=files.safetensors,
    )  # fmt: skip


def _bert(vocabulary: int = 60, positions: int = 16, layers: int = 2, **options: Any) -> Any:
    import transformers

    kind = getattr(transformers, options.pop("kind", "BertModel"))
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64,
        vocab_size=vocabulary, max_position_embeddings=positions, **options,
    )  # fmt: skip
    return kind(config)


def _ids() -> dict[str, Any]:
    return {"input_ids": tokens(2, 9, vocabulary=50)}


TABLE = "embeddings.word_embeddings.weight"


@pair("vocabulary grown by ten", "transfer")
def _(folder: Path) -> Built:
    target = _bert(70)
    random_torch(target, 9)

    def change(arrays: Arrays) -> Arrays:
        rows = target.get_input_embeddings().weight.detach().numpy()
        return arrays | {TABLE: np.concatenate([arrays[TABLE], rows[60:]])}

    return changed(
        folder, _bert(60), target, _ids(), Sets(adapted=(TABLE,)), change=change,
        saved=files.safetensors,
    )  # fmt: skip


@pair("vocabulary cut to its first rows", "transfer")
def _(folder: Path) -> Built:
    def change(arrays: Arrays) -> Arrays:
        return arrays | {TABLE: arrays[TABLE][:50]}

    return changed(
        folder, _bert(60), _bert(50), _ids(), Sets(adapted=(TABLE,)), change=change,
        saved=files.safetensors,
    )  # fmt: skip


@pair("longer contexts: more rows of learned positions", "transfer")
def _(folder: Path) -> Built:
    name = "embeddings.position_embeddings.weight"
    target = _bert(60, 24)
    random_torch(target, 9)

    def change(arrays: Arrays) -> Arrays:
        rows = dict(target.named_parameters())[name].detach().numpy()
        return arrays | {name: np.concatenate([arrays[name], rows[16:]])}

    return changed(
        folder, _bert(60, 16), target, _ids(), Sets(adapted=(name,)), change=change,
        saved=files.safetensors,
    )  # fmt: skip


@pair("masked language model to sequence classifier", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(fresh=("classifier.*", "bert.pooler.*"), unused=("cls.*",))
    source = _bert(kind="BertForMaskedLM")
    target = _bert(kind="BertForSequenceClassification", num_labels=3)
    return changed(
        folder, source, target, _ids(), sets, stays=r"^(classifier|bert\.pooler)\.",
        unused=r"^cls\.", saved=files.safetensors,
    )  # fmt: skip


@pair("masked language model to its encoder, prefix gone", "transfer")
def _(folder: Path) -> Built:
    sets = Sets(fresh=("pooler.*",), unused=("cls.*",))

    def change(arrays: Arrays) -> Arrays:
        return renamed(arrays, ((r"^bert\.", ""),))

    return changed(
        folder, _bert(kind="BertForMaskedLM"), _bert(), _ids(), sets, change=change,
        stays=r"^pooler\.", unused=r"^cls\.", saved=files.safetensors,
    )  # fmt: skip


@pair("deeper: two more blocks than the file", "transfer")
def _(folder: Path) -> Built:
    stack = lambda n: residual_stack(n)(lambda i: f"blocks.{i}")  # noqa: E731
    sets = Sets(fresh=("blocks.4.*", "blocks.5.*"))
    return changed(folder, stack(4), stack(6), vectors(), sets, stays=r"^blocks\.[45]\.")


@pair("shallower: the first blocks of a deeper stack", "transfer")
def _(folder: Path) -> Built:
    stack = lambda n: residual_stack(n)(lambda i: f"blocks.{i}")  # noqa: E731
    sets = Sets(unused=("blocks.3.*", "blocks.4.*", "blocks.5.*"))
    return changed(folder, stack(6), stack(3), vectors(), sets, unused=r"^blocks\.[345]\.")


@pair("shallower under other names, counted from one", "transfer")
def _(folder: Path) -> Built:
    source = residual_stack(6)(lambda i: f"layers.{i + 1}")
    target = residual_stack(4)(lambda i: f"blocks.{i}")
    rules: Renames = ((r"^layers\.(\d)", lambda found: f"blocks.{int(found[1]) - 1}"),)
    sets = Sets(unused=("layers.5.*", "layers.6.*"))
    return changed(
        folder, source, target, vectors(), sets, change=lambda arrays: renamed(arrays, rules),
        unused=r"^blocks\.[45]\.",
    )  # fmt: skip


@pair("a classifier into the backbone of a segmentation model", "transfer")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import Segmentor

    rules: Renames = ((r"^(?!fc)", "backbone."),)
    sets = Sets(fresh=("neck.*", "decode_head.*", "auxiliary_head.*"), unused=("fc.*",))
    return changed(
        folder, _resnet(10), Segmentor(), images(*X), sets,
        change=lambda arrays: renamed(arrays, rules), stays=r"^(neck|decode_head|auxiliary_head)",
        unused=r"^fc\.",
    )  # fmt: skip


@pair("segmentation with another number of classes", "transfer")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import Segmentor

    heads = ("decode_head.*", "auxiliary_head.*")
    sets = Sets(fresh=heads, unused=heads)
    return changed(
        folder, Segmentor(4), Segmentor(6), images(*X), sets, stays=r"head\.", unused=r"head\.",
        saved=files.safetensors,
    )  # fmt: skip


@pair("torchvision classifier to timm, another head, one channel", "transfer")
def _(folder: Path) -> Built:
    import timm
    import torchvision

    source = torchvision.models.resnet18(num_classes=10)
    target = timm.create_model("resnet18", num_classes=4, in_chans=1)
    sets = Sets(fresh=("fc.*",), adapted=("conv1.weight",), unused=("fc.*",))
    return changed(
        folder, source, target, images(2, 1, 64, 64), sets, change=_gray, stays=r"^fc\.",
        unused=r"^fc\.",
    )  # fmt: skip


@pair("Keras classifier to PyTorch with another head", "transfer")
def _(folder: Path) -> Built:
    import keras
    from torch import nn

    from benchmarks.pairs.families.keras_layers import _flat_rows, _lenet
    from benchmarks.pairs.models.layers import Flattened
    from benchmarks.pairs.randomness import random_keras
    from benchmarks.pairs.truths import slots

    keras.utils.clear_session()
    source, target = random_keras(_lenet()), Flattened()
    target.fc3 = nn.Linear(24, 3)
    random_torch(target, 9)
    path = files.keras_model(folder, source)
    names = [n for n in arrays_of(target) if not n.startswith("fc3")]
    values = [_flat_rows(a, True) if a.shape == (40, 256) else a for _, a in slots(source)]
    given = dict(zip(names, values, strict=False))

    def truth(model: Any) -> Any:
        return load_torch(model, given, stays=r"^fc3\.")

    sets = Sets(fresh=("fc3.*",), unused=("*dense_2/*",))
    return Built(path, target, None, images(2, 1, 28, 28), truth=truth, sets=sets)


@pair("a recurrent classifier with another head", "transfer")
def _(folder: Path) -> Built:
    from torch import nn

    from benchmarks.pairs.families.keras_layers import _sequence
    from benchmarks.pairs.models.layers import Recurrent

    target = Recurrent("GRU", True)
    target.fc = nn.Linear(16, 3)
    return changed(
        folder, Recurrent("GRU", True), target, _sequence(2, 7, 6), HEAD, stays=r"^fc\.",
        unused=r"^fc\.",
    )  # fmt: skip
