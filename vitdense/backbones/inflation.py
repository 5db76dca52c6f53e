"""Picture networks made into networks of clips, which give the picture's maps of a clip that stands still."""

from typing import Any

from vitdense.backbones.video_vit import VideoViT
from vitdense.backbones.video_vit_config import SpaceTime, VideoViTConfig
from vitdense.backbones.vit_config import ViTConfig
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.layers.inflation import Kernel, inflate_kernel, repeat_positions, still_in_time


def inflate(
    backbone: Backbone,
    *,
    frames: int = 8,
    tubelet: int = 1,
    attention: SpaceTime = "divided",
    kernel: Kernel = "central",
    **options: Any,
) -> VideoViT:
    """A network of clips with the weights of one of our own ViTs, and its options; `options` are VideoViTConfig's.

    Divided and factorised attention give the picture's maps of a static clip of any length. Joint attention does where
    there are patches alone, or one time: a class token's part of a softmax over T copies of the patches is smaller than
    over one. Dot-product attention never does: half of its heads see no other place. A transformer over time is new.
    UserError where the backbone is none of ours, or has no counterpart.
    """
    config = backbone.config
    if not isinstance(config, ViTConfig) or isinstance(config, VideoViTConfig) or type(config) is not ViTConfig:
        raise UserError(
            f"{type(backbone).__name__} can't be inflated: give one of our own plain ViTs by create_backbone; "
            "others run on clips frame by frame, as `per_frame/NAME`"
        )
    if config.positions == "sincos":
        raise UserError("fixed waves are others in three dimensions than in two: a ViT of sincos can't be inflated")
    if config.stem != "patch":
        raise UserError(
            f'a ViT with the stem "{config.stem}" can\'t be inflated: only strided patches are known as tubelets'
        )
    tables = "joint" if attention in ("joint", "dot_product") else "divided"
    given = {
        **{name: value for name, value in dict(config).items() if name != "neck_channels"},
        "frames": frames,
        "tubelet": tubelet,
        "attention": attention,
        "inflation": kernel,
        "position_tables": tables,
        **options,
    }
    made = VideoViTConfig.model_validate(given)
    video = made.build().to(backbone.get_parameter("patch_embed.proj.weight"))
    video.config = made
    _fill(video, backbone, made)
    return video


def _fill(video: VideoViT, picture: Backbone, config: VideoViTConfig) -> None:
    wanted, state = video.state_dict(), picture.state_dict()
    state = {key: tensor for key, tensor in state.items() if not key.startswith("neck.")}
    state["patch_embed.proj.weight"] = inflate_kernel(
        state["patch_embed.proj.weight"], config.tubelet, config.inflation
    )
    if "pos_embed" in state and config.position_tables == "joint":
        rows = state["pos_embed"].shape[1] - config.stored_grid**2
        state["pos_embed"] = repeat_positions(state["pos_embed"], rows, config.stored_times)
    fresh = {key: tensor for key, tensor in wanted.items() if key.startswith("time_")}
    state |= still_in_time(state, wanted) | (fresh if config.attention == "factorised_encoder" else {})
    video.load_state_dict(state)
