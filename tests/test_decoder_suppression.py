"""Tokens that are never said: the scores are those of Transformers, the work is done once."""

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinLengthLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperForConditionalGeneration,
)

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.decoders import SuppressTokens, SuppressTokensAtBegin, with_masks_made_once

TOKENS = [1, 3, 99, 250, -1]  # 250 and -1 are no tokens of the vocabulary


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("length", [3, 4])
def test_scores_are_those_of_transformers(rows, length):
    ids = torch.zeros(rows, length, dtype=torch.long)
    for ours, theirs in (
        (SuppressTokens(TOKENS), SuppressTokensLogitsProcessor(TOKENS)),
        (SuppressTokensAtBegin(TOKENS, 3), SuppressTokensAtBeginLogitsProcessor(TOKENS, 3)),
    ):
        for vocabulary in (100, 100, 260):  # of another vocabulary, the mask is made anew
            scores = torch.randn(rows, vocabulary)
            given = scores.clone()
            found = ours(ids, scores)
            assert torch.equal(found, theirs(ids, given))
            assert torch.equal(scores, given)


def test_what_transformers_made_is_replaced_and_nothing_else():
    class Own(SuppressTokensLogitsProcessor):
        pass

    begin = SuppressTokensAtBeginLogitsProcessor([5, 6], 4)
    given: list[LogitsProcessor] = [
        begin, SuppressTokensLogitsProcessor([7]), Own([8]), MinLengthLogitsProcessor(3, 2)
    ]  # fmt: skip
    found = with_masks_made_once(given)
    assert [type(one) for one in found] == [SuppressTokensAtBegin, SuppressTokens, Own, MinLengthLogitsProcessor]
    assert (found[0].begin_suppress_tokens.tolist(), found[0].begin_index) == ([5, 6], 4)
    assert found[1].suppress_tokens.tolist() == [7]
    assert found[2:] == given[2:]
    assert with_masks_made_once(None) is None


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}, {"return_timestamps": True}])
def test_generate_says_what_stock_says_and_makes_each_mask_once(stock_whisper, make_speech, monkeypatch, settings):
    stock = WhisperForConditionalGeneration.from_pretrained(stock_whisper).eval()
    ours = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention").eval()
    features = torch.randn(2, stock.config.num_mel_bins, 3000, generator=torch.Generator().manual_seed(1))
    made = []
    isin = torch.isin

    def counted(elements, *rest, **options):
        made.append(elements.numel() >= stock.config.vocab_size)
        return isin(elements, *rest, **options)

    # what random weights say most is forbidden, so that the rules matter
    free = stock.generate(features, language="en", max_new_tokens=12, suppress_tokens=None, **settings)
    forbidden = sorted({*free[:, -6:].flatten().tolist()} - {stock.config.eos_token_id})
    said = []
    for model in (stock, ours):
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "isin", counted)
            made.clear()
            found = model.generate(
                features, language="en", max_new_tokens=24, suppress_tokens=forbidden, **({"num_beams": 1} | settings)
            )
        said.append((found, sum(made)))
    (theirs, often), (words, seldom) = said
    assert torch.equal(words, theirs)
    assert not set(words[:, 4:].flatten().tolist()) & set(forbidden)
    assert seldom <= 2 < often
