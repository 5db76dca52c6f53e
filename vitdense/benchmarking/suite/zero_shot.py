"""Rows of zero-shot classification: a classifier of 2 classes from 80 templates each, on ViT-B-32's text tower."""

from typing import Any

from torch import Tensor, nn

from vitdense.benchmarking.rows import Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import enliven
from vitdense.contracts import BACKBONES, HEADS, ContrastiveHead
from vitdense.zero_shot.classifier import class_embeddings
from vitdense.zero_shot.prompts import ClassName, read_prompts

CLASSES = ("cat", "dog")


def _open_clip(conditions: Conditions) -> Any:
    import open_clip

    if not conditions.tiny:
        return enliven(open_clip.create_model("ViT-B-32")).eval()
    vision = open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    text = open_clip.CLIPTextCfg(width=32, heads=2, layers=2)
    return enliven(open_clip.CLIP(16, vision, text)).eval()


class _TextEncoder(nn.Module):
    """A head's text tower with `normalize`, as a model has it."""

    def __init__(self, head: ContrastiveHead) -> None:
        super().__init__()
        self.head = head

    def encode_text(self, text: Tensor, /, *, normalize: bool) -> Tensor:
        """tokens: (N, L) -> (N, D)."""
        found = self.head.encode_text(text)
        return nn.functional.normalize(found, dim=-1) if normalize else found


def head_like(theirs: Any) -> ContrastiveHead:
    """Our head with the text tower of an open_clip CLIP; what reads pictures has fresh weights."""
    state = theirs.state_dict()
    width, depth = theirs.token_embedding.weight.shape[1], len(theirs.transformer.resblocks)
    text = {
        "name": "clip_text_base",
        "width": width,
        "depth": depth,
        "num_heads": theirs.transformer.resblocks[0].attn.num_heads,
    }
    config = HEADS.create("clip", {"text": text, "dim": state["text_projection"].shape[1]})
    tower = BACKBONES.create("vit_nano_patch8", {"depth": 1}).build()
    head = config.build_for(tower)
    assert isinstance(head, ContrastiveHead)
    own = {key: value for key, value in head.state_dict().items() if key.startswith("image_proj.")}
    head.load_state_dict(own | text_tensors(state))
    return head.eval()


def text_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an open_clip CLIP has beside its picture tower, under the names of our head."""
    parts = {
        ".attn.in_proj_": ".attn.qkv.",
        ".attn.out_proj.": ".attn.proj.",
        ".ln_1.": ".norm1.",
        ".ln_2.": ".norm2.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
    }
    found = {
        "text.token_embed.weight": state["token_embedding.weight"],
        "text.pos_embed": state["positional_embedding"],
        "text.norm.weight": state["ln_final.weight"],
        "text.norm.bias": state["ln_final.bias"],
        "text_proj.weight": state["text_projection"].T,
        "logit_scale": state["logit_scale"],
    }
    for key, tensor in state.items():
        if key.startswith("transformer.resblocks."):
            for their, our in parts.items():
                key = key.replace(their, our)
            found[key.replace("transformer.resblocks.", "text.blocks.")] = tensor
    return found


class OurJob(Job):
    """Prompts of a length together, without what stands behind their ends."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.encoder = _TextEncoder(head_like(_open_clip(conditions))).to(conditions.device)
        self.prompts = read_prompts("imagenet").of([ClassName(name, (name,)) for name in CLASSES])

    def step(self) -> None:
        """From class names to weights."""
        self._weights()

    def outcome(self) -> Outcome:
        """The weights (K, D)."""
        return {"weights": self._weights().float()}

    def _weights(self) -> Tensor:
        with self.conditions.autocast():
            return class_embeddings(
                self.encoder, self.encoder.head.tokenizer, self.prompts, device=self.conditions.device
            )


class TheirJob(Job):
    """open_clip's build_zero_shot_classifier."""

    def __init__(self, conditions: Conditions) -> None:
        import open_clip

        self.conditions = conditions
        self.model = _open_clip(conditions).to(conditions.device)
        self.tokenizer = open_clip.SimpleTokenizer()

    def step(self) -> None:
        """From class names to weights."""
        self._weights()

    def outcome(self) -> Outcome:
        """The weights (K, D)."""
        return {"weights": self._weights().float()}

    def _weights(self) -> Tensor:
        import open_clip

        with self.conditions.autocast():
            built: Tensor = open_clip.build_zero_shot_classifier(
                self.model,
                self.tokenizer,
                CLASSES,
                open_clip.OPENAI_IMAGENET_TEMPLATES,
                device=self.conditions.device,
            )
        return built.T


def _pair(conditions: Conditions) -> Pair:
    return Pair(OurJob(conditions), TheirJob(conditions))


ROWS = (
    Row(
        "zero_shot_classifier",
        "2 classes, 80 templates each, on ViT-B-32's text tower, from names to weights",
        OurJob,
        (Peer("open_clip", "open_clip", TheirJob, _pair),),
        {"cpu": Goal(0.20, 0.75)},
        ("Tokenizing is part of it.",),
    ),
)
