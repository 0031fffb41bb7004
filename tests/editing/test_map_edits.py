"""The controller of prompt-to-prompt: its fused attention gives what the paper's edit of maps gives."""

import itertools

import pytest
import torch
from conftest import relative_error

from fastdiff.editing import Tokens, cross_attention_control, prompt_edit
from fastdiff.models.parts import attention as seam
from fastdiff.models.parts.attention import Controller, Masked, Place, controlled
from fastdiff.models.parts.transformer import CrossAttention

IDS = {word: number for number, word in enumerate(["red", "big", "blue", "heart", "house"], start=2)}
LENGTH = 7
CROSS, SELF = Place("layer", "cross", (3, 3)), Place("layer", "self", (3, 3))


def tokens(prompt):
    words = tuple(prompt.split())
    return Tokens(words, (0, *(IDS[word] for word in words), 1), ("", *words, ""))


def edit_of(*prompts, **options):
    return prompt_edit([tokens(prompt) for prompt in prompts], steps=10, length=LENGTH, **options)


EDITS = {
    "replace": lambda: edit_of("red heart", "blue heart", "red house", edit="replace"),
    "replace-by-word": lambda: edit_of("red heart", "blue heart", edit="replace", cross={"default_": 0.8, "blue": 0.1}),
    "replace-weighted": lambda: edit_of("red heart", "blue heart", edit="replace", weights={"heart": 3.0}),
    "refine": lambda: edit_of("red heart", "big red heart", "red big heart house", weights={"big": 2.0}),
    "reweight": lambda: edit_of("red heart", "red heart", edit="reweight", weights={"red": -1.0}),
    "nothing": lambda: edit_of("red heart", "blue heart", edit="replace", cross=0.0, self_attention=0.0),
    "bloc97": lambda: cross_attention_control(
        [0, 2, 5, 1, 1, 1, 1], [0, 3, 2, 5, 1, 1, 1], steps=10, token_weights={1: 2.0}
    ),
    "bloc97-weights": lambda: cross_attention_control(
        [0, 2, 5, 1, 1, 1, 1], [0, 4, 5, 1, 1, 1, 1], steps=10, token_weights={1: 0.0}, cross=0.0
    ),
}


def inputs(rows, keys, dtype):
    generator = torch.Generator().manual_seed(rows + keys)
    return [torch.randn(rows, 2, n, 4, generator=generator, dtype=dtype) for n in (9, keys, keys)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", EDITS)
def test_fused_is_what_the_edited_maps_give(name, dtype, bound):
    """In a step with the edit and in one after it, with the unconditional half and without."""
    edit = EDITS[name]()
    changed = 0
    for edit.step, halves, place in itertools.product((1, 9), (1, 2), (CROSS, SELF)):
        q, k, v = inputs(halves * edit.prompts, LENGTH if place is CROSS else 9, dtype)
        if edit.wants(place):
            found = edit.attend(place, q, k, v)
            assert relative_error(found, Controller.attend(edit, place, q, k, v)) < bound
            plain = seam.attention(q, k, v)
            assert torch.equal(found[0], plain[0])  # the source
            assert torch.equal(found[edit.prompts :], plain[edit.prompts :])
            changed += relative_error(found, plain) > 1e-2
    assert changed or name == "nothing"


def test_maps_are_made_of_kept_layers_alone(monkeypatch):
    made = []
    whole = seam.attention

    def spied(*args, **options):
        made.append(options.get("return_maps", False))
        return whole(*args, **options)

    monkeypatch.setattr(seam, "attention", spied)
    monkeypatch.setattr("fastdiff.editing.map_edits.attention", spied)
    edit = EDITS["refine"]()
    for place, keys in ((CROSS, LENGTH), (SELF, 9)):
        edit.attend(place, *inputs(6, keys, torch.float32))
    assert made
    assert not any(made)
    edit.keep = lambda place: place.kind == "cross"
    made.clear()
    edit.attend(CROSS, *inputs(6, LENGTH, torch.float32))
    assert made == [True]
    assert edit.sums["layer"].shape == (3, 2, 9, LENGTH)


def test_self_attention_of_many_pixels_is_left_alone():
    """Also where a layer does not tell its size."""
    edit = edit_of("red heart", "blue heart", edit="replace", max_self_pixels=8)
    place, given = Place("layer", "self", ()), inputs(4, 9, torch.float32)
    assert torch.equal(edit.attend(place, *given), seam.attention(*given))


def test_a_weight_of_nothing_leaves_nothing():
    edit = cross_attention_control([2] * 3, [2] * 3, steps=2, token_weights=dict.fromkeys(range(3), 0.0), cross=0.0)
    q, k, v = inputs(2, 3, torch.float32)
    out = edit.attend(CROSS, q, k, v)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(out[0], seam.attention(q, k, v)[0])


@torch.no_grad()
def test_a_mask_of_the_context_holds():
    """Tokens that are left out have no part in the edited maps."""
    torch.manual_seed(0)
    layer = CrossAttention(8, 2, 4, context_channels=6, dropout=0.0)
    x, context = torch.randn(2, 9, 8), torch.randn(2, LENGTH, 6)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[:, 4:] = False
    edit = edit_of("red heart", "blue heart", edit="replace")
    edit.step = 1
    with controlled(layer, edit):
        found = layer(x, Masked(context, mask), (3, 3))
        whole = layer(x, context, (3, 3))
        cut = context.clone()
        cut[:, 4:] = 100.0
        assert torch.equal(layer(x, Masked(cut, mask), (3, 3)), found)
    assert relative_error(found[0], layer(x, Masked(context, mask), (3, 3))[0]) < 1e-5
    assert relative_error(found, whole) > 1e-2


def test_batches_and_contexts_that_do_not_fit():
    edit = EDITS["replace"]()
    edit.step = 1
    with pytest.raises(ValueError, match="3 prompts need a batch of as many, got 4 rows of maps at layer"):
        edit.attend(CROSS, *inputs(4, LENGTH, torch.float32))
    with pytest.raises(ValueError, match="contexts of 7 tokens, got 5 at layer"):
        edit.attend(CROSS, *inputs(3, 5, torch.float32))
