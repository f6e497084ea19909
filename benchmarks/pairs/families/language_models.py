"""Language models of transformers beside implementations written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import files
from benchmarks.pairs.collection import Built, Sets, pair
from benchmarks.pairs.randomness import random_torch, tokens
from benchmarks.pairs.truths import arrays_of, by_names, load_torch, renamed

WIDTH, HEADS, KV_HEADS, LAYERS, HIDDEN, VOCABULARY, POSITIONS = 32, 4, 2, 3, 64, 60, 16
HEAD = WIDTH // HEADS
Arrays = dict[str, Any]


def is_transformers(model: Any) -> bool:
    return type(model).__module__.startswith("transformers.")


def built(
    folder: Path,
    source: Any,
    target: Any,
    truth: Callable[[Any], Callable[[Any], Any]],
    *,
    saved: Callable[[Path, Any], Path] | None = None,
    output: str = "logits",
    **options: Any,
) -> Built:
    """Two models over token ids; those of transformers are called and saved in their own way."""
    import torch

    random_torch(source, 0)
    random_torch(target, 9)
    ids = tokens(2, 9, vocabulary=VOCABULARY)
    with torch.no_grad():
        answer = source(torch.from_numpy(ids))
    answer = getattr(answer, output, answer).numpy()
    default = files.safetensors if is_transformers(source) else files.pth
    path = (saved or default)(folder, source)
    loads = truth(source)
    if is_transformers(target):
        return Built(path, target, {output: answer}, {"input_ids": ids}, truth=loads, **options)
    return Built(path, target, answer, ids, truth=loads, **options)


def mapped(
    change: Callable[[Arrays], Arrays], *, stays: str = "", unused: str = ""
) -> Callable[[Any], Callable[[Any], Any]]:
    """A truth: `change` makes the target's arrays of the source's."""

    def truth(source: Any) -> Callable[[Any], Any]:
        arrays = {name: np.array(array) for name, array in arrays_of(source).items()}
        return lambda target: load_torch(target, change(arrays), stays=stays, unused=unused)

    return truth


def gpt2(**options: Any) -> Any:
    import transformers

    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, n_positions=POSITIONS,
        use_cache=False, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(name: str = "Llama", **options: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, intermediate_size=HIDDEN, vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS, rms_norm_eps=1e-6, use_cache=False,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config)


def _conv1d(arrays: Arrays) -> Arrays:
    """GPT-2's Conv1D weights are transposed Linear weights."""
    layers = r"\.(c_attn|c_proj|c_fc)\.weight$"
    return {n: a.T if re.search(layers, n) else a for n, a in arrays.items()}


@pair("GPT-2: transformers to nanoGPT", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import NanoGPT

    return built(folder, gpt2(), NanoGPT(), mapped(_conv1d))


@pair("GPT-2: nanoGPT, compiled, to transformers", "layouts")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import NanoGPT

    def saved(folder: Path, model: Any) -> Path:
        state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
        return files.pth(folder, {"model": state, "iter_num": 600, "config": {"n_layer": LAYERS}})

    return built(folder, NanoGPT(), gpt2(), mapped(_conv1d), saved=saved)


BOOK = (
    (r"^transformer\.wte\.", "tok_emb."),
    (r"^transformer\.wpe\.", "pos_emb."),
    (r"^transformer\.h\.(\d+)\.", r"trf_blocks.\1."),
    (r"ln_(\d)\.", r"norm\1."),
    (r"^transformer\.ln_f\.", "final_norm."),
    (r"attn\.c_proj\.", "att.out_proj."),
    (r"mlp\.c_fc\.", "ff.layers.0."),
    (r"mlp\.c_proj\.", "ff.layers.2."),
    (r"norm(\d?)\.weight", r"norm\1.scale"),
    (r"norm(\d?)\.bias", r"norm\1.shift"),
    (r"^lm_head\.", "out_head."),
)


def _to_book(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    for name, array in renamed(_conv1d(arrays), BOOK).items():
        found = re.match(r"(.*)attn\.c_attn\.(.*)", name)
        if not found:
            made[name] = array
            continue
        for part, which in zip(np.split(array, 3), ("query", "key", "value"), strict=True):
            made[f"{found[1]}att.W_{which}.{found[2]}"] = part
    return made


@pair("GPT-2: transformers to a textbook's, fused to split", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import BookGPT

    sets = Sets(fresh=("*.mask",))
    return built(folder, gpt2(), BookGPT(), mapped(_to_book, stays=r"\.mask$"), sets=sets)


@pair("GPT-2: a textbook's to transformers, split to fused", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import BookGPT

    source = BookGPT()
    source.out_head.weight = source.tok_emb.weight

    def back(arrays: Arrays) -> Arrays:
        rules = [
            (r"^tok_emb\.", "transformer.wte."),
            (r"^pos_emb\.", "transformer.wpe."),
            (r"^final_norm\.", "transformer.ln_f."),
            (r"^trf_blocks\.", "transformer.h."),
            (r"norm(\d)\.", r"ln_\1."),
            (r"scale$", "weight"),
            (r"shift$", "bias"),
            (r"att\.out_proj", "attn.c_proj"),
            (r"ff\.layers\.0", "mlp.c_fc"),
            (r"ff\.layers\.2", "mlp.c_proj"),
            (r"^out_head", "lm_head"),
        ]
        fused: Arrays = {}
        for name, array in renamed(arrays, rules).items():
            found = re.match(r"(.*)att\.W_(query|key|value)\.(.*)", name)
            if found is None:
                fused[name] = array
            elif found[2] == "query":
                parts = [arrays_[f"{found[1]}att.W_{w}.{found[3]}"] for w in _QKV]
                fused[f"{found[1]}attn.c_attn.{found[3]}"] = np.concatenate(parts)
        return _conv1d({n: a for n, a in fused.items() if not n.endswith("mask")})

    arrays_: Arrays = {}

    def truth(model: Any) -> Callable[[Any], Any]:
        given = {n: np.array(a) for n, a in arrays_of(model).items()}
        arrays_.update(renamed(given, [(r"^trf_blocks\.", "transformer.h.")]))
        return lambda target: load_torch(target, back(given))

    sets = Sets(unused=("*.mask",))
    return built(folder, source, gpt2(), truth, sets=sets)


_QKV = ("query", "key", "value")

TO_META = (
    (r"^model\.embed_tokens\.", "tok_embeddings."),
    (r"^model\.", ""),
    (r"self_attn\.(\w)_proj", r"attention.w\1"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"^lm_head\.", "output."),
)
FROM_META = (
    (r"^tok_embeddings\.", "model.embed_tokens."),
    (r"^(layers|norm)\.", r"model.\1."),
    (r"attention\.w(\w)", r"self_attn.\1_proj"),
    (r"feed_forward\.w1", "mlp.gate_proj"),
    (r"feed_forward\.w2", "mlp.down_proj"),
    (r"feed_forward\.w3", "mlp.up_proj"),
    (r"attention_norm", "input_layernorm"),
    (r"ffn_norm", "post_attention_layernorm"),
    (r"^output\.", "lm_head."),
)


def to_halves(array: Any) -> Any:
    """Rows of a query or key matrix from interleaved pairs to half-split ones, head by head."""
    rest = array.shape[1:]
    return array.reshape(-1, HEAD // 2, 2, *rest).swapaxes(1, 2).reshape(-1, *rest)


def to_interleaved(array: Any) -> Any:
    rest = array.shape[1:]
    return array.reshape(-1, 2, HEAD // 2, *rest).swapaxes(1, 2).reshape(-1, *rest)


def _roped(arrays: Arrays, change: Callable[[Any], Any]) -> Arrays:
    return {
        n: change(a) if re.search(r"\.(wq|wk|[qk]_proj)\.", n) else a for n, a in arrays.items()
    }


@pair("LLaMA: the authors' to transformers, rotary layout", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import MetaLlama

    truth = mapped(lambda arrays: _roped(renamed(arrays, FROM_META), to_halves))
    return built(folder, MetaLlama(), llama(), truth)


@pair("LLaMA: transformers to the authors', rotary layout", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import MetaLlama

    truth = mapped(lambda arrays: _roped(renamed(arrays, TO_META), to_interleaved))
    return built(folder, llama(), MetaLlama(), truth)


@pair("Mistral: transformers to wq, wk, wv with the same rotary layout", "numbering")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import MetaLlama

    source, target = llama("Mistral", sliding_window=None), MetaLlama(interleaved=False)
    return built(folder, source, target, lambda model: by_names(model, TO_META))


@pair("Qwen2: transformers to wq, wk, wv with biases", "numbering")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import MetaLlama

    target = MetaLlama(bias=True, interleaved=False)
    return built(folder, llama("Qwen2"), target, lambda model: by_names(model, TO_META))


def _lit(arrays: Arrays) -> Arrays:
    rules = (
        (r"^model\.embed_tokens\.", "transformer.wte."),
        (r"^model\.norm\.", "transformer.ln_f."),
        (r"^model\.layers\.", "transformer.h."),
        (r"self_attn\.o_proj", "attn.proj"),
        (r"mlp\.gate_proj", "mlp.fc_1"),
        (r"mlp\.up_proj", "mlp.fc_2"),
        (r"mlp\.down_proj", "mlp.proj"),
        (r"input_layernorm", "norm_1"),
        (r"post_attention_layernorm", "norm_2"),
    )
    made: Arrays = {}
    for name, array in renamed(arrays, rules).items():
        if name.endswith("q_proj.weight"):
            k, v = (arrays[_back(name).replace("q_proj", f"{w}_proj")] for w in "kv")
            groups = [a.reshape(KV_HEADS, -1, HEAD, WIDTH) for a in (array, k, v)]
            fused = np.concatenate(groups, 1).reshape(-1, WIDTH)
            made[name.replace("self_attn.q_proj", "attn.attn")] = fused
        elif not re.search(r"self_attn\.[kv]_proj", name):
            made[name] = array
    return made


def _back(name: str) -> str:
    return name.replace("transformer.h.", "model.layers.")


@pair("LLaMA: transformers to one matrix for grouped q, k, v", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import LitLlama

    return built(folder, llama(), LitLlama(), mapped(_lit))


def _split_phi(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    for name, array in arrays.items():
        if "qkv_proj" in name:
            sizes = [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD]
            for part, letter in zip(np.split(array, sizes), "qkv", strict=True):
                made[name.replace("qkv_proj", f"{letter}_proj")] = part
        elif "gate_up_proj" in name:
            for part, word in zip(np.split(array, 2), ("gate", "up"), strict=True):
                made[name.replace("gate_up_proj", f"{word}_proj")] = part
        else:
            made[name] = array
    return made


def _fuse_phi(arrays: Arrays) -> Arrays:
    made: Arrays = {}
    for name, array in arrays.items():
        if "q_proj" in name:
            parts = [arrays[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            made[name.replace("q_proj", "qkv_proj")] = np.concatenate(parts)
        elif "gate_proj" in name:
            up = arrays[name.replace("gate_proj", "up_proj")]
            made[name.replace("gate_proj", "gate_up_proj")] = np.concatenate([array, up])
        elif not re.search(r"\.(k|v|up)_proj\.", name):
            made[name] = array
    return made


@pair("Phi-3 to LLaMA, fused q, k, v and gate, up to split", "attention")
def _(folder: Path) -> Built:
    return built(folder, llama("Phi3"), llama(), mapped(_split_phi))


@pair("LLaMA to Phi-3, split to fused", "attention")
def _(folder: Path) -> Built:
    return built(folder, llama(), llama("Phi3"), mapped(_fuse_phi))


def per_head(array: Any) -> tuple[Any, Any, Any]:
    """q, k and v from rows that hold them head by head."""
    apart = array.reshape(HEADS, 3, HEAD, *array.shape[1:])
    q, k, v = (apart[:, i].reshape(-1, *array.shape[1:]) for i in range(3))
    return q, k, v


def _split_heads(arrays: Arrays, rules: Any, names: tuple[str, str, str]) -> Arrays:
    made: Arrays = {}
    for name, array in renamed(arrays, rules).items():
        if "query_key_value" in name:
            for part, word in zip(per_head(array), names, strict=True):
                made[name.replace("query_key_value", word)] = part
        else:
            made[name] = array
    return made


def _neox() -> Any:
    import transformers

    config = transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS,
        use_cache=False, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


_NEOX = (
    (r"^gpt_neox\.embed_in\.", "embed."),
    (r"^gpt_neox\.final_layer_norm\.", "ln_out."),
    (r"^gpt_neox\.layers\.", "blocks."),
    (r"input_layernorm", "ln1"),
    (r"post_attention_layernorm", "ln2"),
    (r"attention\.dense", "o"),
    (r"attention\.(query_key_value)", r"\1"),
    (r"mlp\.dense_h_to_4h", "up"),
    (r"mlp\.dense_4h_to_h", "down"),
    (r"^lm_head\.", "head."),
)


@pair("GPT-NeoX: transformers to split, interleaved per head", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import SplitNeoX

    truth = mapped(lambda arrays: _split_heads(arrays, _NEOX, ("q", "k", "v")))
    return built(folder, _neox(), SplitNeoX(), truth)


@pair("GPT-NeoX: split to transformers, interleaved per head", "attention")
def _(folder: Path) -> Built:
    from benchmarks.pairs.models.decoders import SplitNeoX

    rules = (
        (r"^embed\.", "gpt_neox.embed_in."),
        (r"^ln_out\.", "gpt_neox.final_layer_norm."),
        (r"^blocks\.", "gpt_neox.layers."),
        (r"\.ln1\.", ".input_layernorm."),
        (r"\.ln2\.", ".post_attention_layernorm."),
        (r"\.o\.", ".attention.dense."),
        (r"\.up\.", ".mlp.dense_h_to_4h."),
        (r"\.down\.", ".mlp.dense_4h_to_h."),
        (r"^head\.", "lm_head."),
    )

    def fuse(arrays: Arrays) -> Arrays:
        made: Arrays = {}
        new = renamed(arrays, rules)
        for name, array in new.items():
            if ".q." in name:
                parts = [new[name.replace(".q.", f".{w}.")] for w in "qkv"]
                apart = [p.reshape(HEADS, 1, HEAD, *array.shape[1:]) for p in parts]
                fused = np.concatenate(apart, 1).reshape(-1, *array.shape[1:])
                made[name.replace(".q.", ".attention.query_key_value.")] = fused
            elif not re.search(r"\.[kv]\.", name):
                made[name] = array
        return made

    return built(folder, SplitNeoX(), _neox(), mapped(fuse))


@pair("BLOOM: transformers to split, interleaved per head", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.decoders import SplitBloom

    config = transformers.BloomConfig(
        hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, use_cache=False
    )
    rules = (
        (r"^transformer\.word_embeddings\.", "tokens."),
        (r"^transformer\.word_embeddings_layernorm\.", "norm_in."),
        (r"^transformer\.ln_f\.", "norm_out."),
        (r"^transformer\.h\.", "blocks."),
        (r"input_layernorm", "norm_attention"),
        (r"post_attention_layernorm", "norm_mlp"),
        (r"self_attention\.dense", "project"),
        (r"self_attention\.(query_key_value)", r"\1"),
        (r"mlp\.dense_h_to_4h", "mlp.up"),
        (r"mlp\.dense_4h_to_h", "mlp.down"),
    )
    truth = mapped(lambda arrays: _split_heads(arrays, rules, _QKV), unused=r"^lm_head")
    source = transformers.BloomForCausalLM(config)
    return built(folder, source, SplitBloom(), truth, sets=Sets(unused=("lm_head.weight",)))


def mixtral() -> Any:
    return llama("Mixtral", num_local_experts=3, num_experts_per_tok=2, sliding_window=None)


@pair("Mixtral: experts one by one, as published, to merged", "attention")
def _(folder: Path) -> Built:
    """The published files have `block_sparse_moe.experts.{e}.w1`; transformers 5 merges them."""

    def saved(folder: Path, model: Any) -> Path:
        return files.safetensors(folder, _published_experts(model.state_dict()))

    return built(folder, mixtral(), mixtral(), mapped(lambda arrays: arrays), saved=saved)


def _published_experts(state: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, tensor in state.items():
        name = name.replace(".mlp.", ".block_sparse_moe.")
        if name.endswith("gate_up_proj"):
            for index, both in enumerate(tensor):
                stem = name.replace("gate_up_proj", str(index))
                made[f"{stem}.w1.weight"], made[f"{stem}.w3.weight"] = both.chunk(2)
        elif name.endswith("down_proj"):
            for index, one in enumerate(tensor):
                made[f"{name.replace('down_proj', str(index))}.w2.weight"] = one
        else:
            made[name] = tensor
    return made


@pair("GPT-BigCode: one key and value for all heads, to split", "attention")
def _(folder: Path) -> Built:
    import transformers

    from benchmarks.pairs.models.encoders import MultiQueryGPT

    config = transformers.GPTBigCodeConfig(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, n_positions=POSITIONS,
        use_cache=False, n_inner=HIDDEN,
    )  # fmt: skip

    def split(arrays: Arrays) -> Arrays:
        rules = (
            (r"^transformer\.h\.", "blocks."),
            (r"^transformer\.wte", "token"),
            (r"^transformer\.wpe", "position"),
            (r"^transformer\.ln_f", "norm"),
            (r"\.ln_1\.", ".norm1."),
            (r"\.ln_2\.", ".norm2."),
            (r"attn\.c_proj", "attention.out"),
            (r"mlp\.c_fc", "ff.0"),
            (r"mlp\.c_proj", "ff.2"),
            (r"^lm_head", "head"),
        )
        made: Arrays = {}
        for name, array in renamed(arrays, rules).items():
            if "c_attn" in name:
                q, k, v = np.split(array, [WIDTH, WIDTH + HEAD])
                for part, word in ((q, "q"), (k, "k"), (v, "v")):
                    made[name.replace("attn.c_attn", f"attention.{word}")] = part
            else:
                made[name] = array
        return made

    source = transformers.GPTBigCodeForCausalLM(config)
    return built(folder, source, MultiQueryGPT(), mapped(split))
