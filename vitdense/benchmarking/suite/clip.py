"""The row of a training step of CLIP ViT-B/32 on captions of real lengths, against open_clip and transformers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import enliven
from vitdense.published import build_whole
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole import clip, open_clip

LENGTHS = (8, 9, 10, 11, 12, 13, 13, 14, 14, 15, 16, 16, 17, 18, 20, 23)
"""Tokens of captions with both marks: the middles of sixteenths of 2000 captions of Flickr8k."""
ENOUGH = 4
"""So many pairs are enough to compare gradients, which is done in double precision."""
BATCH, CONTEXT, START, END = 16, 77, 49406, 49407
TINY_SIDE, FULL_SIDE = 32, 224
NOTES = (
    "Texts are as long as sixteenths of Flickr8k's captions, 8 to 23 tokens; both peers compute all 77 places.",
    "A training step is forward, loss and backward, without the optimizer; the peak is above weights and gradients.",
    f"Gradients are compared in double precision, of {ENOUGH} pairs.",
)

Learn = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""A network, pictures and tokens -> the loss, and the embeddings of both."""
Renamed = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class ClipJob(Job):
    """Random pictures, and random words in texts of real lengths. `rename` gives gradients our names."""

    def __init__(self, network: nn.Module, learn: Learn, conditions: Conditions, rename: Renamed = dict) -> None:
        self.network = network.to(conditions.device).train()
        self.learn: Learn = torch.compile(learn) if conditions.compiled else learn
        self.conditions, self.rename = conditions, rename
        generator = torch.Generator().manual_seed(SEED)
        side, batch = TINY_SIDE if conditions.tiny else FULL_SIDE, conditions.batch or (5 if conditions.tiny else BATCH)
        self.images = torch.randn(batch, 3, side, side, generator=generator).to(conditions.device)
        words = torch.randint(1, START, (batch, CONTEXT), generator=generator)
        places, lengths = torch.arange(CONTEXT), torch.tensor([LENGTHS[i % len(LENGTHS)] for i in range(batch)])
        words[:, 0] = START
        words[places >= lengths[:, None]] = 0
        words[torch.arange(batch), lengths - 1] = END
        self.tokens = words.to(conditions.device)

    def step(self) -> None:
        """zero_grad, forward, loss and backward."""
        self._run()

    def outcome(self) -> Outcome:
        """Loss and embeddings; and in double precision, of a few pairs, the gradients of all weights."""
        loss, images, texts = self._run()
        found = {"loss": loss.detach(), "images": images.detach(), "texts": texts.detach()}
        if self.conditions.compiled or self.conditions.precision == "bf16":
            return found
        # In place, and back: what is float32 stays the same, and a copy would need twice the memory.
        network = self.network.double()
        network.zero_grad(set_to_none=True)
        self.learn(network, self.images[:ENOUGH].double(), self.tokens[:ENOUGH])[0].backward()  # type: ignore[no-untyped-call]
        grown = {
            name: torch.zeros_like(each) if each.grad is None else each.grad
            for name, each in network.named_parameters()
        }
        network.zero_grad(set_to_none=True)
        network.float()
        return found | {f"gradient of {name}": each for name, each in self.rename(grown).items()}

    def _run(self) -> tuple[Tensor, Tensor, Tensor]:
        self.network.zero_grad(set_to_none=True)
        with self.conditions.autocast():
            found = self.learn(self.network, self.images, self.tokens)
        found[0].backward()  # type: ignore[no-untyped-call]
        return found


# ---------------------------------------------------------------- contenders


def _lively(network: Any) -> Any:
    """Random weights, with the temperature that training starts from."""
    enliven(network)
    with torch.no_grad():
        network.logit_scale.fill_(math.log(1 / 0.07))
    return network


def _open_clip(conditions: Conditions) -> tuple[Any, dict[str, Any]]:
    """open_clip's network, and how it is described."""
    import open_clip as library

    described = library.get_model_config("ViT-B-32")
    if conditions.tiny:
        described = {
            "embed_dim": 16,
            "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": TINY_SIDE},
            "text_cfg": {"width": 32, "heads": 2, "layers": 2},
        }
    return _lively(library.CLIP(**described)), described


def _transformers(conditions: Conditions) -> tuple[Any, dict[str, Any]]:
    """transformers' network with open_clip's activation, and its config."""
    from transformers import CLIPConfig, CLIPModel

    given: Any = {"text_config": {"eos_token_id": END}, "vision_config": {}}
    if conditions.tiny:
        small = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        given = {"text_config": {"eos_token_id": END, **small}, "vision_config": {**small, "image_size": TINY_SIDE}}
        given["vision_config"] |= {"patch_size": 16}
    for part in ("text_config", "vision_config"):
        given[part]["hidden_act"] = "gelu"
    make: Any = CLIPConfig
    config = make(**given, **({"projection_dim": 16} if conditions.tiny else {}))
    return _lively(CLIPModel(config)), config.to_dict()


def _twin(read: Callable[[Checkpoint], Any], state: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """Our model of a peer's tensors: its weights, or its gradients, under our names."""
    return build_whole(read(Checkpoint({key: each.cpu() for key, each in state.items()}, "the peer", config=config)))


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in model.named_parameters()}


def _our_job(model: Any, conditions: Conditions) -> ClipJob:
    def learn(network: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # What the tokenizer does when a batch is put together.
        batch: Any = {"tokens": tokens[:, : int(tokens.argmax(dim=1).max()) + 1]}
        outputs = network.head(network.features(images), batch)
        loss = torch.stack(list(network.head.losses(outputs, batch).values())).sum()
        return loss, outputs["image_embeddings"], outputs["text_embeddings"]

    return ClipJob(model, learn, conditions)


def _open_clip_job(network: Any, conditions: Conditions, rename: Renamed = dict) -> ClipJob:
    import open_clip.loss

    compare: Any = open_clip.loss.ClipLoss()

    def learn(network: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pictures, texts, scale = network(images, tokens)
        return compare(pictures, texts, scale), pictures, texts

    return ClipJob(network, learn, conditions, rename)


def _transformers_job(network: Any, conditions: Conditions, rename: Renamed = dict) -> ClipJob:
    def learn(network: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = network(input_ids=tokens, pixel_values=images, return_loss=True)
        return found.loss, found.image_embeds, found.text_embeds

    return ClipJob(network, learn, conditions, rename)


def _ours(conditions: Conditions) -> Job:
    network, described = _open_clip(conditions)
    return _our_job(_twin(open_clip.read, network.state_dict(), {"model_cfg": described}), conditions)


def _pair_open_clip(conditions: Conditions) -> Pair:
    network, described = _open_clip(conditions)

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _named(_twin(open_clip.read, state, {"model_cfg": described}))

    ours = _twin(open_clip.read, network.state_dict(), {"model_cfg": described})
    return Pair(_our_job(ours, conditions), _open_clip_job(network, conditions, rename))


def _pair_transformers(conditions: Conditions) -> Pair:
    network, config = _transformers(conditions)

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _named(_twin(clip.read, state, config))

    ours = _twin(clip.read, network.state_dict(), config)
    return Pair(_our_job(ours, conditions), _transformers_job(network, conditions, rename))


def _peer(name: str, make: Callable[[Conditions], Any], job: Callable[..., ClipJob], pair: Any) -> Peer:
    return Peer(name, name, lambda conditions: job(make(conditions)[0], conditions), pair)


ROWS = (
    Row(
        "clip_b32_train",
        "CLIP ViT-B/32, 16 pairs, 224 x 224, captions of real lengths, forward and backward",
        _ours,
        (
            _peer("open_clip", _open_clip, _open_clip_job, _pair_open_clip),
            _peer("transformers", _transformers, _transformers_job, _pair_transformers),
        ),
        {"cpu": Goal(0.65, 0.65), "cuda": Goal(0.55, 0.55)},
        NOTES,
    ),
)
