"""Trees of JAX as libraries publish them beside PyTorch: pairs that no rule was made for.

The tree is written from a torch model by hand, in the layout and words of the library; a tree as a
target is run by the way back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.families.flax_models import inverse
from benchmarks.pairs.randomness import generator, images, random_torch, tokens
from benchmarks.pairs.truths import arrays_of, by_names, load_torch, tree_with

Arrays = dict[str, Any]
Change = Callable[[Arrays], Arrays]
Rule = tuple[str, str]


def nested(arrays: Mapping[Any, Any]) -> dict[str, Any]:
    """Dicts in dicts of `a/b/c`, or of tuples where names hold slashes themselves."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, leaf = path if isinstance(path, tuple) else path.split("/")
        at = tree
        for part in parents:
            at = at.setdefault(part, {})
        at[leaf] = array
    return tree


def published(
    folder: Path, make: Callable[[], Any], change: Change, inputs: Any, *,
    saved: Callable[[Path, Any], Path] = files.npz_tree, **options: Any,
) -> Built:  # fmt: skip
    """A torch model's weights as a JAX library publishes them, and the torch model."""
    source = random_torch(make())
    path = saved(folder, nested(change(arrays_of(source))))
    return Built(
        path, random_torch(make(), 9), None, inputs, truth=by_names(source), **options
    )  # fmt: skip


def into_tree(
    folder: Path, make: Callable[[], Any], change: Change, run: Callable[[Any], Any],
    **options: Any,
) -> Built:  # fmt: skip
    """A torch file, and a tree in a JAX library's words, run as the torch model that it stands for;
    `run` gives a torch model's outputs as arrays."""
    import jax
    import torch

    source, other = random_torch(make()), random_torch(make(), 9)
    shapes = {n: np.zeros(a.shape, np.float32) for n, a in arrays_of(source).items()}
    tree = jax.tree.map(jax.numpy.asarray, nested(change(arrays_of(other))))
    wanted = {n: np.array(a) for n, a in change(arrays_of(source)).items()}
    flat: Callable[[Any], Arrays] = lambda t: _flat(t)  # noqa: E731

    def answer(values: Any) -> Any:
        given = inverse(shapes, change, flat(values))
        with torch.no_grad():
            return run(load_torch(other, given))

    with torch.no_grad():
        outputs = run(source)
    return Built(
        files.safetensors(folder, source), tree, outputs, run=answer,
        truth=lambda t: tree_with(t, wanted), **options,
    )  # fmt: skip


def _flat(tree: Any, path: str = "") -> Arrays:
    if not isinstance(tree, Mapping):
        return {path: np.asarray(tree)}
    parts = [_flat(v, f"{path}/{k}" if path else str(k)) for k, v in tree.items()]
    return {name: array for part in parts for name, array in part.items()}


def kernel(array: Any) -> Any:
    """[out, in, k…] to [k…, in, out]."""
    return array.transpose(*range(2, array.ndim), 1, 0)


def named(rules: list[Rule], arrays: Arrays) -> Arrays:
    """Names rewritten; a matrix or filter called `kernel` or `w` is turned."""
    made: Arrays = {}
    for name, array in arrays.items():
        for pattern, into in rules:
            name = re.sub(pattern, into, name)
        turned = re.search(r"(^|/)(kernel|w)$", name) and array.ndim > 1
        made[name] = kernel(array) if turned else array
    return made


def heads_of(arrays: Arrays, stem: str, weight: Any, bias: Any, heads: int, word: str) -> None:
    """One projection of attention as `[d, heads, head]`."""
    d = weight.shape[1]
    arrays[f"{stem}/{word}/kernel"] = weight.T.reshape(d, heads, -1)
    if bias is not None:
        arrays[f"{stem}/{word}/bias"] = bias.reshape(heads, -1)


def _vit(classes: int = 10, size: int = 32, **options: Any) -> Any:
    from timm.models import VisionTransformer

    return VisionTransformer(
        size, 8, num_classes=classes, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2, **options
    )


def _google_vit(arrays: Arrays, heads: int = 4) -> Arrays:
    """The names of the ViT of Google's JAX repository."""
    block = "Transformer/encoderblock_"
    rest: Arrays = {}
    made: Arrays = {}
    for name, array in arrays.items():
        found = re.match(r"blocks\.(\d+)\.attn\.(qkv|proj)\.weight", name)
        if found and found[2] == "qkv":
            stem = f"{block}{found[1]}/MultiHeadDotProductAttention_1"
            biases = np.split(arrays[name.replace("weight", "bias")], 3)
            words = ("query", "key", "value")
            for word, w, b in zip(words, np.split(array, 3), biases, strict=True):
                heads_of(made, stem, w, b, heads, word)
        elif found:
            stem = f"{block}{found[1]}/MultiHeadDotProductAttention_1/out"
            made[f"{stem}/kernel"] = array.T.reshape(heads, -1, array.shape[0])
            made[f"{stem}/bias"] = arrays[name.replace("weight", "bias")]
        elif ".attn." not in name:
            rest[name] = array
    return made | named([
        (r"^blocks\.(\d+)\.norm1\.", rf"{block}\1/LayerNorm_0/"),
        (r"^blocks\.(\d+)\.norm2\.", rf"{block}\1/LayerNorm_2/"),
        (r"^blocks\.(\d+)\.mlp\.fc1\.", rf"{block}\1/MlpBlock_3/Dense_0/"),
        (r"^blocks\.(\d+)\.mlp\.fc2\.", rf"{block}\1/MlpBlock_3/Dense_1/"),
        (r"^norm\.", "Transformer/encoder_norm/"),
        (r"^patch_embed\.proj\.", "embedding/"),
        (r"^pos_embed$", "Transformer/posembed_input/pos_embedding"),
        (r"^cls_token$", "cls"),
        (r"^head\.", "head/"),
        (r"((LayerNorm_\d|_norm)/)weight$", r"\1scale"),
        (r"weight$", "kernel"),
    ], rest)  # fmt: skip


@pair("ViT: npz of Google's JAX code to timm", "attention")
def _(folder: Path) -> Built:
    return published(folder, _vit, _google_vit, images(2, 3, 32, 32))


@pair("ViT: timm to a tree of Google's JAX code", "attention")
def _(folder: Path) -> Built:
    import torch

    x = torch.from_numpy(images(2, 3, 32, 32))
    return into_tree(folder, _vit, _google_vit, lambda m: m(x).numpy())


@pair("ViT: npz of Google's JAX code to timm, larger images, other head", "transfer")
def _(folder: Path) -> Built:
    import torch
    from timm.layers import resample_abs_pos_embed

    source = random_torch(_vit())
    given = arrays_of(source)
    path = files.npz_tree(folder, nested(_google_vit(given)))
    table = resample_abs_pos_embed(torch.from_numpy(given["pos_embed"]), [6, 6], [4, 4])
    wanted = {n: a for n, a in given.items() if not n.startswith("head.")}
    wanted["pos_embed"] = table.numpy()
    sets = Sets(fresh=("head.*",), adapted=("pos_embed",), unused=("head/*",))
    return Built(
        path, random_torch(_vit(5, 48), 9), None, images(2, 3, 48, 48), sets=sets,
        truth=lambda m: load_torch(m, wanted, stays=r"^head\."),
    )  # fmt: skip


def _siglip() -> Any:
    return _vit(class_token=False, global_pool="map")


def _big_vision(arrays: Arrays) -> Arrays:
    """Names of big_vision: attention pooling, blocks of a scan in one, `[L, …]`."""
    pool = {n: a for n, a in arrays.items() if n.startswith("attn_pool.")}
    body = _google_vit({n: a for n, a in arrays.items() if n not in pool})
    made: Arrays = {}
    stacked: dict[str, list[Any]] = {}
    for name, array in body.items():
        found = re.match(r"Transformer/encoderblock_(\d+)/(.+)", name)
        if found:
            rest = found[2].replace("Attention_1", "Attention_0").replace("Norm_2", "Norm_1")
            stacked.setdefault(rest.replace("MlpBlock_3", "MlpBlock_0"), []).append(array)
        else:
            name = name.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
            made[f"params/img/{name}"] = array
    made |= {f"params/img/Transformer/encoderblock/{n}": np.stack(p) for n, p in stacked.items()}
    head = "params/img/MAPHead_0"
    attention = f"{head}/MultiHeadDotProductAttention_0"
    made[f"{head}/probe"] = pool["attn_pool.latent"]
    heads_of(made, attention, pool["attn_pool.q.weight"], pool["attn_pool.q.bias"], 4, "query")
    weights, biases = (np.split(pool[f"attn_pool.kv.{leaf}"], 2) for leaf in ("weight", "bias"))
    for word, w, b in zip(("key", "value"), weights, biases, strict=True):
        heads_of(made, attention, w, b, 4, word)
    made[f"{attention}/out/kernel"] = pool["attn_pool.proj.weight"].T.reshape(4, 8, 32)
    made[f"{attention}/out/bias"] = pool["attn_pool.proj.bias"]
    for leaf, word in (("weight", "scale"), ("bias", "bias")):
        made[f"{head}/LayerNorm_0/{word}"] = pool[f"attn_pool.norm.{leaf}"]
    for i in (1, 2):
        made[f"{head}/MlpBlock_0/Dense_{i - 1}/kernel"] = pool[f"attn_pool.mlp.fc{i}.weight"].T
        made[f"{head}/MlpBlock_0/Dense_{i - 1}/bias"] = pool[f"attn_pool.mlp.fc{i}.bias"]
    return made


@pair("SigLIP vision: npz of big_vision, scanned, to timm", "attention")
def _(folder: Path) -> Built:
    return published(folder, _siglip, _big_vision, images(2, 3, 32, 32))


@pair("SigLIP vision: timm to a tree of big_vision, scanned", "attention")
def _(folder: Path) -> Built:
    import torch

    x = torch.from_numpy(images(2, 3, 32, 32))
    return into_tree(folder, _siglip, _big_vision, lambda m: m(x).numpy())


def _bit(classes: int = 10) -> Any:
    from functools import partial

    from timm.layers import GroupNormAct
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        [2, 3], (32, 64), num_classes=classes, stem_chs=16, stem_type="fixed",
        norm_layer=partial(GroupNormAct, num_groups=4),
    )  # fmt: skip


def _bit_names(arrays: Arrays) -> Arrays:
    def unit(found: re.Match[str]) -> str:
        return f"block{int(found[1]) + 1}/unit{int(found[2]) + 1:02d}/"

    made: Arrays = {}
    for name, array in arrays.items():
        name = re.sub(r"^stages\.(\d)\.blocks\.(\d)\.", unit, name)
        name = re.sub(r"downsample\.conv\.weight", "a/proj/standardized_conv2d/kernel", name)
        name = re.sub(r"/conv(\d)\.weight", _letter("{}/standardized_conv2d/kernel"), name)
        name = re.sub(r"/norm(\d)\.", _letter("{}/group_norm/"), name)
        name = re.sub(
            r"^stem\.conv\.weight", "root_block/conv_root/standardized_conv2d/kernel", name
        )
        name = re.sub(r"^norm\.", "group_norm/", name)
        name = re.sub(r"^head\.fc\.", "head/conv2d/", name)
        name = re.sub(r"group_norm/weight$", "group_norm/gamma", name)
        name = re.sub(r"group_norm/bias$", "group_norm/beta", name)
        name = re.sub(r"weight$", "kernel", name)
        made[f"resnet/{name}"] = kernel(array) if array.ndim > 1 else array
    return made


def _letter(form: str) -> Callable[[re.Match[str]], str]:
    return lambda found: "/" + form.format("abc"[int(found[1]) - 1])


@pair("BiT ResNet: npz of standardized convolutions to timm", "layouts")
def _(folder: Path) -> Built:
    return published(folder, _bit, _bit_names, images(2, 3, 32, 32))


@pair("BiT ResNet: timm to a tree of standardized convolutions", "layouts")
def _(folder: Path) -> Built:
    import torch

    x = torch.from_numpy(images(2, 3, 32, 32))
    return into_tree(folder, _bit, _bit_names, lambda m: m(x).numpy())


@pair("BiT ResNet: npz of standardized convolutions to timm, other head", "transfer")
def _(folder: Path) -> Built:
    source = random_torch(_bit())
    path = files.npz_tree(folder, nested(_bit_names(arrays_of(source))))
    sets = Sets(fresh=("head.fc.*",), unused=("resnet/head/*",))
    return Built(
        path, random_torch(_bit(6), 9), None, images(2, 3, 32, 32), sets=sets,
        truth=by_names(source, stays=r"^head\.", unused=r"^head\."),
    )  # fmt: skip


def _mixer() -> Any:
    from timm.models import MlpMixer

    return MlpMixer(10, 32, patch_size=8, num_blocks=3, embed_dim=32)


def _mixer_names(arrays: Arrays) -> Arrays:
    block = r"MixerBlock_\1"
    return named([
        (r"^blocks\.(\d)\.norm1\.", rf"{block}/LayerNorm_0/"),
        (r"^blocks\.(\d)\.norm2\.", rf"{block}/LayerNorm_1/"),
        (r"^blocks\.(\d)\.mlp_tokens\.fc1\.", rf"{block}/token_mixing/Dense_0/"),
        (r"^blocks\.(\d)\.mlp_tokens\.fc2\.", rf"{block}/token_mixing/Dense_1/"),
        (r"^blocks\.(\d)\.mlp_channels\.fc1\.", rf"{block}/channel_mixing/Dense_0/"),
        (r"^blocks\.(\d)\.mlp_channels\.fc2\.", rf"{block}/channel_mixing/Dense_1/"),
        (r"^stem\.proj\.", "stem/"), (r"^norm\.", "pre_head_layer_norm/"), (r"^head\.", "head/"),
        (r"(norm|LayerNorm_\d)/weight$", r"\1/scale"), (r"weight$", "kernel"),
    ], arrays)  # fmt: skip


@pair("MLP-Mixer: npz to timm", "layouts")
def _(folder: Path) -> Built:
    return published(folder, _mixer, _mixer_names, images(2, 3, 32, 32))


def _resnet() -> Any:
    from benchmarks.pairs.models.nets import SmallResNet

    return SmallResNet()


def _haiku(arrays: Arrays) -> Any:
    """Haiku's ResNet: two trees, names with slashes, statistics `[1, 1, 1, c]` with their hidden
    sums and counters beside."""
    made: dict[tuple[str, ...], Any] = {}
    leafs = {"weight": "scale", "bias": "offset"}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        where = "/~/".join(["res_net", *_haiku_path(path)])
        if path[-1].startswith("bn") or path[-2:] == ["downsample", "1"]:
            wide = array.reshape(1, 1, 1, -1)
            if leaf in leafs:
                made["params", where, leafs[leaf]] = wide
            else:
                ema = "mean_ema" if leaf == "running_mean" else "var_ema"
                made["state", f"{where}/~/{ema}", "average"] = wide
                made["state", f"{where}/~/{ema}", "counter"] = np.asarray(100)
                made["state", f"{where}/~/{ema}", "hidden"] = wide * np.float32(0.63)
        else:
            made["params", where, "w" if leaf == "weight" else "b"] = (
                kernel(array) if array.ndim > 1 else array
            )
    return made


def _haiku_path(path: list[str]) -> list[str]:
    if path == ["fc"]:
        return ["logits"]
    if len(path) == 1:
        return ["initial_conv" if path[0] == "conv1" else "initial_batchnorm"]
    group, block, *rest = path
    where = [f"block_group_{int(group[-1]) - 1}", f"block_{block}"]
    if rest[0] == "downsample":
        return [*where, "shortcut_conv" if rest[1] == "0" else "shortcut_batchnorm"]
    kind = "conv" if rest[0].startswith("conv") else "batchnorm"
    return [*where, f"{kind}_{int(rest[0][-1]) - 1}"]


@pair("ResNet: Haiku's params and state to PyTorch", "layouts")
def _(folder: Path) -> Built:
    return published(
        folder, _resnet, _haiku, images(2, 3, 16, 16), saved=files.pickled_tree,
        sets=Sets(unused=("*hidden", "*counter")),
    )  # fmt: skip


def _lenet() -> Any:
    from benchmarks.pairs.models.layers import Flattened

    return Flattened()


def _equinox(arrays: Arrays) -> Arrays:
    """Attribute paths; filters lie as in PyTorch, their biases are `[c, 1, 1]`."""
    places = {"conv1": 0, "conv2": 3, "fc1": 7, "fc2": 9, "fc3": 11}
    made: Arrays = {}
    for name, array in arrays.items():
        layer, leaf = name.split(".")
        conv = layer.startswith("conv") and leaf == "bias"
        made[f".layers[{places[layer]}].{leaf}"] = array.reshape(-1, 1, 1) if conv else array
    return made


@pair("LeNet: attribute paths of Equinox to PyTorch", "layouts")
def _(folder: Path) -> Built:
    return published(folder, _lenet, _equinox, images(2, 1, 28, 28))


def _llama() -> Any:
    from benchmarks.pairs.families.language_models import llama

    return llama()


def _maxtext(arrays: Arrays) -> Arrays:
    """Names of MaxText: the blocks of a scan lie in the second axis."""
    from benchmarks.pairs.families.language_models import HEADS, KV_HEADS, LAYERS

    heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    words = {"q": "query", "k": "key", "v": "value"}
    made = {
        "params/token_embedder/embedding": arrays["model.embed_tokens.weight"],
        "params/decoder/decoder_norm/scale": arrays["model.norm.weight"],
        "params/decoder/logits_dense/kernel": arrays["lm_head.weight"].T,
    }
    stem = "params/decoder/layers"
    each = [n for n in arrays if n.startswith("model.layers.0.")]
    for name in each:
        rest = name.removeprefix("model.layers.0.").removesuffix(".weight")
        parts = [arrays[name.replace("layers.0", f"layers.{i}")] for i in range(LAYERS)]
        last = rest.rpartition(".")[2]
        if last[:2] in ("q_", "k_", "v_"):
            parts = [p.T.reshape(p.shape[1], heads[last[0]], -1) for p in parts]
            where = f"self_attention/{words[last[0]]}/kernel"
        elif last == "o_proj":
            parts = [p.T.reshape(HEADS, -1, p.shape[0]) for p in parts]
            where = "self_attention/out/kernel"
        elif "norm" in last:
            before = last == "input_layernorm"
            where = f"{'pre' if before else 'post'}_self_attention_layer_norm/scale"
        else:
            parts = [p.T for p in parts]
            where = {"gate_proj": "mlp/wi_0", "up_proj": "mlp/wi_1", "down_proj": "mlp/wo"}[last]
            where += "/kernel"
        made[f"{stem}/{where}"] = np.stack(parts, 1)
    return made


def _ids(vocabulary: int = 60) -> Any:
    return tokens(2, 9, vocabulary=vocabulary)


@pair("LLaMA: a tree of MaxText, blocks in the second axis, to transformers", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.families.language_models import VOCABULARY

    inputs = {"input_ids": _ids(VOCABULARY)}
    return published(folder, _llama, _maxtext, inputs, saved=files.pickled_tree)


@pair("LLaMA: transformers to a tree of MaxText", "attention")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.families.language_models import VOCABULARY

    ids = torch.from_numpy(_ids(VOCABULARY))
    return into_tree(folder, _llama, _maxtext, lambda m: m(ids).logits.numpy())


def _t5() -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2,
        num_heads=4, feed_forward_proj="gated-gelu", relative_attention_num_buckets=8,
        tie_word_embeddings=False, decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _t5x(arrays: Arrays) -> Arrays:
    arrays = {n: a for n, a in arrays.items() if "embed_tokens" not in n}
    words = {"q": "query", "k": "key", "v": "value", "o": "out"}
    made = named([
        (r"^shared\.weight", "token_embedder/embedding"),
        (r"^lm_head\.weight", "decoder/logits_dense/kernel"),
        (r"^(encoder|decoder)\.final_layer_norm\.weight", r"\1/\1_norm/scale"),
        (r"^(encoder|decoder)\.block\.\d\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
         r"\1/relpos_bias/rel_embedding"),
        (r"^(encoder|decoder)\.block\.(\d)\.layer\.(\d)\.", r"\1/layers_\2/\3/"),
        (r"^encoder(/.*)/0/SelfAttention\.", r"encoder\1/attention/"),
        (r"^decoder(/.*)/0/SelfAttention\.", r"decoder\1/self_attention/"),
        (r"/1/EncDecAttention\.", "/encoder_decoder_attention/"),
        (r"^encoder(/.*)/0/layer_norm\.weight", r"encoder\1/pre_attention_layer_norm/scale"),
        (r"^decoder(/.*)/0/layer_norm\.weight", r"decoder\1/pre_self_attention_layer_norm/scale"),
        (r"^decoder(/.*)/1/layer_norm\.weight", r"decoder\1/pre_cross_attention_layer_norm/scale"),
        (r"/\d/layer_norm\.weight", "/pre_mlp_layer_norm/scale"),
        (r"/\d/DenseReluDense\.(\w+)\.weight", r"/mlp/\1/kernel"),
        (r"/([qkvo])\.weight$", lambda found: f"/{words[found[1]]}/kernel"),
    ], arrays)  # type: ignore[list-item]  # fmt: skip
    return {f"target/{n}": a.T if n.endswith("rel_embedding") else a for n, a in made.items()}


@pair("T5: a tree of T5X to transformers", "attention")
def _(folder: Path) -> Built:
    inputs = {"input_ids": _ids(), "decoder_input_ids": _ids()[:, :5]}
    return published(folder, _t5, _t5x, inputs, saved=files.pickled_tree)


def _gpt2() -> Any:
    import transformers

    config = transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=60, n_positions=16, use_cache=False
    )
    return transformers.GPT2Model(config)


def _scanned_gpt(arrays: Arrays) -> Arrays:
    """Blocks in one, and queries, keys and values as an axis of three."""
    made = {
        "wte/embedding": arrays["wte.weight"],
        "wpe/embedding": arrays["wpe.weight"],
        "ln_f/scale": arrays["ln_f.weight"],
        "ln_f/bias": arrays["ln_f.bias"],
    }
    for name in [n for n in arrays if n.startswith("h.0.")]:
        parts = [arrays[name.replace("h.0.", f"h.{i}.")] for i in range(3)]
        where = name.removeprefix("h.0.").replace(".", "/")
        if "c_attn" in name:
            parts = [p.reshape(*p.shape[:-1], 3, 4, 8) for p in parts]
        where = re.sub(r"(ln_\d)/weight", r"\1/scale", where)
        where = where.replace("weight", "kernel").replace("c_attn", "qkv")
        made[f"blocks/{where}"] = np.stack(parts)
    return made


@pair("GPT-2: scanned blocks with an axis of three to transformers", "attention")
def _(folder: Path) -> Built:
    return published(
        folder, _gpt2, _scanned_gpt, {"input_ids": _ids()}, saved=files.pickled_tree
    )  # fmt: skip


@pair("GPT-2: transformers to scanned blocks with an axis of three", "attention")
def _(folder: Path) -> Built:
    import torch

    ids = torch.from_numpy(_ids())
    return into_tree(folder, _gpt2, _scanned_gpt, lambda m: m(ids).last_hidden_state.numpy())


def _flax_gpt2(arrays: Arrays) -> Arrays:
    """Kernels of transformers' Flax GPT-2 lie as `[out, in]`, against their name."""
    made: Arrays = {}
    for name, array in arrays.items():
        name = name.replace(".", "/")
        name = re.sub(r"(wte|wpe)/weight", r"\1/embedding", name)
        name = re.sub(r"(ln_\w)/weight", r"\1/scale", name).replace("weight", "kernel")
        made[name] = array.T if name.endswith("kernel") else array
    return made


@pair("kernels of Flax GPT-2 lie turned against their name", "traps", reveals="probe")
def _(folder: Path) -> Built:
    return published(folder, _gpt2, _flax_gpt2, {"input_ids": _ids()}, saved=files.pickled_tree)


class _Decoders:
    """PyTorch's own encoder and decoder, one after another."""

    @staticmethod
    def make() -> Any:
        import torch
        from torch import nn

        class EncoderDecoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.core = nn.Transformer(16, 4, 2, 2, 32, 0.0, batch_first=True)
                self.head = nn.Linear(16, 5)

            def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return self.head(self.core(x, y))

        return EncoderDecoder()


def _linen_seq2seq(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    rest: Arrays = {}
    for name, array in arrays.items():
        found = re.match(
            r"core\.(en|de)coder\.layers\.(\d)\.(self_attn|multihead_attn)\.(.+)", name
        )
        if not found:
            rest[name] = array
            continue
        place = int(found[3] != "self_attn")
        side = "Encoder" if found[1] == "en" else "Decoder"
        stem = f"params/{side}Block_{found[2]}/MultiHeadDotProductAttention_{place}"
        if found[4] == "in_proj_weight":
            biases = np.split(arrays[name.replace("weight", "bias")], 3)
            words = ("query", "key", "value")
            for word, w, b in zip(words, np.split(array, 3), biases, strict=True):
                heads_of(made, stem, w, b, 4, word)
        elif found[4] == "out_proj.weight":
            made[f"{stem}/out/kernel"] = array.T.reshape(4, 4, 16)
            made[f"{stem}/out/bias"] = arrays[name.replace("weight", "bias")]
    rules: list[Rule] = [
        (r"^core\.encoder\.layers\.(\d)\.", r"params/EncoderBlock_\1/"),
        (r"^core\.decoder\.layers\.(\d)\.", r"params/DecoderBlock_\1/"),
        (r"^core\.(en|de)coder\.norm\.", r"params/\1coder_norm/"),
        (r"norm1\.", "LayerNorm_0/"), (r"norm2\.", "LayerNorm_1/"), (r"norm3\.", "LayerNorm_2/"),
        (r"linear1\.", "Dense_0/"), (r"linear2\.", "Dense_1/"), (r"^head\.", "params/Dense_0/"),
        (r"(LayerNorm_\d|coder_norm)/weight", r"\1/scale"), (r"weight$", "kernel"),
    ]  # fmt: skip
    return made | named(rules, rest)


def _vectors(*shape: int) -> Any:
    return generator(2, str(shape)).standard_normal(shape).astype(np.float32)


@pair("encoder and decoder: linen's names to PyTorch's Transformer", "attention")
def _(folder: Path) -> Built:
    inputs = {"x": _vectors(2, 7, 16), "y": _vectors(2, 5, 16)}
    return published(
        folder, _Decoders.make, _linen_seq2seq, inputs, saved=files.pickled_tree
    )  # fmt: skip


@pair("encoder and decoder: PyTorch's Transformer to linen's names", "attention")
def _(folder: Path) -> Built:
    import torch

    x, y = (torch.from_numpy(_vectors(2, n, 16)) for n in (7, 5))
    return into_tree(folder, _Decoders.make, _linen_seq2seq, lambda m: m(x, y).numpy())


@pair("a tree's square matrices turned against their name", "traps", reveals="probe")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.nets import Perceptron

    def change(arrays: Arrays) -> Arrays:
        found = {n: re.match(r"layers\.(\d)\.(\w+)", n) for n in arrays}
        return {
            f"mlp/~/linear_{m[1]}/{'w' if m[2] == 'weight' else 'b'}": arrays[n]
            for n, m in found.items() if m is not None
        }  # fmt: skip

    return published(
        folder, lambda: Perceptron(16, 16, 16, 16), change, _vectors(3, 16),
        saved=files.pickled_tree,
    )  # fmt: skip


@pair("a tree without a graph flattened channels first", "traps", reveals="probe")
def _(folder: Path) -> Built:
    """Its filters lie channels last; nothing tells that the map was turned before."""

    def change(arrays: Arrays) -> Arrays:
        rules = [(r"^(\w+)\.", r"\1/"), (r"weight$", "kernel")]
        return named(rules, arrays)

    return published(folder, _lenet, change, images(2, 1, 28, 28), saved=files.pickled_tree)


@pair("NaN in a tree's statistics", "traps")
def _(folder: Path) -> Built:
    def change(arrays: Arrays) -> Any:
        made = _haiku(arrays)
        name = next(n for n in made if n[-1] == "average")
        made[name] = made[name].copy()
        made[name].reshape(-1)[3] = np.nan
        return made

    return published(folder, _resnet, change, images(2, 3, 16, 16), saved=files.pickled_tree)
