"""Picture towers of language models: a backbone's tokens through a projector, and the whole as a model of transformers.

LLaVA (https://arxiv.org/abs/2310.03744), PaliGemma (https://arxiv.org/abs/2407.07726), Aya Vision
(https://arxiv.org/abs/2505.08751).
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vitdense.backbones.vit import ViT
from vitdense.backbones.vit_config import ViTConfig
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.weights.exporting import choose_dialect, save_pretrained

hf: Any = transformers  # typed by half

Projector = Literal["linear", "mlp", "pixel_shuffle"]
Select = Literal["default", "full"]
FAMILIES = ("clip", "siglip")
PREPROCESSOR = "preprocessor_config.json"


class Linear(nn.Module):
    """PaliGemma's: one layer."""

    def __init__(self, width: int, language_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, language_width)

    def forward(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """tokens: (B, N, C) -> (B, N, language_width)."""
        projected: Tensor = self.linear(tokens)
        return projected


class MLP(nn.Module):
    """LLaVA's: two layers with GELU between them."""

    def __init__(self, width: int, language_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)

    def forward(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """tokens: (B, N, C) -> (B, N, language_width)."""
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(tokens)))
        return projected


class PixelShuffle(nn.Module):
    """Aya Vision's: `factor` x `factor` neighbours become one token, normed and put through a gated MLP."""

    def __init__(self, width: int, language_width: int, factor: int) -> None:
        super().__init__()
        self.factor, joined = factor, width * factor**2
        self.layernorm = nn.LayerNorm(joined, eps=1e-6)
        self.linear_1 = nn.Linear(joined, language_width)
        self.linear_2 = nn.Linear(language_width // 2, language_width)

    def forward(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """tokens: (B, h * w, C), grid (h, w) -> (B, h * w / factor ** 2, language_width)."""
        if any(side % self.factor for side in grid):
            raise UserError(f"pixel_shuffle joins {self.factor} x {self.factor} tokens, and the grid is {grid}")
        rows, columns = (side // self.factor for side in grid)
        cells = tokens.reshape(len(tokens), rows, self.factor, columns, self.factor, -1)  # (B, rows, f, columns, f, C)
        joined = cells.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, rows * columns, f * f * C)
        value, gate = self.linear_1(self.layernorm(joined)).chunk(2, dim=-1)
        projected: Tensor = self.linear_2(F.silu(gate) * value)
        return projected


class VisionTower(nn.Module):
    """Pictures -> tokens as wide as a language model's embeddings. The backbone's weights are copied.

    `layer` counts as LLaVA's `vision_feature_layer`: n is what block n gives, counted from 1, -1 the last block's, none
    of them normed; of several, channels are joined. `select` "default" leaves the class token out, "full" keeps it.
    Projector `linear` reads the last layer's normed tokens, as PaliGemma does, and has neither choice.
    """

    def __init__(
        self,
        backbone: Backbone,
        language_width: int,
        *,
        projector: Projector = "mlp",
        layer: int | Sequence[int] | None = None,
        select: Select | None = None,
        factor: int = 2,
    ) -> None:
        super().__init__()
        config, family = _config_of(backbone)
        _check(config, family, projector, layer, select, language_width)
        self.projector_name, self.select = projector, select or ("default" if config.cls_token else "full")
        self.layer = layer if layer is not None else -2 if projector == "mlp" else -1
        self.layers = (self.layer,) if isinstance(self.layer, int) else tuple(self.layer)
        blocks = [_block(layer, config.depth) for layer in self.layers]
        unique = sorted(set(blocks))
        self.places = [unique.index(block) for block in blocks]
        self.backbone = _copy(backbone, config, tuple(unique), normed=projector == "linear")
        width = config.embed_dim * len(blocks)
        self.projector: nn.Module = (
            PixelShuffle(width, language_width, factor)
            if projector == "pixel_shuffle"
            else {"linear": Linear, "mlp": MLP}[projector](width, language_width)
        )
        self.language_width, self.factor = language_width, factor

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, N, language_width)."""
        stages = self.backbone.forward_stages(images)
        chosen = [stages[place] for place in self.places]
        whole = [
            torch.cat([each.prefix, each.patches], 1) if self.select == "full" else each.patches for each in chosen
        ]
        projected: Tensor = self.projector(torch.cat(whole, dim=-1), chosen[0].grid)
        return projected

    def count_tokens(self) -> int:
        """N for pictures of the backbone's own size, the one that transformers' models take."""
        config = self.backbone.config
        assert isinstance(config, ViTConfig)
        cells = (config.image_size // config.patch_size) ** 2
        if self.projector_name == "pixel_shuffle":
            return cells // self.factor**2
        return cells + (config.num_prefix if self.select == "full" else 0)

    def save_pretrained(self, folder: str | Path, language: PreTrainedModel, *, image_token: int) -> None:
        """Writes tower, projector and a causal language model of transformers as one: for `mlp`
        LlavaForConditionalGeneration, for `linear` PaliGemma's, for `pixel_shuffle` Aya Vision's.

        `image_token` is the number in whose places of a text the picture's tokens stand. The file of the image
        processor lies beside the weights.
        """
        lm: Any = language
        _check_language(self, lm, image_token)
        folder = Path(folder)
        with TemporaryDirectory() as aside:
            save_pretrained(self.backbone, aside, "transformers")
            vision = hf.AutoModel.from_pretrained(aside)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(aside) / PREPROCESSOR, folder / PREPROCESSOR)
        config_class, model_class, options = self._target()
        config = config_class(
            vision_config=vision.config,
            text_config=copy.deepcopy(lm.config),
            image_token_index=image_token,
            tie_word_embeddings=lm.config.tie_word_embeddings,
            **options,
        )
        with torch.device("meta"):
            whole = model_class(config)
        whole.model.vision_tower = vision
        whole.model.multi_modal_projector.load_state_dict(self.projector.state_dict(), assign=True)
        whole.model.language_model = lm.base_model
        whole.lm_head = lm.get_output_embeddings()
        whole.save_pretrained(folder)

    def _target(self) -> tuple[Any, Any, dict[str, Any]]:
        """Config and model of transformers that compute the same, with what they are told of this tower."""
        if self.projector_name == "linear":
            widths = {"projection_dim": self.language_width, "hidden_size": self.language_width}
            return hf.PaliGemmaConfig, hf.PaliGemmaForConditionalGeneration, widths
        options: dict[str, Any] = {
            "vision_feature_layer": self.layer if isinstance(self.layer, int) else list(self.layer),
            "vision_feature_select_strategy": self.select,
        }
        if self.projector_name == "pixel_shuffle":
            options |= {"downsample_factor": self.factor}
            return hf.AyaVisionConfig, hf.AyaVisionForConditionalGeneration, options
        options |= {"image_seq_length": self.count_tokens()}
        return hf.LlavaConfig, hf.LlavaForConditionalGeneration, options


def _config_of(backbone: Backbone) -> tuple[ViTConfig, str]:
    """How a backbone was built, and its family among transformers' towers."""
    config = backbone.config
    if backbone.adapter_config is not None or config is None:
        raise UserError("a language model's tower is a backbone of create_backbone, without an adapter")
    wanted = "language models of transformers take the towers clip_* and siglip_*"
    if not isinstance(config, ViTConfig):
        raise UserError(f"{wanted}, and this is {config.preset}")
    try:
        family = choose_dialect(config, "transformers")[0].family
    except UserError as error:
        raise UserError(f"{wanted}: {error}") from error
    if family not in FAMILIES:
        raise UserError(f"{wanted}, and {config.preset} is a {family} there")
    return config, family


def _check(
    config: ViTConfig, family: str, projector: str, layer: object, select: str | None, language_width: int
) -> None:
    """UserError for what no model of transformers computes."""
    if projector not in get_args(Projector):
        raise UserError(f"projector {projector!r}: give one of {', '.join(get_args(Projector))}")
    if select not in (None, *get_args(Select)):
        raise UserError(f"select {select!r}: give one of {', '.join(get_args(Select))}")
    if select == "default" and not config.cls_token:
        raise UserError(f"select 'default' leaves the class token out, and {config.preset} has none: set 'full'")
    if projector == "linear" and (layer is not None or select == "default" or family != "siglip"):
        raise UserError(
            "projector linear is PaliGemma's, which reads all tokens of a siglip_* tower's last layer: "
            f"leave layer and select out (given {config.preset}, layer {layer}, select {select}), or take projector mlp"
        )
    if projector == "pixel_shuffle" and select == "full" and config.cls_token:
        raise UserError("projector pixel_shuffle joins the tokens of a grid, without the class token: select 'default'")
    if projector == "pixel_shuffle" and language_width % 2:
        raise UserError(f"projector pixel_shuffle halves the language model's width, which is {language_width}")


def _block(layer: int, depth: int) -> int:
    """A layer, as transformers counts hidden states, -> the block that gives it."""
    if not (1 <= layer <= depth or -depth <= layer <= -1):
        raise UserError(f"layer {layer}: the backbone has {depth} blocks, give 1 to {depth} or -{depth} to -1")
    return layer - 1 if layer > 0 else depth + layer


def _copy(backbone: Backbone, config: ViTConfig, blocks: tuple[int, ...], *, normed: bool) -> ViT:
    """The same backbone, giving the tokens of these blocks."""
    config = config.model_copy(update={"out_indices": blocks, "norm_maps": normed, "weights": None})
    made = config.build()
    made.config = config
    made.load_state_dict(backbone.state_dict())
    return made.to(next(backbone.parameters())).train(backbone.training)


def _check_language(tower: VisionTower, language: Any, image_token: int) -> None:
    """UserError where the language model and the tower can't be one model."""
    text, head = language.config, language.get_output_embeddings()
    if head is None or head.bias is not None:
        raise UserError(
            f"{type(language).__name__} gives no logits by one matrix: give a model such as LlamaForCausalLM"
        )
    if text.hidden_size != tower.language_width:
        raise UserError(
            f"{type(language).__name__} is {text.hidden_size} wide, and the tower projects to {tower.language_width}"
        )
    if not 0 <= image_token < text.vocab_size:
        raise UserError(f"image_token {image_token}: the language model knows {text.vocab_size} tokens")
    if tower.projector_name == "linear" and not text.model_type.startswith("gemma"):
        raise UserError(f"projector linear is PaliGemma's, whose language model is a Gemma; given {text.model_type}")
