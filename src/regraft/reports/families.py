"""Families of architectures by the names that their well-known implementations give to modules.

The table says what a family looks like, `regraft.reports.recognition` looks. In it `#` stands for a
number; modules are named without their tensors (`blocks.#.attn.qkv`, whose `weight` and `bias` say
nothing), so that the same entry serves frameworks that call them otherwise.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """What tells a family.

    - `name`: what to call it, and whose names these are.
    - `beside`: modules, or tensors, that must be there; all below one prefix.
    - `block`: the module that repeats, `""` where there is none. Numbers in it count blocks.
    - `inside`: modules that a block must have among all blocks; `maybe`: those that it may have.
      A block with any other module is of another family. `-` is the block itself, `*` allows all.
    - `sizes`: a word for a size, the tensor that has it, and the axis.
    - `shapes`: shapes that tensors must have, where names alone are too common.
    - `scattered`: the modules of `beside` are found anywhere, each below a prefix of its own.
    """

    name: str
    beside: str
    block: str = ""
    inside: str = ""
    maybe: str = ""
    sizes: tuple[tuple[str, str, int], ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    scattered: bool = False


def _width(tensor: str, axis: int = -1) -> tuple[tuple[str, str, int], ...]:
    return (("width", tensor, axis),)


_QKVO = "self_attn.q_proj self_attn.k_proj self_attn.v_proj "
_ENCODER_DECODER = (
    _QKVO + "self_attn.out_proj self_attn_layer_norm encoder_attn.q_proj encoder_attn.k_proj "
    "encoder_attn.v_proj encoder_attn.out_proj encoder_attn_layer_norm fc# final_layer_norm"
)
_BERT = "attention.output.dense intermediate.dense output.dense"
_CLIP = _QKVO + "self_attn.out_proj layer_norm# mlp.fc#"
_NEOX = "mlp.dense_h_to_#h mlp.dense_#h_to_h"
_OTHER_NORMS = (
    "pre_feedforward_layernorm post_feedforward_layernorm self_attn.q_norm self_attn.k_norm"
)

# Wholes come before the parts that they are made of.
FAMILIES: tuple[Family, ...] = (
    # Additions to a model, and what is no model
    Family("LoRA adapter (PEFT names)", "lora_A lora_B", scattered=True,
           sizes=(("rank", "lora_A.weight", 0),)),
    Family("LoRA adapter (kohya names)", "lora_down lora_up", scattered=True,
           sizes=(("rank", "lora_down.weight", 0),)),
    Family("Adam's state (PyTorch optimizer)", "state.#.exp_avg state.#.exp_avg_sq"),
    Family("SGD's momentum (PyTorch optimizer)", "state.#.momentum_buffer"),
    # Images and text together
    Family("CLIP (transformers names)",
           "text_model.encoder.layers.#.self_attn.q_proj vision_model.embeddings.patch_embedding "
           "text_projection visual_projection"),
    Family("SigLIP (transformers names)",
           "text_model.encoder.layers.#.self_attn.q_proj vision_model.embeddings.patch_embedding "
           "vision_model.head.attention"),
    Family("CLIP (OpenAI names)", "visual.conv# transformer.resblocks.#.attn token_embedding"),
    Family("CLIP text encoder (transformers names)",
           "embeddings.token_embedding embeddings.position_embedding", "encoder.layers.#", _CLIP,
           sizes=_width("final_layer_norm.weight")),
    # Diffusion
    Family("Stable Diffusion UNet (original names)",
           "time_embed.# middle_block.#.in_layers.# output_blocks.#.#.in_layers.# "
           "input_blocks.#.#.transformer_blocks.#.attn#.to_q"),
    Family("diffusion UNet (guided-diffusion names)",
           "time_embed.# input_blocks.#.#.in_layers.# middle_block.#.in_layers.# "
           "output_blocks.#.#.in_layers.#"),
    Family("Stable Diffusion UNet (diffusers names)",
           "time_embedding.linear_# down_blocks.#.attentions.#.transformer_blocks.#.attn#.to_q "
           "up_blocks.#.resnets.#.conv#"),
    Family("diffusion UNet (diffusers names)",
           "time_embedding.linear_# down_blocks.#.resnets.#.conv# up_blocks.#.resnets.#.conv#"),
    Family("autoencoder of Stable Diffusion (original names)",
           "encoder.down.#.block.#.conv# decoder.up.#.block.#.conv# quant_conv"),
    Family("autoencoder of Stable Diffusion (diffusers names)",
           "encoder.down_blocks.#.resnets.#.conv# decoder.up_blocks.#.resnets.#.conv# quant_conv"),
    Family("Flux (original names)", "double_blocks.#.img_attn.qkv img_in txt_in", "single_blocks.#",
           "linear#", "*"),
    # Text
    Family("BERT (transformers names, which RoBERTa and ELECTRA share)",
           "embeddings.word_embeddings embeddings.token_type_embeddings", "encoder.layer.#",
           f"attention.self.query attention.self.key attention.self.value {_BERT}",
           "attention.output.LayerNorm output.LayerNorm",
           sizes=_width("encoder.layer.#.output.dense.weight", 0)),
    Family("DeBERTa (transformers names)", "embeddings.word_embeddings", "encoder.layer.#",
           f"attention.self.query_proj attention.self.key_proj attention.self.value_proj {_BERT}",
           "*", sizes=_width("encoder.layer.#.output.dense.weight", 0)),
    Family("DistilBERT (transformers names)", "embeddings.word_embeddings", "transformer.layer.#",
           "attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm "
           "ffn.lin# output_layer_norm", sizes=_width("embeddings.word_embeddings.weight")),
    Family("ALBERT (transformers names)", "embeddings.word_embeddings",
           "encoder.albert_layer_groups.#.albert_layers.#", "attention.query ffn ffn_output", "*"),
    Family("T5 (transformers names)", "encoder.final_layer_norm", "encoder.block.#",
           "layer.#.SelfAttention.q layer.#.SelfAttention.o layer.#.layer_norm", "*",
           sizes=_width("encoder.final_layer_norm.weight")),
    Family("Whisper (transformers names)", "encoder.conv# encoder.embed_positions",
           "decoder.layers.#", _ENCODER_DECODER, sizes=_width("decoder.embed_tokens.weight")),
    Family("Whisper (OpenAI names)", "encoder.conv# encoder.blocks.#.attn.query",
           "decoder.blocks.#", "attn.query cross_attn.query mlp.#", "*",
           sizes=_width("decoder.token_embedding.weight")),
    Family("BART-like encoder and decoder (transformers names)",
           "encoder.layers.#.self_attn.q_proj", "decoder.layers.#", _ENCODER_DECODER),
    Family("wav2vec 2.0-like (transformers names)",
           "feature_extractor.conv_layers.#.conv feature_projection.projection",
           "encoder.layers.#",
           "attention.k_proj attention.v_proj attention.q_proj attention.out_proj layer_norm "
           "feed_forward.intermediate_dense feed_forward.output_dense final_layer_norm",
           sizes=_width("encoder.layer_norm.weight")),
    Family("GPT-2", "wte wpe", "h.#", "attn.c_attn attn.c_proj ln_# mlp.c_fc mlp.c_proj", "attn",
           sizes=_width("wte.weight")),
    Family("GPT-J (transformers names)", "wte", "h.#",
           "attn.q_proj attn.k_proj attn.v_proj attn.out_proj ln_# mlp.fc_in mlp.fc_out", "attn",
           sizes=_width("wte.weight")),
    Family("GPT-NeoX (transformers names)", "embed_in", "layers.#",
           "attention.query_key_value attention.dense input_layernorm post_attention_layernorm "
           + _NEOX, "attention attention.rotary_emb", sizes=_width("embed_in.weight")),
    Family("BLOOM (transformers names)", "word_embeddings word_embeddings_layernorm", "h.#",
           "self_attention.query_key_value self_attention.dense input_layernorm "
           "post_attention_layernorm " + _NEOX, sizes=_width("word_embeddings.weight")),
    Family("Falcon (transformers names)", "word_embeddings", "h.#",
           "self_attention.query_key_value self_attention.dense " + _NEOX,
           "input_layernorm post_attention_layernorm ln_attn ln_mlp",
           sizes=_width("word_embeddings.weight")),
    Family("OPT (transformers names)", "decoder.embed_tokens decoder.embed_positions",
           "decoder.layers.#",
           _QKVO + "self_attn.out_proj self_attn_layer_norm fc# final_layer_norm",
           sizes=_width("decoder.layers.#.self_attn.out_proj.weight", 0)),
    Family("mixture of experts, LLaMA-like (transformers names)", "embed_tokens", "layers.#",
           "self_attn.o_proj block_sparse_moe.gate block_sparse_moe.experts.#.w#", "*",
           sizes=_width("embed_tokens.weight")),
    Family("mixture of experts, LLaMA-like (transformers names)", "embed_tokens", "layers.#",
           "self_attn.o_proj mlp.gate mlp.experts.#.gate_proj", "*",
           sizes=_width("embed_tokens.weight")),
    Family("mixture of experts, LLaMA-like (transformers names)", "embed_tokens", "layers.#",
           "self_attn.o_proj mlp.gate mlp.experts", "*", sizes=_width("embed_tokens.weight")),
    Family("LLaMA-like (transformers names: Llama, Mistral, Qwen, Gemma and others)",
           "embed_tokens", "layers.#",
           _QKVO + "self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj input_layernorm "
           "post_attention_layernorm", _OTHER_NORMS + " self_attn.rotary_emb",
           sizes=_width("embed_tokens.weight")),
    Family("Phi-3-like (transformers names)", "embed_tokens", "layers.#",
           "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj input_layernorm "
           "post_attention_layernorm", _OTHER_NORMS, sizes=_width("embed_tokens.weight")),
    Family("Phi (transformers names)", "embed_tokens", "layers.#",
           _QKVO + "self_attn.dense mlp.fc# input_layernorm", sizes=_width("embed_tokens.weight")),
    Family("LLaMA (Meta's names)", "tok_embeddings", "layers.#",
           "attention.wq attention.wk attention.wv attention.wo feed_forward.w# attention_norm "
           "ffn_norm", sizes=_width("tok_embeddings.weight")),
    Family("Mamba (transformers names)", "embeddings", "layers.#",
           "mixer norm mixer.conv#d mixer.in_proj mixer.x_proj mixer.dt_proj mixer.out_proj",
           sizes=_width("embeddings.weight")),
    # Images: transformers
    Family("Segment Anything (original names)", "image_encoder.blocks.#.attn.qkv "
           "mask_decoder.iou_token prompt_encoder.point_embeddings.#"),
    Family("DETR (original names)",
           "query_embed class_embed transformer.decoder.layers.#.multihead_attn"),
    Family("ViT (timm names)", "patch_embed.proj", "blocks.#",
           "attn.qkv attn.proj norm# mlp.fc#", "- attn ls# attn.q_norm attn.k_norm",
           sizes=_width("patch_embed.proj.weight", 0)),
    Family("ViT (torchvision names)", "conv_proj", "encoder.layers.encoder_layer_#",
           "self_attention self_attention.out_proj ln_#", "mlp.# mlp.linear_#",
           sizes=_width("conv_proj.weight", 0)),
    Family("ViT (transformers names)", "embeddings.patch_embeddings.projection", "encoder.layer.#",
           f"attention.attention.query attention.attention.key attention.attention.value {_BERT} "
           "layernorm_before layernorm_after",
           sizes=_width("embeddings.patch_embeddings.projection.weight", 0)),
    Family("ViT (transformers names)", "embeddings.patch_embeddings.projection", "layers.#",
           "attention.q_proj attention.k_proj attention.v_proj attention.o_proj layernorm_before "
           "layernorm_after mlp.fc#",
           sizes=_width("embeddings.patch_embeddings.projection.weight", 0)),
    Family("DINOv2 (transformers names)", "embeddings.patch_embeddings.projection",
           "encoder.layer.#", "layer_scale# norm#", "*",
           sizes=_width("embeddings.patch_embeddings.projection.weight", 0)),
    Family("Swin Transformer (timm names)", "patch_embed.proj layers.#.downsample.reduction",
           "layers.#.blocks.#", "attn.qkv attn attn.proj norm# mlp.fc#", "attn.cpb_mlp.#"),
    Family("Swin Transformer (torchvision names)", "features.#.reduction", "features.#.#",
           "attn.qkv attn attn.proj norm# mlp.#", "attn.cpb_mlp.# -"),
    Family("MLP-Mixer (timm names)", "stem.proj", "blocks.#",
           "mlp_tokens.fc# mlp_channels.fc# norm#", sizes=_width("stem.proj.weight", 0)),
    # Images: convolutions
    Family("HRNet", "transition#.#.#.#", "stage#.#.branches.#.#", "conv# bn#", "downsample.#"),
    Family("ResNet (torchvision names)", "conv# bn#", "layer#.#",
           "conv# bn#", "downsample.# shortcut.#"),
    Family("SE-ResNet (timm names)", "conv# bn#", "layer#.#", "conv# bn# se.fc#", "downsample.#"),
    Family("ResNet (transformers names)", "embedder.convolution",
           "encoder.stages.#.layers.#", "layer.#.convolution layer.#.normalization",
           "shortcut.convolution shortcut.normalization"),
    Family("ConvNeXt (timm names)", "stem.#", "stages.#.blocks.#", "conv_dw norm mlp.fc#",
           "- mlp.grn"),
    Family("ConvNeXt (original names)", "downsample_layers.#.#", "stages.#.#",
           "dwconv norm pwconv#", "- grn"),
    Family("ConvNeXt (transformers names)", "embeddings.patch_embeddings",
           "encoder.stages.#.layers.#", "dwconv layernorm pwconv#", "- grn"),
    Family("ConvNeXt (torchvision names)", "features.#.# classifier.#", "features.#.#", "block.#",
           "-", shapes=(("features.0.0.weight", (0, 3, 4, 4)),)),
    Family("EfficientNet or MobileNet (timm names)", "conv_stem bn#", "blocks.#.#",
           "conv_dw bn# conv_pw", "conv_pwl conv conv_exp se.conv_reduce se.conv_expand"),
    Family("EfficientNet (lukemelas' names)", "_conv_stem _bn#", "_blocks.#",
           "_depthwise_conv _project_conv _bn#", "_expand_conv _se_reduce _se_expand"),
    Family("EfficientNet (torchvision names)", "features.#.# classifier.#", "features.#.#",
           "block.#.# block.#.fc#", "-"),
    Family("MobileNetV3 (torchvision names)", "features.#.# classifier.#", "features.#",
           "block.#.# block.#.fc#", "#"),
    Family("MobileNetV2 (torchvision names)", "features.#.# classifier.#", "features.#",
           "conv.#.# conv.#", "#"),
    Family("DenseNet (torchvision names)", "features.conv# features.norm#",
           "features.denseblock#.denselayer#", "", "norm# conv# norm.# conv.#"),
    Family("Inception v3 (torchvision names)", "Conv#d_#a_#x#.conv Mixed_#b.branch#x#.conv"),
    Family("GoogLeNet (torchvision names)", "conv#.conv inception#a.branch#.conv"),
    Family("ShuffleNet v2 (torchvision names)", "conv#.#", "stage#.#", "branch#.#"),
    Family("SqueezeNet (torchvision names)", "classifier.#", "features.#",
           "squeeze expand#x#", "-"),
    Family("VGG (torchvision names)", "features.# classifier.#",
           shapes=(("classifier.0.weight", (4096, 25088)),)),
    Family("AlexNet (torchvision names)", "features.# classifier.#",
           shapes=(("features.0.weight", (0, 3, 11, 11)),)),
    Family("U-Net (milesial's names)",
           "inc.double_conv.# down#.maxpool_conv.#.double_conv.# outc.conv"),
    Family("YOLOv8 or later (Ultralytics names)",
           "model.#.conv model.#.m.#.cv#.conv model.#.dfl.conv"),
    Family("YOLOv5 (Ultralytics names)", "model.#.conv model.#.m.#.cv#.conv model.#.m.#"),
    # Keras Applications
    Family("DenseNet (Keras names)", "conv#_block#_#_conv pool#_conv"),
    Family("ResNet V2 (Keras names)", "conv#_block#_#_conv conv#_block#_preact_bn"),
    Family("ResNet (Keras names)", "conv#_conv conv#_block#_#_conv conv#_block#_#_bn"),
    Family("MobileNetV2 (Keras names)", "block_#_expand block_#_depthwise block_#_project"),
    Family("MobileNet (Keras names)", "conv# conv_dw_# conv_pw_#"),
    Family("EfficientNet (Keras names)", "stem_conv block#a_expand_conv block#a_dwconv"),
    Family("Xception (Keras names)", "block#_conv# block#_sepconv#"),
    Family("VGG (Keras names)", "block#_conv#", shapes=(("block1_conv1.kernel", (3, 3, 3, 64)),)),
)  # fmt: skip
