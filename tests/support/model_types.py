"""The supported model types, each with a tiny config."""

from dataclasses import dataclass, field


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
NAFLEX = {**{key: value for key, value in VIT.items() if key != "image_size"}, "num_patches": 4}
TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOWS = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "strides": [4, 2],
}
OVERLAPPING_PYRAMID = {**PYRAMID, "patch_sizes": [7, 3], "sr_ratios": [2, 1]}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
CONVOLUTIONS = {**STAGES, "embedding_size": 8}
NEXT = {**STAGES, "num_stages": 2, "image_size": 16}

# Weights that a family does not train: part of their names -> the reason.
MASK_TOKEN = {"mask_token": "stands in for masked patches, of which a classifier has none"}
POST_LAYERNORM = {"post_layernorm": "belongs to the pooled output; the classifier reads the mean of the patch tokens"}
POOLING_HEAD = {"vision_model.head": "belongs to the pooled output; the classifier reads the mean of the patch tokens"}


@dataclass(frozen=True)
class ModelType:
    """
    One row of the support table.

    Args:
        model_class (`str`): Class in `transformers`.
        config (`dict`): What makes it tiny.
        size (`int`): Side of its images.
        idle (`dict[str, str]`): Part of the name of weights that training leaves alone -> the reason.
        architecture (`str`, *optional*): Of timm.
    """

    model_class: str
    config: dict
    size: int = 16
    idle: dict = field(default_factory=dict)
    architecture: str | None = None


def timm(architecture: str, size: int = 16, **model_args) -> ModelType:
    config = {"architecture": architecture, "model_args": model_args}
    return ModelType("TimmWrapperForImageClassification", config, size, architecture=architecture)


MODEL_TYPES = {
    "vit": ModelType("ViTForImageClassification", VIT),
    "deit": ModelType("DeiTForImageClassification", VIT),
    "beit": ModelType("BeitForImageClassification", {**VIT, "use_relative_position_bias": True}),
    "data2vec-vision": ModelType("Data2VecVisionForImageClassification", {**VIT, "use_relative_position_bias": True}),
    "dinov2": ModelType("Dinov2ForImageClassification", DINO, idle=MASK_TOKEN),
    "dinov2_with_registers": ModelType("Dinov2WithRegistersForImageClassification", DINO, idle=MASK_TOKEN),
    "vit_msn": ModelType("ViTMSNForImageClassification", VIT),
    "ijepa": ModelType("IJepaForImageClassification", VIT),
    "clip": ModelType("CLIPForImageClassification", {"vision_config": VIT, "text_config": TEXT}, idle=POST_LAYERNORM),
    "metaclip_2": ModelType(
        "MetaClip2ForImageClassification", {"vision_config": VIT, "text_config": TEXT}, idle=POST_LAYERNORM
    ),
    "siglip": ModelType(
        "SiglipForImageClassification", {"vision_config": VIT, "text_config": TEXT}, idle=POOLING_HEAD
    ),
    "siglip2": ModelType(
        "Siglip2ForImageClassification", {"vision_config": NAFLEX, "text_config": TEXT}, idle=POOLING_HEAD
    ),
    "swin": ModelType("SwinForImageClassification", WINDOWS),
    "swinv2": ModelType("Swinv2ForImageClassification", WINDOWS),
    "donut-swin": ModelType("DonutSwinForImageClassification", WINDOWS),
    "focalnet": ModelType(
        "FocalNetForImageClassification",
        {**STAGES, "image_size": 16, "embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    ),
    "hiera": ModelType(
        "HieraForImageClassification",
        {
            "image_size": [32, 32],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
        },
        size=32,
    ),
    "pvt": ModelType(
        "PvtForImageClassification",
        {**PYRAMID, "image_size": 16, "patch_sizes": [4, 2], "sequence_reduction_ratios": [2, 1]},
    ),
    "pvt_v2": ModelType("PvtV2ForImageClassification", {**OVERLAPPING_PYRAMID, "image_size": 16}),
    "segformer": ModelType("SegformerForImageClassification", OVERLAPPING_PYRAMID),
    "cvt": ModelType(
        "CvtForImageClassification",
        {
            "patch_sizes": [7, 3, 3],
            "embed_dim": [8, 8, 16],
            "num_heads": [1, 1, 2],
            "depth": [1, 2, 3],  # its rates of stochastic depth are indexed by stage
            "mlp_ratio": [2.0, 2.0, 2.0],
            "drop_path_rate": [0.0, 0.0, 0.0],
        },
        size=32,
        idle={
            "stages.2.layers.2.attention.attention.convolution_projection_query": "makes the queries of the patches in "
            "the last layer; the classifier reads the CLS token alone"
        },
    ),
    "poolformer": ModelType(
        "PoolFormerForImageClassification",
        {**STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    ),
    "convnext": ModelType("ConvNextForImageClassification", NEXT),
    "convnextv2": ModelType("ConvNextV2ForImageClassification", NEXT),
    "levit": ModelType(
        "LevitForImageClassification",
        {
            "image_size": 112,  # 2 x 2 tokens in its last stage: a softmax over one token has no gradient
            "hidden_sizes": [16, 16, 16],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        size=112,
    ),
    "swiftformer": ModelType(
        "SwiftFormerForImageClassification",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "mlp_ratio": 2},
        size=32,
        idle={"attn.w_g": "its softmax runs over an axis of length 1 in Transformers, so no gradient reaches it"},
    ),
    "mobilevit": ModelType(
        "MobileViTForImageClassification",
        {"image_size": 128, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2},
        size=128,
    ),
    "mobilevitv2": ModelType(
        "MobileViTV2ForImageClassification",
        {"image_size": 128, "base_attn_unit_dims": [8, 8, 8], "n_attn_blocks": [1, 1, 1], "width_multiplier": 0.25},
        size=128,
    ),
    "resnet": ModelType("ResNetForImageClassification", {**CONVOLUTIONS, "layer_type": "basic"}),
    "regnet": ModelType("RegNetForImageClassification", {**CONVOLUTIONS, "groups_width": 8}),
    "bit": ModelType("BitForImageClassification", {**CONVOLUTIONS, "num_groups": 4}),
    "textnet": ModelType(
        "TextNetForImageClassification",
        {
            "image_size": [16, 16],
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 16],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]]],
            "conv_layer_strides": [[2], [2]],
        },
    ),
    "hgnet_v2": ModelType(
        "HGNetV2ForImageClassification",
        {
            "embedding_size": 8,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 8, 16],
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 8, 8, 16],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [8, 8, 16, 16],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [1, 1, 1, 1],
        },
        size=32,
    ),
    "mobilenet_v1": ModelType(
        "MobileNetV1ForImageClassification", {"depth_multiplier": 0.25, "classifier_dropout_prob": 0.1}, size=32
    ),
    "efficientnet": ModelType(
        "EfficientNetForImageClassification",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.1,
            "hidden_dim": 320,
            "kernel_sizes": [3, 3],
            "in_channels": [32, 16],
            "out_channels": [16, 24],
            "strides": [1, 2],
            "num_block_repeats": [1, 1],
            "expand_ratios": [1, 2],
        },
        size=32,
    ),
    "timm vit_small_patch16_224": timm(
        "vit_small_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2
    ),
    "timm swin_tiny_patch4_window7_224": timm(
        "swin_tiny_patch4_window7_224", img_size=16, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2)
    ),
    "timm convnext_tiny": timm("convnext_tiny", size=32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
    "timm eva02_tiny_patch14_224": timm(
        "eva02_tiny_patch14_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2
    ),
}
