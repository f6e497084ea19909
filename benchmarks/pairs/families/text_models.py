"""Encoders and encoder-decoders of transformers beside other people's spellings of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.randomness import generator, random_torch, tokens
from benchmarks.pairs.truths import arrays_of, by_names, load_torch, renamed

Arrays = dict[str, Any]
VOCABULARY, WIDTH, HEADS, HIDDEN, LAYERS = 60, 32, 4, 64, 2


def bert(kind: str = "BertModel", **options: Any) -> Any:
    import transformers

    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=16, **options,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def _ids() -> Arrays:
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    return {"input_ids": ids, "token_type_ids": (ids % 2).copy()}


def same_model(
    folder: Path, make: Callable[[], Any], saved: Callable[[Path, Any], Path], **options: Any
) -> Built:
    """A model of transformers, and a file that spells it in another way."""
    import torch

    source, target = random_torch(make()), random_torch(make(), 9)
    inputs = _ids()
    with torch.no_grad():
        answer = source(**{n: torch.from_numpy(a) for n, a in inputs.items()})
    outputs = {
        "last_hidden_state": answer[0].numpy(), "pooler_output": answer.pooler_output.numpy()
    }  # fmt: skip
    return Built(
        saved(folder, source), target, outputs, inputs, truth=by_names(source), **options
    )  # fmt: skip


# The names of the authors' TensorFlow checkpoint; matrices are transposed.
_TENSORFLOW = (
    (r"^embeddings\.(\w+_embeddings)\.weight$", r"bert/embeddings/\1"),
    (r"^embeddings\.LayerNorm\.", "bert/embeddings/LayerNorm/"),
    (r"^encoder\.layer\.(\d)\.", r"bert/encoder/layer_\1/"),
    (r"^pooler\.", "bert/pooler/"),
    (r"\.", "/"),
    (r"LayerNorm/weight", "LayerNorm/gamma"),
    (r"LayerNorm/bias", "LayerNorm/beta"),
    (r"weight$", "kernel"),
)


@pair("BERT: the authors' TensorFlow names to transformers", "layouts")
def _(folder: Path) -> Built:
    def saved(folder: Path, model: Any) -> Path:
        arrays = renamed(arrays_of(model), _TENSORFLOW)
        moved = {n: a.T if n.endswith("kernel") else a for n, a in arrays.items()}
        moved["global_step"] = np.asarray(1000000)
        np.savez(folder / "bert_model.npz", **dict(sorted(moved.items())))
        return folder / "bert_model.npz"

    return same_model(folder, bert, saved, sets=Sets(unused=("global_step",)))


@pair("BERT: gamma and beta, with heads beside, to transformers", "numbering")
def _(folder: Path) -> Built:
    """The oldest files on the hub: prefix, old words for norms, pre-training heads."""

    def saved(folder: Path, model: Any) -> Path:
        import torch

        state = renamed(
            model.state_dict(),
            (
                (r"^", "bert."),
                (r"LayerNorm\.weight", "LayerNorm.gamma"),
                (r"LayerNorm\.bias", "LayerNorm.beta"),
            ),
        )
        state["cls.predictions.bias"] = torch.rand(VOCABULARY)
        state["cls.predictions.transform.dense.weight"] = torch.rand(WIDTH, WIDTH)
        state["cls.predictions.transform.dense.bias"] = torch.rand(WIDTH)
        state["cls.predictions.transform.LayerNorm.gamma"] = torch.rand(WIDTH)
        state["cls.predictions.transform.LayerNorm.beta"] = torch.rand(WIDTH)
        state["cls.seq_relationship.weight"] = torch.rand(2, WIDTH)
        state["cls.seq_relationship.bias"] = torch.rand(2)
        return files.pth(folder, state, "pytorch_model.bin")

    return same_model(folder, bert, saved, sets=Sets(unused=("cls.*",)))


@pair("BERT: transformers to PyTorch's own encoder layers", "attention")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.encoders import TorchBert

    source, target = random_torch(bert(add_pooling_layer=None)), random_torch(TorchBert(), 9)
    inputs = _ids()
    with torch.no_grad():
        answer = source(**{n: torch.from_numpy(a) for n, a in inputs.items()})
    rules = (
        (r"^embeddings\.word_embeddings", "tok"),
        (r"^embeddings\.position_embeddings", "pos"),
        (r"^embeddings\.token_type_embeddings", "seg"),
        (r"^embeddings\.LayerNorm", "norm"),
        (r"^encoder\.layer\.", "encoder.layers."),
        (r"attention\.output\.dense", "self_attn.out_proj"),
        (r"attention\.output\.LayerNorm", "norm1"),
        (r"intermediate\.dense", "linear1"),
        (r"output\.dense", "linear2"),
        (r"output\.LayerNorm", "norm2"),
    )
    arrays = renamed(arrays_of(source), rules)
    made: Arrays = {}
    for name, array in arrays.items():
        if "attention.self.query" in name:
            parts = [arrays[name.replace("query", w)] for w in ("query", "key", "value")]
            short = name.replace("attention.self.query.", "self_attn.in_proj_")
            made[short] = np.concatenate(parts)
        elif "attention.self" not in name and not name.startswith("pooler"):
            made[name] = array
    return Built(
        files.safetensors(folder, source), target, answer[0].numpy(),
        (inputs["input_ids"], inputs["token_type_ids"]),
        truth=lambda model: load_torch(model, made), sets=Sets(unused=("pooler.*",)),
    )  # fmt: skip


def _whisper() -> Any:
    import transformers

    config = transformers.WhisperConfig(
        d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH,
        vocab_size=VOCABULARY, max_source_positions=8, max_target_positions=12, num_mel_bins=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


_WHISPER = (
    (r"^proj_out\.weight", "unused"),
    (r"^model\.encoder\.embed_positions\.weight", "encoder.positional_embedding"),
    (r"^model\.decoder\.embed_positions\.weight", "decoder.positional_embedding"),
    (r"^model\.decoder\.embed_tokens", "decoder.token_embedding"),
    (r"^model\.encoder\.layer_norm", "encoder.ln_post"),
    (r"^model\.decoder\.layer_norm", "decoder.ln"),
    (r"^model\.(\w+)\.layers\.", r"\1.blocks."),
    (r"^model\.", ""),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"final_layer_norm", "mlp_ln"),
    (r"self_attn\.", "attn."),
    (r"encoder_attn\.", "cross_attn."),
    (r"q_proj", "query"),
    (r"k_proj", "key"),
    (r"v_proj", "value"),
    (r"out_proj", "out"),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)


def _speech() -> Any:
    return generator(1, "mel").standard_normal((2, 8, 16)).astype(np.float32)


@pair("Whisper: transformers to the authors' names", "numbering")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.encoders import Whisper

    source, target = random_torch(_whisper()), random_torch(Whisper(), 9)
    mel, ids = _speech(), tokens(2, 6, vocabulary=VOCABULARY)
    with torch.no_grad():
        answer = source(torch.from_numpy(mel), decoder_input_ids=torch.from_numpy(ids))
    arrays = renamed(arrays_of(source), _WHISPER)
    sets = Sets(unused=("proj_out.weight",))
    return Built(
        files.safetensors(folder, source), target, answer.logits.numpy(), (mel, ids),
        truth=lambda model: load_torch(model, arrays, unused="^unused$"), sets=sets,
    )  # fmt: skip


@pair("Whisper: the authors' names, half precision, to transformers", "numbering")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.encoders import Whisper

    source, target = random_torch(Whisper()), random_torch(_whisper(), 9)
    source.load_state_dict({n: t.half().float() for n, t in source.state_dict().items()})
    mel, ids = _speech(), tokens(2, 6, vocabulary=VOCABULARY)
    with torch.no_grad():
        answer = source(torch.from_numpy(mel), torch.from_numpy(ids)).numpy()
    names = {new: old for old, new in _pairs_of_names(target)}
    arrays = {names[n]: np.array(a) for n, a in arrays_of(source).items()}
    tied = arrays["model.decoder.embed_tokens.weight"]
    half = {n: t.half() for n, t in source.state_dict().items()}
    content = {"dims": {"n_mels": 8, "n_audio_state": WIDTH}, "model_state_dict": half}
    return Built(
        files.pth(folder, content, "tiny.pt"), target, {"logits": answer},
        {"input_features": mel, "decoder_input_ids": ids},
        truth=lambda model: load_torch(model, arrays | {"proj_out.weight": tied}),
    )  # fmt: skip


def _pairs_of_names(model: Any) -> list[tuple[str, str]]:
    return [(n, next(iter(renamed({n: 0}, _WHISPER)))) for n in arrays_of(model)]


def _t5() -> Any:
    import transformers

    config = transformers.T5Config(
        d_model=WIDTH, d_kv=8, d_ff=HIDDEN, num_layers=2, num_heads=HEADS, vocab_size=VOCABULARY,
        relative_attention_num_buckets=8, dropout_rate=0.0, use_cache=False,
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


@pair("T5 encoder: transformers to an implementation by hand", "attention")
def _(folder: Path) -> Built:
    import torch

    from benchmarks.pairs.models.encoders import T5Encoder

    source, target = random_torch(_t5()), random_torch(T5Encoder(), 9)
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    with torch.no_grad():
        answer = source(input_ids=torch.from_numpy(ids)).last_hidden_state.numpy()
    rules = (
        (r"^shared\.", "token."),
        (r"^encoder\.final_layer_norm\.", "norm."),
        (r"^encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.", "distance."),
        (r"^encoder\.block\.(\d)\.", r"blocks.\1."),
        (r"layer\.0\.layer_norm", "pre_attention"),
        (r"layer\.1\.layer_norm", "pre_feed"),
        (r"layer\.0\.SelfAttention\.", "attention."),
        (r"layer\.1\.DenseReluDense\.", "feed."),
    )
    arrays = renamed(arrays_of(source), rules)
    sets = Sets(unused=("encoder.embed_tokens.weight",))
    return Built(
        files.safetensors(folder, source), target, answer, ids, sets=sets,
        truth=lambda model: load_torch(model, arrays, unused=r"^encoder\.embed_tokens"),
    )  # fmt: skip


@pair("Wav2Vec2: published names of weight norm to transformers 5", "reparametrised")
def _(folder: Path) -> Built:
    import torch
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, conv_dim=(16, 16), conv_stride=(4, 4), conv_kernel=(8, 4),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    source, target = (transformers.Wav2Vec2Model(config) for _ in range(2))
    random_torch(source)
    random_torch(target, 9)
    sound = generator(1, "sound").standard_normal((2, 400)).astype(np.float32)
    with torch.no_grad():
        outputs = source(torch.from_numpy(sound)).last_hidden_state.numpy()
    state = renamed(
        source.state_dict(),
        (
            (r"parametrizations\.weight\.original0", "weight_g"),
            (r"parametrizations\.weight\.original1", "weight_v"),
        ),
    )
    return Built(
        files.pth(folder, state, "pytorch_model.bin"), target, {"last_hidden_state": outputs},
        {"input_values": sound}, truth=by_names(source),
    )  # fmt: skip


@pair("a detector's backbone and segmentation heads left: torchvision to itself", "wrappers")
def _(folder: Path) -> Built:
    """LR-ASPP's backbone as torchvision's own classifier features."""
    import torch
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    source = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    random_torch(source)
    target = mobilenet_v3_large(num_classes=10, dilated=True).features
    random_torch(target, 9)
    x = generator(1, "images").standard_normal((1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        outputs = source.backbone(torch.from_numpy(x))["high"].numpy()
    arrays = {
        re.sub(r"^backbone\.", "", n): a
        for n, a in arrays_of(source).items()
        if n.startswith("backbone.")
    }
    return Built(
        files.pth(folder, source), target, outputs, x, sets=Sets(unused=("classifier.*",)),
        truth=lambda model: load_torch(model, arrays),
    )  # fmt: skip
