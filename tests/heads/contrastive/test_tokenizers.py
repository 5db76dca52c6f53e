"""Tokenizers by name: lengths, ends, padding, and the mistakes that must not wait for the training."""

import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from heads.contrastive.tokenizers import create_tokenizer
from heads.contrastive.towers import TEXTS
from vitdense.errors import UserError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "cat", "dog", "on", "the", "roof", "Cat", ","]
LONG = "cat " * 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A tokenizer of a dozen words that marks both ends, as BERT's."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    place = Path(tmp_path_factory.mktemp("tokenizer"))
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    made_of: Any = PreTrainedTokenizerFast
    made_of(tokenizer_object=made, **marks).save_pretrained(str(place))
    return place


def of(name: str, **options: Any) -> Any:
    return create_tokenizer(name, **{"context": 8, "vocab": 49408, "trim": None, **options})


def test_clips_tokens_are_open_clips() -> None:
    texts = ["a photo of a cat", "Caf\u00e9 &amp; co.", "\u732b", LONG, ""]
    expected = open_clip.SimpleTokenizer(context_length=8)(texts)
    assert of("clip")(texts).equal(expected)
    assert of("clip", trim="end")(texts[1:2]).equal(expected[1:2, : int(expected[1].argmax()) + 1])


@pytest.mark.parametrize("name", ["clip", "hf"])
@pytest.mark.parametrize("trim", [None, "end", "pad"])
def test_an_empty_and_an_endless_caption_keep_their_marks(folder: Path, name: str, trim: Any) -> None:
    end = 49407 if name == "clip" else 2
    made = of("clip" if name == "clip" else f"hf/{folder}", trim=trim, end_token=end)
    empty, endless = made([""]), made([LONG])
    assert empty[0, :2].tolist() == [end - 1, end]
    assert endless.shape == (1, 8)
    assert endless[0, -1] == end
    assert (endless[0, 1:-1] == endless[0, 1]).all()
    assert made(["", LONG]).shape == (2, 8)
    assert made([]).shape == (0, 8)


def test_transformers_tokens_are_cleaned_padded_and_trimmed(folder: Path) -> None:
    made = of(f"hf/{folder}")
    assert made(["a  cat &#44; a dog"]).tolist() == [[1, 4, 5, 11, 4, 6, 2, 0]]
    trimmed = of(f"hf/{folder}", trim="pad")(["a cat", "a dog on"])
    assert trimmed.tolist() == [[1, 4, 5, 2, 0, 0], [1, 4, 6, 7, 2, 0]]


def test_siglips_texts_have_no_capitals_and_no_punctuation(folder: Path) -> None:
    texts = ["A Cat, on_the roof!", "a dog"]
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=8, clean="canonicalize")
    assert of(f"siglip/{folder}")(texts).equal(theirs(texts))
    assert of(f"siglip/{folder}")(texts)[0].tolist() == [1, 4, 5, 7, 8, 9, 2, 0]
    assert of(f"hf/{folder}")(texts).equal(open_clip.tokenizer.HFTokenizer(str(folder), context_length=8)(texts))


def test_tokens_become_text_again(folder: Path) -> None:
    assert of("clip").decode(of("clip")(["a cat on the roof"])[0].tolist()) == "a cat on the roof"
    made = of(f"hf/{folder}")
    assert made.decode(made(["a cat on the roof"])[0].tolist()) == "a cat on the roof"


@pytest.mark.parametrize("name", ["clip", "hf"])
def test_a_tokenizer_travels_to_workers(folder: Path, name: str) -> None:
    made = of("clip" if name == "clip" else f"hf/{folder}")
    assert pickle.loads(pickle.dumps(made))(["a cat"]).equal(made(["a cat"]))
    assert len(pickle.dumps(made)) < 1000


def test_numbers_beyond_the_vocabulary_are_refused_when_the_pair_is_made(folder: Path) -> None:
    with pytest.raises(UserError, match="tokenizer 'clip' gives numbers up to 49407, and the text tower knows 99 tok"):
        TEXTS.create("clip_text_nano", {"vocab": 99}).tokens()
    with pytest.raises(UserError, match="gives numbers up to 11, and the text tower knows 9 tokens"):
        TEXTS.create("siglip_text_base", {"vocab": 9, "tokenizer": f"siglip/{folder}"}).tokens()
    assert TEXTS.create("siglip_text_base", {"vocab": 12, "tokenizer": f"hf/{folder}"}).tokens()(["a"]).shape == (1, 64)


def test_absent_files_are_named_with_the_way_to_get_them() -> None:
    with pytest.raises(UserError, match="hf download timm/ViT-B-16-SigLIP --local-dir FOLDER` and set tokenizer: sigl"):
        of("siglip")
    with pytest.raises(UserError, match="'hf/nobody/nothing': its files are neither in the folder nobody/nothing nor"):
        of("hf/nobody/nothing")
    with pytest.raises(UserError, match="no tokenizer named 'clipp'; known: clip, siglip, siglip2, hf/<repo or folder"):
        of("clipp")


def test_a_tokenizer_without_padding_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made_of: Any = PreTrainedTokenizerFast
    made_of(tokenizer_object=bare).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="has no token for padding"):
        of(f"hf/{tmp_path}")


def test_towers_and_their_tokenizers_agree_on_what_is_trimmed(folder: Path) -> None:
    config = TEXTS.create("clip_text_nano", {"vocab": 12, "context": 8, "tokenizer": f"hf/{folder}", "end_token": 2})
    tokens, tower = config.tokens()(["a cat", "a"]), config.build()
    assert tokens.shape == (2, 4)
    full = torch.nn.functional.pad(tokens, (0, 4))
    torch.testing.assert_close(tower(tokens), tower(full))
