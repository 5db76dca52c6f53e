"""Text models of transformers as towers, under names `hf/<repo>` and `hf/<folder>`."""

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from heads.contrastive.tokenizers import Trim, create_tokenizer
from heads.contrastive.towers import TEXTS, TextConfig, TextTower
from vitdense.contracts import Tokenizer
from vitdense.errors import UserError, WeightsError

# Their authors give them no mask: a causal tower never looks behind the end, SigLIP's was trained to see its padding.
_UNMASKED = {"clip_text_model", "siglip_text_model", "siglip2_text_model"}
_PADDED = {"siglip_text_model", "siglip2_text_model"}
_ON_TOP = ("pooler", "head")


@TEXTS.register_family("hf")
class HfTextConfig(TextConfig):
    """`architecture` is a repository of the hub or a folder of save_pretrained; of encoders and decoders the encoder.

    `pool`: "cls" the first token, "mean" and "last" over what is no padding, "pooler" the model's own `pooler_output`.
    `pretrained: false` starts with fresh weights. `pad_token` and `tokenizer` are the model's own where left out.
    """

    architecture: str
    pool: Literal["cls", "mean", "last", "pooler"] = "cls"
    context: PositiveInt = 77
    pad_token: NonNegativeInt | None = None
    tokenizer: str | None = None
    pretrained: bool = True
    grad_checkpointing: bool = False

    @property
    def place(self) -> str:
        """The folder, or the repository."""
        path = Path(self.architecture).expanduser()
        return str(path) if path.is_dir() else self.architecture

    def build(self) -> "HfText":
        """transformers' model, with its weights if `pretrained`."""
        return HfText(self)

    def tokens(self) -> Tokenizer:
        """The model's own tokenizer, padded to the longest text where padding is masked."""
        theirs = text_config(self)
        trim: Trim = None if theirs.model_type in _PADDED else "pad"
        name = self.tokenizer or f"hf/{self.architecture}"
        return create_tokenizer(name, context=self.context, vocab=theirs.vocab_size, trim=trim)


class HfText(TextTower):
    """A text model of transformers, `model`, that is told which tokens are padding."""

    def __init__(self, config: HfTextConfig) -> None:
        super().__init__()
        theirs = text_config(config)
        self.width = int(theirs.hidden_size)
        self.pool, self.context = config.pool, config.context
        self.masks = theirs.model_type not in _UNMASKED
        self.pad_token = config.pad_token if config.pad_token is not None else theirs.pad_token_id
        self.ends_with_padding = self.pad_token is not None and self.pad_token == theirs.eos_token_id
        if theirs.model_type == "clip_text_model" and config.pool != "pooler":
            raise UserError(f"hf/{config.architecture} is CLIP's, whose texts are told by their ends: pool: pooler")
        if self.masks and self.pad_token is None:
            raise UserError(f"hf/{config.architecture}: its config names no token for padding: set text.pad_token")
        self.model = _load(config, theirs)
        self.model.train()  # from_pretrained leaves it in evaluation mode
        if config.grad_checkpointing:
            self.model.gradient_checkpointing_enable()
        if config.pool != "pooler":
            self._drop_pooler()
        elif not _gives_pooled(self.model):
            raise UserError(f"hf/{config.architecture} has no pooler: set text.pool to cls, mean or last")
        limit = _positions(self.model, theirs)
        if limit is not None and config.context > limit:
            raise UserError(f"hf/{config.architecture} has {limit} positions, and text.context is {config.context}")

    def _drop_pooler(self) -> None:
        """What only `pooler_output` needs would get no gradient."""
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        for name, parameter in self.model.named_parameters():
            if set(_ON_TOP) & set(name.split(".")):
                parameter.requires_grad_(False)

    @property
    def layers(self) -> nn.ModuleList:
        """The list of modules that is as long as the config's num_hidden_layers."""
        count = getattr(self.model.config, "num_hidden_layers", None)
        found = [each for each in self.model.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
        if not found:
            raise UserError(f"{type(self.model).__name__} names no list of layers, so that it can't be locked in part")
        return found[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64 -> (N, width)."""
        mask = self._mask(tokens)
        found = self.model(input_ids=tokens, attention_mask=mask if self.masks else None)
        if self.pool == "pooler":
            pooled: Tensor = found.pooler_output
            return pooled
        states: Tensor = found.last_hidden_state
        if self.pool == "cls":
            return states[:, 0]
        if self.pool == "mean":
            weights = mask[..., None].to(states.dtype)
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        ends = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return states[torch.arange(states.shape[0], device=mask.device), ends]

    def _mask(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) -> (N, L) int64: 1 for what is no padding."""
        if not self.masks:
            return torch.ones_like(tokens)
        padding = (tokens == self.pad_token).long()
        if self.ends_with_padding:
            return (padding.cumsum(dim=1) - padding == 0).long()
        return 1 - padding


def text_config(config: HfTextConfig) -> Any:
    """transformers' config of the text model, of a whole model of pictures and texts its part."""
    from transformers import AutoConfig

    try:
        theirs = AutoConfig.from_pretrained(config.place)
    except (OSError, ValueError, KeyError) as error:
        name = config.architecture
        raise UserError(
            f"text: hf/{name}: its config is neither in the folder {name} nor to be fetched; on a machine with network "
            f"run `hf download {name} --local-dir FOLDER` and give hf/FOLDER"
        ) from error
    part = getattr(theirs, "text_config", None)
    found = theirs if part is None else part
    if not isinstance(getattr(found, "vocab_size", None), int):
        raise UserError(f"text: hf/{config.architecture} is a {found.model_type}, which reads no texts")
    return found


def _load(config: HfTextConfig, theirs: Any) -> Any:
    """The network; WeightsError where its files lack anything but what pools."""
    import transformers

    # Parts of whole models, such as SigLIP's, are in no list, but named after their configs.
    name = f"{type(theirs).__name__.removesuffix('Config')}Model"
    kind: Any = transformers.MODEL_MAPPING.get(type(theirs), None) or getattr(transformers, name, None)
    if theirs.model_type == "t5":
        kind = transformers.T5EncoderModel
    if kind is None or "input_ids" not in inspect.signature(kind.forward).parameters:
        raise UserError(f"text: hf/{config.architecture}: transformers has no text model for {theirs.model_type}")
    if not config.pretrained:
        network = kind._from_config(theirs)
    else:
        network, report = kind.from_pretrained(
            config.place, config=theirs, dtype=torch.float32, output_loading_info=True
        )
        missing = sorted(key for key in report["missing_keys"] if not set(_ON_TOP) & set(key.split(".")))
        if config.pool == "pooler":
            missing = sorted(report["missing_keys"])
        if missing:
            raise WeightsError(f"hf/{config.architecture} lacks {len(missing)} keys: {', '.join(missing[:6])}")
    encodes = getattr(theirs, "is_encoder_decoder", False) and kind is not transformers.T5EncoderModel
    return network.get_encoder() if encodes else network


def _gives_pooled(network: Any) -> bool:
    """Whether the model says something of its own about a whole text."""
    if getattr(network, "pooler", None) is not None:
        return True
    return network.config.model_type in _UNMASKED


def _positions(network: nn.Module, theirs: Any) -> int | None:
    """How many tokens have a place, where places are in a table; RoBERTa's begin behind the number for padding."""
    limit = getattr(theirs, "max_position_embeddings", None)
    if limit is None:
        return None
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(limit) - module.padding_idx - 1
    return int(limit)
