"""Text models of transformers as towers: their own outputs, open_clip's pools, padding that changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from open_clip.hf_model import HFTextEncoder
from torch import Tensor

from heads import create_head
from heads.contrastive.hf_text import HfText
from heads.contrastive.towers import TEXTS
from vitdense.build import create_backbone
from vitdense.errors import UserError, WeightsError

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip
KINDS: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=12)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES, max_position_embeddings=14)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=99)
    ),
    "qwen2": lambda: transformers.Qwen2Model(
        transformers.Qwen2Config(**SIZES, num_key_value_heads=2, pad_token_id=0, eos_token_id=2)
    ),
    "clip": lambda: transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**SIZES, max_position_embeddings=12, eos_token_id=98)
    ),
    "siglip": lambda: transformers.SiglipTextModel(
        transformers.SiglipTextConfig(**SIZES, max_position_embeddings=12, projection_size=32)
    ),
}


@pytest.fixture
def saved(signal: Any, tmp_path: Path) -> Any:
    def save(kind: str) -> tuple[Any, Path]:
        network = KINDS[kind]()
        signal(network)
        network.save_pretrained(tmp_path / kind)
        return network.eval(), tmp_path / kind

    return save


def tower(folder: Path, **options: Any) -> HfText:
    made = TEXTS.create(f"hf/{folder}", {"context": 12, **options}).build()
    assert isinstance(made, HfText)
    return made.eval()


def texts(pad: int, end: int = 98) -> Tensor:
    tokens = torch.full((3, 12), pad)
    for row, length in enumerate((3, 6, 9)):
        tokens[row, :length] = torch.randint(3, 97, (length,))
        tokens[row, length - 1] = end
    return tokens


POOLS = [("cls", "cls_last_hidden_state_pooler"), ("mean", "mean_pooler"), ("pooler", "cls_pooler")]


@pytest.mark.parametrize(("pool", "theirs"), POOLS)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pools_are_open_clips(copying: Any, saved: Any, kind: str, pool: str, theirs: str) -> None:
    network, folder = saved(kind)
    encoder = HFTextEncoder(str(folder), 32, config=network.config, pooler_type=theirs).eval().double()
    encoder.transformer.load_state_dict(network.state_dict())
    ours, tokens = tower(folder, pool=pool).double(), texts(network.config.pad_token_id)
    copying.assert_same(ours(tokens), encoder(tokens))


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "qwen2"])
@pytest.mark.parametrize("pool", ["cls", "mean", "last"])
def test_padding_changes_nothing(copying: Any, saved: Any, kind: str, pool: str) -> None:
    network, folder = saved(kind)
    ours, tokens = tower(folder, pool=pool).double(), texts(network.config.pad_token_id)
    found = ours(tokens)
    copying.assert_same(ours(tokens[:, :9]), found)
    for row, length in enumerate((3, 6, 9)):
        copying.assert_same(ours(tokens[row : row + 1, :length])[0], found[row])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_that_pool_themselves(copying: Any, saved: Any, kind: str) -> None:
    network, folder = saved(kind)
    tokens = texts(1)
    copying.assert_same(tower(folder, pool="pooler")(tokens), network(tokens).pooler_output)


def test_the_encoder_of_an_encoder_and_decoder(copying: Any, saved: Any) -> None:
    network, folder = saved("t5")
    tokens = texts(0)[2:, :9]
    expected = network.encoder(tokens).last_hidden_state.mean(dim=1)
    copying.assert_same(tower(folder, pool="mean")(tokens), expected)


def test_the_last_token_of_a_language_model(copying: Any, saved: Any) -> None:
    network, folder = saved("qwen2")
    tokens = texts(0)
    for row, length in enumerate((3, 6, 9)):
        expected = network(tokens[row : row + 1, :length]).last_hidden_state[0, -1]
        copying.assert_same(tower(folder, pool="last")(tokens)[row], expected)


def test_texts_of_padding_alone_are_finite(saved: Any) -> None:
    _, folder = saved("t5")
    assert tower(folder, pool="mean")(torch.zeros(2, 4, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(("kind", "pool"), [("bert", "mean"), ("bert", "pooler"), ("siglip", "pooler"), ("t5", "cls")])
def test_everything_that_learns_has_a_gradient(saved: Any, kind: str, pool: str) -> None:
    _, folder = saved(kind)
    backbone = create_backbone("vit_nano_patch8")
    text = {"name": f"hf/{folder}", "pool": pool, "context": 12, "grad_checkpointing": kind == "bert"}
    head = create_head("clip", backbone, dim=16, text=text).train()
    outputs = head([torch.randn(3, 64)], {"tokens": texts(0)})
    sum(head.losses(outputs, {}).values()).backward()  # type: ignore[union-attr]
    for name, parameter in head.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_it_is_locked_in_part(saved: Any) -> None:
    _, folder = saved("bert")
    ours = tower(folder)
    ours.lock(1)
    learning = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in ours.named_parameters() if "layer.1." in name}


def test_fresh_weights_and_tables(saved: Any) -> None:
    network, folder = saved("bert")
    fresh = tower(folder, pretrained=False)
    assert not fresh.model.embeddings.word_embeddings.weight.equal(network.embeddings.word_embeddings.weight)
    assert "model.embeddings.word_embeddings.weight" in fresh.no_decay()


def test_a_recipe_gets_its_tower_back(saved: Any) -> None:
    _, folder = saved("bert")
    from heads.clip import ClipConfig

    config = ClipConfig.model_validate({"text": {"name": f"hf/{folder}", "pool": "mean", "context": 12}})
    again = ClipConfig.model_validate(config.model_dump())
    assert again.model_dump() == config.model_dump()
    assert again.text.preset == f"hf/{folder}"


def test_what_cant_be_a_tower(saved: Any) -> None:
    _, clip = saved("clip")
    _, bert = saved("bert")
    with pytest.raises(UserError, match="is CLIP's, whose texts are told by their ends: pool: pooler"):
        tower(clip)
    with pytest.raises(UserError, match=r"has 12 positions, and text\.context is 40"):
        tower(bert, context=40)
    with pytest.raises(UserError, match=r"has no pooler: set text\.pool to cls, mean or last"):
        tower(saved("t5")[1], pool="pooler")
    with pytest.raises(UserError, match="hf download nobody/nothing --local-dir FOLDER` and give hf/FOLDER"):
        tower(Path("nobody/nothing"))


def test_weights_that_are_not_all_there(saved: Any) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved("bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 keys: encoder\.layer\.0\.output\.dense\.weight"):
        tower(folder)
