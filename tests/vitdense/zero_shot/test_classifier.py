"""Class embeddings equal open_clip's, whatever the lengths of prompts and the size of batches."""

from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from vitdense.zero_shot.classifier import class_embeddings, text_embeddings
from vitdense.zero_shot.prompts import class_names, read_prompts

NAMES = ["cat", "fire engine", "a thing whose name is very long and would not end before it is cut " * 8, "zebra"]


def by_open_clip(theirs: Any) -> Tensor:
    built: Tensor = open_clip.build_zero_shot_classifier(
        theirs, open_clip.SimpleTokenizer(), NAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    return built.T


@pytest.mark.parametrize("together", [64, 7])
def test_ours_equal_open_clips(twins: Any, together: int) -> None:
    prompts = read_prompts("imagenet").of(class_names(NAMES))
    found = class_embeddings(twins.ours, twins.ours.head.tokenizer, prompts, together=together)
    torch.testing.assert_close(found, by_open_clip(twins.theirs), rtol=0, atol=1e-6)
    assert found.std(dim=0).max() > 0.01  # classes differ, so that agreement means something


def test_in_double_precision_they_equal_to_the_last_digits(twins: Any) -> None:
    ours, theirs = twins.ours.double(), twins.theirs.double()
    try:
        prompts = read_prompts("imagenet").of(class_names(NAMES))
        found = class_embeddings(ours, ours.head.tokenizer, prompts)
        torch.testing.assert_close(found, by_open_clip(theirs), rtol=0, atol=1e-12)
    finally:
        ours.float(), theirs.float()


def test_an_open_clip_model_is_taken_as_it_is(twins: Any) -> None:
    prompts = read_prompts("imagenet").of(class_names(NAMES))
    found = class_embeddings(twins.theirs, open_clip.SimpleTokenizer(), prompts)
    torch.testing.assert_close(found, by_open_clip(twins.theirs), rtol=0, atol=1e-6)


def test_words_that_mean_the_same_count_as_more_prompts(twins: Any) -> None:
    prompts = read_prompts(["a {}", "the {}"]).of(class_names(["car=car|automobile"]))
    assert prompts == [["a car", "the car", "a automobile", "the automobile"]]
    found = class_embeddings(twins.ours, twins.ours.head.tokenizer, prompts)
    single = twins.ours.encode_text(prompts[0])
    torch.testing.assert_close(found[0], torch.nn.functional.normalize(single.mean(0), dim=0), rtol=0, atol=1e-6)


def test_few_columns_are_encoded(twins: Any) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched:
        def encode_text(self, text: Tensor, /, *, normalize: bool) -> Tensor:
            seen.append(tuple(text.shape))
            return torch.nn.functional.normalize(torch.ones(len(text), 3), dim=-1)

    texts = ["a " * 30, *["cat"] * 2, "a " * 29, "one two"]
    text_embeddings(Watched(), twins.ours.head.tokenizer, texts, together=2)
    assert seen == [(2, 3), (2, 31), (1, 32)]


def test_texts_keep_their_order(twins: Any) -> None:
    texts = ["a very long text about nothing", "cat", "a dog", "a very long text about a house"]
    found = text_embeddings(twins.ours, twins.ours.head.tokenizer, texts, together=2)
    alone = torch.cat([twins.ours.encode_text([text]) for text in texts])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


def test_a_tokenizer_that_pads_to_its_context_is_taken(twins: Any) -> None:
    def padded(texts: Sequence[str]) -> Tensor:
        return torch.tensor([[len(text), *[9] * 5] for text in texts])

    class Encoder:
        def encode_text(self, text: Tensor, /, *, normalize: bool) -> Tensor:
            return torch.stack([text[:, 0].cos(), text[:, 0].sin()], dim=1)

    found = text_embeddings(Encoder(), padded, ["abc", "a"])
    lengths = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(found, torch.stack([lengths.cos(), lengths.sin()], dim=1))
