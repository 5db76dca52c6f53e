"""DETR under its authors' names, from a network of transformers'."""

import torch
from torch import Tensor

# From transformers' names in memory to those of the authors' files, each piece of a name by itself.
PIECES = {
    "model.backbone.model.": "backbone.0.body.",
    "model.encoder.": "transformer.encoder.",
    "model.decoder.layernorm.": "transformer.decoder.norm.",
    "model.decoder.": "transformer.decoder.",
    "model.query_position_embeddings.": "query_embed.",
    "model.input_projection.": "input_proj.",
    "class_labels_classifier.": "class_embed.",
    "bbox_predictor.": "bbox_embed.",
    "encoder_attn_layer_norm.": "norm2.",
    "encoder_attn.": "multihead_attn.",
    "self_attn_layer_norm.": "norm1.",
    "mlp.fc": "linear",
    "_attn.o_proj.": "_attn.out_proj.",
    "mask_head.conv1.conv.": "mask_head.lay1.",
    "mask_head.conv1.norm.": "mask_head.gn1.",
    "mask_head.conv2.conv.": "mask_head.lay2.",
    "mask_head.conv2.norm.": "mask_head.gn2.",
    "mask_head.output_conv.": "mask_head.out_lay.",
    **{f"fpn_stages.{i}.refine.conv.": f"lay{i + 3}." for i in range(3)},
    **{f"fpn_stages.{i}.refine.norm.": f"gn{i + 3}." for i in range(3)},
    **{f"fpn_stages.{i}.fpn_adapter.": f"adapter{i + 1}." for i in range(3)},
}


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under the names of the authors' files."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        if name.startswith("bbox_attention."):
            name = name.replace("_proj.", "_linear.")
        last = "norm3." if ".decoder." in name else "norm2."
        for piece, put in {**PIECES, "final_layer_norm.": last}.items():
            name = name.replace(piece, put)
        found[name] = tensor
    for key in [key for key in found if "_attn.q_proj." in key]:
        parts = [found.pop(key.replace("q_proj", f"{each}_proj")) for each in "qkv"]
        found[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return found
