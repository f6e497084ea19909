"""KerasHub's backbones beside transformers' models, attention heads as axes of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.randomness import images, random_keras, random_torch, tokens
from benchmarks.pairs.truths import arrays_of, keras_weights, load_torch, renamed

Arrays = dict[str, Any]
VOCABULARY, WIDTH, HEADS, HIDDEN, LAYERS = 60, 32, 4, 64, 2


def hub(kind: str, **options: Any) -> Any:
    import keras_hub

    settings: dict[str, Any] = {"vocabulary_size": VOCABULARY, "num_layers": LAYERS}
    settings |= {"hidden_dim": WIDTH, "intermediate_dim": HIDDEN} | options
    return getattr(keras_hub.models, kind)(**settings)


def arrays_by_path(model: Any) -> Arrays:
    """Weights under their paths, matrices in PyTorch's layout, heads joined."""
    made: Arrays = {}
    for kind, name, _, array in keras_weights(model):
        leaf = name.rpartition("/")[2]
        if kind == "EinsumDense":
            array = _joined(name, array)
        elif kind == "Dense" and leaf == "kernel":
            array = array.T
        elif leaf == "kernel":
            array = array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
        made[name] = array
    return made


def _joined(name: str, array: Any) -> Any:
    if array.ndim == 3 and "output" in name:  # [heads, head, out]
        return array.reshape(-1, array.shape[-1]).T
    if array.ndim == 3:  # [in, heads, head]
        return array.reshape(array.shape[0], -1).T
    return array.reshape(-1) if name.endswith("bias") else array.T


def write(model: Any, arrays: Arrays) -> Any:
    """Sets a Keras model's weights from arrays as `arrays_by_path` gives them."""
    weights = keras_weights(model)
    if {name for _, name, *_ in weights} != set(arrays):
        raise ValueError(f"differ: {sorted({n for _, n, *_ in weights} ^ set(arrays))}")
    for _kind, name, variable, present in weights:
        array, leaf = arrays[name], name.rpartition("/")[2]
        if leaf == "kernel" and array.ndim == 2:
            array = array.T
        elif leaf == "kernel":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        variable.assign(np.ascontiguousarray(array.reshape(present.shape)))
    return model


# Paths of KerasHub's transformer layers in the words of each model of transformers.
_BERT = (
    (r"^token_embedding/embeddings", "embeddings.word_embeddings.weight"),
    (r"^position_embedding/embeddings", "embeddings.position_embeddings.weight"),
    (r"^segment_embedding/embeddings", "embeddings.token_type_embeddings.weight"),
    (r"^embeddings_layer_norm/", "embeddings.LayerNorm."),
    (r"^transformer_layer_(\d)/", r"encoder.layer.\1."),
    (r"self_attention_layer/(query|key|value)/", r"attention.self.\1."),
    (r"self_attention_layer/attention_output/", "attention.output.dense."),
    (r"self_attention_layer_norm/", "attention.output.LayerNorm."),
    (r"feedforward_layer_norm/", "output.LayerNorm."),
    (r"feedforward_intermediate_dense/", "intermediate.dense."),
    (r"feedforward_output_dense/", "output.dense."),
    (r"^pooled_dense/", "pooler.dense."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)
_GPT2 = (
    (r"^token_embedding/embeddings", "wte.weight"),
    (r"^position_embedding/embeddings", "wpe.weight"),
    (r"^layer_norm/", "ln_f."),
    (r"^transformer_layer_(\d)/", r"h.\1."),
    (r"self_attention/(query|key|value)/", r"attn.\1."),
    (r"self_attention/attention_output/", "attn.c_proj."),
    (r"self_attention_layer_norm/", "ln_1."),
    (r"feedforward_layer_norm/", "ln_2."),
    (r"feedforward_intermediate_dense/", "mlp.c_fc."),
    (r"feedforward_output_dense/", "mlp.c_proj."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)
_LLAMA = (
    (r"^token_embedding/embeddings", "embed_tokens.weight"),
    (r"^sequence_output_layernorm/", "norm."),
    (r"^transformer_layer_(\d)/", r"layers.\1."),
    (r"self_attention/query/", "self_attn.q_proj."),
    (r"self_attention/key/", "self_attn.k_proj."),
    (r"self_attention/value/", "self_attn.v_proj."),
    (r"self_attention/attention_output/", "self_attn.o_proj."),
    (r"self_attention_layernorm/", "input_layernorm."),
    (r"feedforward_layernorm/", "post_attention_layernorm."),
    (r"feedforward_intermediate_dense/", "mlp.up_proj."),
    (r"feedforward_gate_dense/", "mlp.gate_proj."),
    (r"feedforward_output_dense/", "mlp.down_proj."),
    (r"(kernel|scale)$", "weight"),
)
_DISTIL = (
    (r"^token_and_position_embedding/token_embedding/embeddings",
     "embeddings.word_embeddings.weight"),
    (r"^token_and_position_embedding/position_embedding/embeddings",
     "embeddings.position_embeddings.weight"),
    (r"^embeddings_layer_norm/", "embeddings.LayerNorm."),
    (r"^transformer_layer_(\d)/", r"transformer.layer.\1."),
    (r"self_attention_layer/query/", "attention.q_lin."),
    (r"self_attention_layer/key/", "attention.k_lin."),
    (r"self_attention_layer/value/", "attention.v_lin."),
    (r"self_attention_layer/attention_output/", "attention.out_lin."),
    (r"self_attention_layer_norm/", "sa_layer_norm."),
    (r"feedforward_layer_norm/", "output_layer_norm."),
    (r"feedforward_intermediate_dense/", "ffn.lin1."),
    (r"feedforward_output_dense/", "ffn.lin2."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)  # fmt: skip
_NEOX = (
    (r"^token_embedding/embeddings", "embed_in.weight"),
    (r"^layer_norm/", "final_layer_norm."),
    (r"^transformer_layer_(\d)/", r"layers.\1."),
    (r"self_attention/query_key_value/", "attention.query_key_value."),
    (r"self_attention/attention_output/", "attention.dense."),
    (r"self_attention_layer_norm/", "input_layernorm."),
    (r"feedforward_layer_norm/", "post_attention_layernorm."),
    (r"feedforward_intermediate_dense/", "mlp.dense_h_to_4h."),
    (r"feedforward_output_dense/", "mlp.dense_4h_to_h."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)


def _inputs(segments: bool = False, mask: bool = True) -> tuple[Arrays, Arrays]:
    """The same ids for KerasHub and for transformers."""
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    ours: Arrays = {"token_ids": ids}
    theirs: Arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if mask:
        ours["padding_mask"] = np.ones_like(ids)
    if segments:
        ours["segment_ids"] = np.concatenate([ids[:, :5] * 0, ids[:, 5:] * 0 + 1], 1)
        theirs["token_type_ids"] = ours["segment_ids"]
    return ours, theirs


def _sequence(answer: Any) -> Any:
    return _array(answer["sequence_output"] if isinstance(answer, dict) else answer)


def _array(tensor: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(tensor)


def to_transformers(
    folder: Path,
    source: Any,
    target: Any,
    rules: Any,
    *,
    change: Callable[[Arrays], Arrays] = dict,
    segments: bool = False,
    stays: str = "",
    ending: str = "keras",
    **options: Any,
) -> Built:
    """A KerasHub backbone saved, and the same model of transformers."""
    random_keras(source)
    random_torch(target, 9)
    ours, theirs = _inputs(segments)
    answer = source(ours, training=False)
    outputs = {"last_hidden_state": _sequence(answer)}
    if segments:
        outputs["pooler_output"] = _array(answer["pooled_output"])
    arrays = change(renamed(arrays_by_path(source), rules))
    path = files.keras_model(folder, source, ending)
    return Built(
        path, target, outputs, theirs,
        truth=lambda model: load_torch(model, arrays, stays=stays), **options,
    )  # fmt: skip


def to_hub(
    folder: Path,
    source: Any,
    target: Any,
    rules: Any,
    *,
    change: Callable[[Arrays], Arrays] = dict,
    segments: bool = False,
    **options: Any,
) -> Built:
    """The way back. `change` rearranges the source's arrays to those that `rules` gives."""
    import torch

    random_torch(source)
    random_keras(target, 9)
    ours, theirs = _inputs(segments)
    with torch.no_grad():
        answer = source(**{name: torch.from_numpy(array) for name, array in theirs.items()})
    given = change(arrays_of(source))
    names = {path: next(iter(renamed({path: 0}, rules))) for path in arrays_by_path(target)}
    arrays = {path: given[name] for path, name in names.items()}
    outputs: Any = answer.last_hidden_state.numpy()
    if isinstance(target.output, dict):
        outputs = {"sequence_output": outputs, "pooled_output": answer.pooler_output.numpy()}
    return Built(
        files.safetensors(folder, source), target,
        outputs, ours,
        truth=lambda model: write(model, arrays), **options,
    )  # fmt: skip


def _config(kind: str, config: str, **options: Any) -> Any:
    import transformers

    settings: dict[str, Any] = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN, "vocab_size": VOCABULARY, "max_position_embeddings": 16,
        "use_cache": False,
    }  # fmt: skip
    return getattr(transformers, kind)(getattr(transformers, config)(**settings | options))


def _bert() -> tuple[Any, Any]:
    # KerasHub computes GELU by tanh.
    theirs = _config("BertModel", "BertConfig", hidden_act="gelu_new")
    return hub("BertBackbone", num_heads=HEADS, max_sequence_length=16, dropout=0.0), theirs


@pair("BERT: KerasHub to transformers", "attention")
def _(folder: Path) -> Built:
    return to_transformers(folder, *_bert(), _BERT, segments=True)


@pair("BERT: transformers to KerasHub", "attention")
def _(folder: Path) -> Built:
    ours, theirs = _bert()
    return to_hub(folder, theirs, ours, _BERT, segments=True)


def _gpt2() -> tuple[Any, Any]:
    import transformers

    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, n_positions=16,
        n_inner=HIDDEN, use_cache=False,
    )  # fmt: skip
    ours = hub("GPT2Backbone", num_heads=HEADS, max_sequence_length=16, dropout=0.0)
    return ours, transformers.GPT2Model(config)


def _conv1d(arrays: Arrays) -> Arrays:
    return {
        n: a.T if re.search(r"(c_attn|c_proj|c_fc)\.weight", n) else a for n, a in arrays.items()
    }


@pair("GPT-2: KerasHub to transformers", "attention")
def _(folder: Path) -> Built:
    def change(arrays: Arrays) -> Arrays:
        made: Arrays = {}
        for name, array in arrays.items():
            if ".query." in name:
                parts = [arrays[name.replace("query", w)] for w in ("query", "key", "value")]
                made[name.replace("query", "c_attn")] = np.concatenate(parts)
            elif ".key." not in name and ".value." not in name:
                made[name] = array
        return _conv1d(made)

    return to_transformers(folder, *_gpt2(), _GPT2, change=change, ending="weights.h5")


@pair("GPT-2: transformers to KerasHub", "attention")
def _(folder: Path) -> Built:
    ours, theirs = _gpt2()

    def change(arrays: Arrays) -> Arrays:
        made: Arrays = {}
        for name, array in _conv1d(arrays).items():
            if "c_attn" in name:
                parts = np.split(array, 3)
                for word, part in zip(("query", "key", "value"), parts, strict=True):
                    made[name.replace("c_attn", word)] = part
            else:
                made[name] = array
        return made

    return to_hub(folder, theirs, ours, _GPT2, change=change)


def _llama() -> tuple[Any, Any]:
    ours = hub(
        "LlamaBackbone", num_query_heads=HEADS, num_key_value_heads=2, layer_norm_epsilon=1e-6,
        tie_word_embeddings=True,
    )  # fmt: skip
    theirs = _config(
        "LlamaModel", "LlamaConfig", num_key_value_heads=2, rms_norm_eps=1e-6,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ours, theirs


@pair("LLaMA: KerasHub to transformers", "attention")
def _(folder: Path) -> Built:
    return to_transformers(folder, *_llama(), _LLAMA)


@pair("LLaMA: transformers to KerasHub", "attention")
def _(folder: Path) -> Built:
    ours, theirs = _llama()
    return to_hub(folder, theirs, ours, _LLAMA)


@pair("DistilBERT: transformers to KerasHub", "attention")
def _(folder: Path) -> Built:
    import transformers

    config = transformers.DistilBertConfig(
        dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=16, activation="gelu",
    )  # fmt: skip
    ours = hub("DistilBertBackbone", num_heads=HEADS, max_sequence_length=16, dropout=0.0)
    return to_hub(folder, transformers.DistilBertModel(config), ours, _DISTIL)


@pair("GPT-NeoX: KerasHub to transformers, heads as an axis", "attention")
def _(folder: Path) -> Built:
    theirs = _config(
        "GPTNeoXModel", "GPTNeoXConfig", hidden_act="gelu_new", rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    ours = hub(
        "GPTNeoXBackbone", num_heads=HEADS, max_sequence_length=16, dropout=0.0,
        rotary_percentage=0.5,
    )  # fmt: skip
    return to_transformers(folder, ours, theirs, _NEOX)


_VIT = (
    (r"^\w+/class_token", "cls_token"),
    (r"^\w+/patch_embedding/", "patch_embed.proj."),
    (r"^\w+/position_embedding/embeddings", "pos_embed"),
    (
        r"^vit_encoder\w*/transformer_block_(\d)/",
        lambda found: f"blocks.{int(found[1]) - 1}.",
    ),
    (r"ln_(\d)/", r"norm\1."),
    (r"mha/(query|key|value)/", r"attn.\1."),
    (r"mha/attention_output/", "attn.proj."),
    (r"mlp/dense_1/", "mlp.fc1."),
    (r"mlp/dense_2/", "mlp.fc2."),
    (r"^vit_encoder\w*/ln/", "norm."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)


@pair("vit: KerasHub to timm, heads to fused", "attention")
def _(folder: Path) -> Built:
    import keras
    import keras_hub
    from timm.models import VisionTransformer

    keras.utils.clear_session()
    source = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=(8, 8), num_layers=2, num_heads=4, hidden_dim=32,
        mlp_dim=64, dropout_rate=0.0, attention_dropout=0.0, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    target = VisionTransformer(
        32, 8, num_classes=0, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, global_pool=""
    )
    random_keras(source)
    x = images(2, 32, 32, 3)
    outputs = keras.ops.convert_to_numpy(source(x, training=False))
    made: Arrays = {}
    arrays = renamed(arrays_by_path(source), _VIT)
    for name, array in arrays.items():
        if ".query." in name:
            parts = [arrays[name.replace("query", w)] for w in ("query", "key", "value")]
            made[name.replace("query", "qkv")] = np.concatenate(parts)
        elif ".key." not in name and ".value." not in name:
            made[name] = array[None] if name == "pos_embed" else array
    return Built(
        files.keras_model(folder, source, "keras"), random_torch(target, 9), outputs,
        x.transpose(0, 3, 1, 2).copy(), truth=lambda model: load_torch(model, made), sets=Sets(),
    )  # fmt: skip
