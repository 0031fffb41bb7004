"""Prompts: words, tokens, and the encoder of them."""

import pytest
import torch

from fastdiff.models.text import PADDING, TextConfig, TextEncoder, Tokenizer, words_of


def test_words():
    assert words_of("Red  Apple!") == ["red", "apple"]
    assert words_of("Côte d'Ivoire") == ["cote", "d", "ivoire"]
    assert words_of("keycap #") == ["keycap", "#"]
    assert words_of("medium-dark skin tone") == ["medium", "dark", "skin", "tone"]


def test_tokens():
    tokenizer = Tokenizer.of(["red apple", "green apple", "ghost"])
    assert tokenizer.words == ("apple", "ghost", "green", "red")
    assert tokenizer.tokens("Apple, red") == [1, 4]
    assert tokenizer.tokens("ghost") == [2, PADDING]
    assert tokenizer.tokens(None) == tokenizer.tokens("") == [PADDING, PADDING]


def test_prompts_that_are_refused():
    tokenizer = Tokenizer.of(["red apple", "maple leaf"])
    with pytest.raises(ValueError, match="unknown word 'aple'; did you mean 'maple' or 'apple'"):
        tokenizer.tokens("red aple")
    with pytest.raises(ValueError, match="a prompt has at most 2 words, got 3"):
        tokenizer.tokens("red apple leaf")
    with pytest.raises(ValueError, match="has no words"):
        tokenizer.tokens("!?")


def test_encoder():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(words=5, length=3, width=8, heads=2))
    tokens = torch.tensor([[1, 2, 0], [0, 0, 0], [2, 1, 0]])
    context, pooled = encoder(tokens)
    assert context.shape == (3, 3, 8)
    assert torch.allclose(pooled[0], context[0, :2].mean(0), atol=1e-6)
    assert torch.allclose(pooled[1], context[1].mean(0), atol=1e-6)
    assert not torch.allclose(pooled[0], pooled[2])  # the order counts
    with pytest.raises(ValueError, match=r"tokens must be \(B, 3\), got \(1, 2\)"):
        encoder(torch.tensor([[1, 2]]))


def test_a_tokenizer_with_a_further_word():
    tokenizer = Tokenizer.of(["red apple", "ghost"])
    larger = tokenizer.with_word("zork")
    assert larger.tokens("red zork") == [tokenizer.tokens("red")[0], 4]
    with pytest.raises(ValueError, match="unknown word 'zork'"):
        tokenizer.tokens("red zork")
    with pytest.raises(ValueError, match="the word 'ghost' is known already"):
        tokenizer.with_word("ghost")
    for wrong in ("two words", "Zork", "", "<zork>"):
        with pytest.raises(ValueError, match="word must be one word of a-z, 0-9"):
            tokenizer.with_word(wrong)


@pytest.mark.parametrize("trained", [False, True])
def test_an_encoder_with_a_further_token(trained):
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(words=5, length=3, width=8, heads=2)).double().requires_grad_(trained)
    known = torch.tensor([[1, 5, 0], [0, 0, 0]])
    before, _ = encoder(known)
    encoder.add_token(encoder.tokens.weight[2])
    assert encoder.config.words == 6
    assert encoder.tokens.weight.dtype == torch.float64
    assert encoder.tokens.weight.requires_grad == trained
    assert torch.equal(encoder(known)[0], before)
    assert torch.equal(encoder(torch.tensor([[1, 6, 0]]))[0], encoder(torch.tensor([[1, 2, 0]]))[0])
