"""Prompt-to-prompt on a small U-Net with a text, and the alignment of prompts."""

import pytest
import torch
from conftest import relative_error

import fastdiff
from fastdiff.editing import (
    LocalBlend,
    Tokens,
    cross_attention_control,
    prompt_edit,
    prompt_to_prompt,
    repaint,
    replacement,
    tokens_of,
)
from fastdiff.editing.alignment import refine_mapper, replace_mapper
from fastdiff.models.ldm import LDMConfig, LDMUNet
from fastdiff.models.text import Tokenizer

TOKENIZER = Tokenizer.of(["red heart", "big blue heart house"])
LENGTH = 4
STEPS = 4
COMMON = dict(schedule="scaled-linear", prediction="eps")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LDMConfig(
        in_channels=4, out_channels=4, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(1, 2), num_heads=2, use_spatial_transformer=True, context_dim=8,
    )  # fmt: skip
    network = LDMUNet(config).eval().requires_grad_(False)
    for parameter in network.parameters():  # the last layers of blocks begin as zeros
        parameter.copy_(parameter + 0.05 * torch.randn_like(parameter))
    return network


def contexts(*prompts):
    table = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    return {"context": torch.stack([table[TOKENIZER.tokens(prompt)] for prompt in prompts])}


def edited(model, *prompts, blend=None, guidance=3.0, solver="ddim", **options):
    edit = prompt_edit(prompts, steps=STEPS, length=LENGTH, tokenizer=TOKENIZER, **options)
    return prompt_to_prompt(
        model, (1, 4, 8, 8), edit, cond=contexts(*prompts), uncond=contexts(""), guidance=guidance, blend=blend,
        solver=solver, **COMMON,
    )  # fmt: skip


def plainly(model, *prompts, solver="ddim"):
    one = fastdiff.noise.CounterNoise.of(0, 1).initial((1, 4, 8, 8), torch.float32)
    times = [1.0, 0.75, 0.5, 0.25, 0.001]
    given = dict(cond=contexts(*prompts), uncond=contexts(""), guidance=3.0, seed=[0] * len(prompts), **COMMON)
    return fastdiff.sample(model, one.expand(len(prompts), 4, 8, 8).contiguous(), solver=solver, grid=times, **given)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
@pytest.mark.parametrize("edit", ["replace", "refine", "reweight"])
def test_identical_prompts_change_nothing(model, edit, solver):
    """To the bit, and the source is as without edits, to rounding."""
    weights = {"red": 1.0} if edit == "reweight" else None
    everywhere = dict(cross=1.0, self_attention=1.0, max_self_pixels=64)
    x = edited(model, "red heart", "red heart", edit=edit, weights=weights, solver=solver, **everywhere)
    assert torch.equal(x[1], x[0])
    assert relative_error(x, plainly(model, "red heart", "red heart", solver=solver)) < 1e-4


SOLVERS = ["dpmpp-2m", "unipc-3", "heun", "dpmpp-2s", "dpm-solver-2", "ddpm", "dpmpp-2m-sde"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_solver_with_fixed_steps(model, solver):
    """Without a change of the maps it is the plain run. Steps are counted, not calls."""
    prompts = ("red heart", "blue heart")
    plain = plainly(model, *prompts, solver=solver)
    assert relative_error(edited(model, *prompts, solver=solver, cross=0.0, self_attention=0.0), plain) < 1e-4
    x = edited(model, *prompts, solver=solver, edit="replace", cross=0.8, self_attention=0.5)
    assert relative_error(x[0], plain[0]) < 1e-4
    assert relative_error(x[1], plain[1]) > 1e-3
    seen = []
    edit = prompt_edit(prompts, steps=STEPS, length=LENGTH, tokenizer=TOKENIZER, cross=0.5, self_attention=0.5)
    edit.keep = lambda place: seen.append(edit.step) or False
    given = dict(cond=contexts(*prompts), uncond=contexts(""), guidance=3.0, **COMMON)
    prompt_to_prompt(model, (1, 4, 8, 8), edit, solver=solver, **given)
    starts = sorted(set(seen))
    assert seen == sorted(seen)
    if fastdiff.solvers.SOLVERS[solver].spans is None:
        assert starts == list(range(STEPS))
    else:
        assert starts[0] == 0
        assert starts[-1] < STEPS


def test_the_source_is_as_without_edits_and_the_edit_is_not(model):
    prompts = ("red heart", "blue heart")
    x, alone = edited(model, *prompts, edit="replace", cross=0.8, self_attention=0.5), plainly(model, *prompts)
    assert relative_error(x[0], alone[0]) < 1e-4
    assert relative_error(x[1], alone[1]) > 1e-2
    nothing = edited(model, *prompts, edit="replace", cross=0.0, self_attention=0.0)
    assert relative_error(nothing, alone) < 1e-4


def test_weights_change_the_picture_more_the_larger_they_are(model):
    changes = []
    for weight in (1.0, 2.0, 5.0):
        x = edited(model, "red heart", "red heart", edit="reweight", weights={"red": weight}, cross=1.0)
        changes.append(relative_error(x[1], x[0]))
    assert changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
def test_a_blend_keeps_the_rest_to_the_bit(model, solver):
    prompts = [tokens_of(TOKENIZER, p) for p in ("red heart", "blue heart")]
    blend = LocalBlend.of(prompts, ["red", "blue"], LENGTH, (8, 8), threshold=0.9)
    x = edited(model, "red heart", "blue heart", edit="replace", blend=blend, solver=solver)
    same = (x[0] == x[1]).all(0)
    assert 0 < int(same.sum()) < 64
    with pytest.raises(ValueError, match=r"no cross-attention has maps of \(5, 5\); there are \[\(4, 4\), \(8, 8\)\]"):
        edited(model, "red heart", "blue heart", blend=LocalBlend.of(prompts, ["red", "blue"], LENGTH, (5, 5)))


def test_the_unconditional_half_may_change_with_the_step(model):
    prompts = ("red heart", "blue heart")
    edit = prompt_edit(prompts, steps=STEPS, length=LENGTH, tokenizer=TOKENIZER)
    common = dict(cond=contexts(*prompts), guidance=3.0, **COMMON)
    one = prompt_to_prompt(model, (1, 4, 8, 8), edit, uncond=contexts(""), **common)
    many = prompt_to_prompt(model, (1, 4, 8, 8), edit, uncond=[contexts("") for _ in range(STEPS)], **common)
    assert torch.equal(one, many)
    other = [contexts("house"), *[contexts("")] * (STEPS - 1)]
    assert not torch.equal(one, prompt_to_prompt(model, (1, 4, 8, 8), edit, uncond=other, **common))


def test_bloc97s_weights_hold_without_injection(model):
    source, target = TOKENIZER.tokens("red heart"), TOKENIZER.tokens("blue heart")
    common = dict(steps=STEPS, cross=0.0, self_attention=0.0)
    given = dict(cond=contexts("red heart", "blue heart"), uncond=contexts(""), guidance=3.0, **COMMON)
    plain, weighted = (
        prompt_to_prompt(model, (1, 4, 8, 8), cross_attention_control(source, target, **common, **w), **given)
        for w in ({}, {"token_weights": {0: 4.0}})
    )
    assert relative_error(plain, plainly(model, "red heart", "blue heart")) < 1e-4
    assert torch.equal(plain[0], weighted[0])
    assert relative_error(weighted[1], plain[1]) > 1e-3


def test_ancestral_noise_is_shared(model):
    x = prompt_to_prompt(
        model, (1, 4, 8, 8),
        prompt_edit(("red heart", "red heart"), steps=STEPS, length=LENGTH, tokenizer=TOKENIZER),
        solver=fastdiff.solvers.get_solver("ddim", eta=1.0), cond=contexts("red heart", "red heart"),
        uncond=contexts(""), **COMMON,
    )  # fmt: skip
    assert relative_error(x[1], x[0]) < 1e-5


def test_swapped_words_keep_what_follows_them():
    words = ("a", "red", "fox", "runs")
    source = Tokens(words, (0, 2, 3, 4, 5, 1), ("", "a", "red", "fox", "runs", ""))
    target = Tokens(("a", "white", "fox", "runs"), (0, 2, 6, 7, 4, 5, 1), ("", "a", "whit", "e", "fox", "runs", ""))
    aligned = replace_mapper(source, target, 9)
    assert aligned[4, 5] == 1  # runs
    assert aligned[2, 2] == aligned[2, 3] == 0.5
    assert replace_mapper(source, target, 9, tail="diagonal")[5, 5] == 1
    assert refine_mapper(source, target, 9).tolist() == [0, 1, -1, -1, 3, 4, 5, 7, 8]


class Pieces:
    """As transformers' tokenizers are: pieces of two letters."""

    all_special_ids = (0, 1)

    def __init__(self):
        self.known = ["", ""]

    def __call__(self, prompt):
        pieces = [word[i : i + 2] for word in prompt.split() for i in range(0, len(word), 2)]
        self.known += [piece for piece in dict.fromkeys(pieces) if piece not in self.known]
        return {"input_ids": [0, *(self.known.index(piece) for piece in pieces), 1]}

    def decode(self, ids):
        return self.known[ids[0]]


def test_words_are_found_in_the_tokens_of_any_tokenizer():
    tokens = tokens_of(Pieces(), "red heart red")
    assert tokens.positions() == [[1, 2], [3, 4, 5], [6, 7]]
    assert tokens.of("red") == [1, 2, 6, 7]
    assert tokens_of(TOKENIZER, "Red heart!").positions() == [[0], [1]]
    cut = Tokens(("red", "heart"), (0, 2), ("", "red"))
    with pytest.raises(ValueError, match="cannot be aligned with the words of 'red heart'"):
        cut.positions()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (("red heart", "big blue heart"), {"edit": "replace"}, "as many words"),
        (("red heart", "blue heart"), {"edit": "reweight", "weights": {"blue": 2.0}}, "takes the source prompt again"),
        (("red heart", "blue heart"), {"weights": {"bleu": 2.0}}, "did you mean 'blue'"),
        (("red heart", "blue heart"), {"cross": {"red": 0.5}}, "unknown word 'red'"),
        (("red heart", "blue heart"), {"cross": (0.8, 0.2)}, "bounds must be"),
        (("red heart",), {}, "a source and edits"),
        (("red heart", "blue heart"), {"edit": "swap"}, "unknown edit"),
        (("red heart", "blue heart"), {"length": 1}, "2 tokens, and the model's context 1"),
    ],
)
def test_prompts_that_do_not_fit(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        prompt_edit(prompts, **{"steps": STEPS, "length": LENGTH, "tokenizer": TOKENIZER, **options})


def test_runs_that_do_not_fit(model):
    edit = prompt_edit(("red heart", "blue heart"), steps=STEPS, length=LENGTH, tokenizer=TOKENIZER)
    given = dict(cond=contexts("red heart", "blue heart"), uncond=contexts(""), **COMMON)
    for changed, message in (
        (dict(x_init_or_shape=(2, 4, 8, 8)), "one noise for all prompts"),
        (dict(cond=contexts("red heart")), "one row for each of 2 prompts"),
        (dict(uncond=[contexts("")]), r"one a step \(4\)"),
        (dict(solver="rk45"), "needs a solver that takes the grid's steps, and 'rk45'"),
        (dict(solver=repaint()), "needs a solver that takes the grid's steps, and 'repaint, ddpm'"),
        (dict(solver=replacement()), r"reads the tensor 'known', and this run has \[\]"),
        (dict(grid=[1.0, 0.5]), "the edit is for 4 steps"),
        (dict(uncond={"context": torch.zeros(1, 2, 8)}), "of one length"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_to_prompt(model, edit=edit, **{"x_init_or_shape": (1, 4, 8, 8), **given, **changed})
