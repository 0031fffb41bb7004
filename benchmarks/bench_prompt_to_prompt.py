"""Prompt-to-prompt: what an edit costs beside a guided run of as many pictures without one.

    python benchmarks/bench_prompt_to_prompt.py

`test_run` edits a picture of emoji-ldm-64: two prompts, with and without a blend. Both runs take turns; before that the
source's picture is held to the one without an edit. An optimized network runs as it is written while attention is
edited, and is compared with its own compiled run. `test_layer` is one attention of Stable Diffusion's sizes: the edit
on the values, as it runs, and the edit of the maps. Ratios are times over the plain run's; 1.35 is wanted of a run.
"""

import pytest
import torch

import fastdiff
from fastdiff import editing
from fastdiff.bench.heap import run_benchmark
from fastdiff.bench.timing import interleave
from fastdiff.models.parts.attention import Controller, Place
from fastdiff.ops import attention

WANTED = 1.35  # times the plain run, at most
STEPS, SEED = 10, 3
PROMPTS = {"replace": ("red heart", "blue heart"), "refine": ("red heart", "red heart with arrow")}
LAYERS = {
    "cross 64x64": ("cross", 4096, 77, 40),
    "cross 32x32": ("cross", 1024, 77, 80),
    "self 16x16": ("self", 256, 256, 160),
}


@pytest.fixture
def turns(benchmark, capsys, request):
    """turns(runs): the ratio of each to "plain", printed and kept."""

    def timed(runs, rounds, wanted=None):
        times = interleave(runs, rounds=rounds, warmup=1)
        ratios = {name: time.median / times["plain"].median for name, time in times.items()}
        benchmark.extra_info.update(ratios=ratios, threads=torch.get_num_threads())
        benchmark.pedantic(runs["edit"], rounds=3)
        with capsys.disabled():
            print(f"\n{request.node.name}, {torch.get_num_threads()} threads")
            for name, time in times.items():
                median, low, high = (1e3 * value for value in (time.median, time.p20, time.p80))
                goal = ""
                if name == "edit" and wanted is not None:
                    goal = f", {'' if ratios[name] <= wanted else 'NOT '}the wanted {wanted}x"
                print(f"  {name:<10} {median:9.2f} ms ({low:.2f} to {high:.2f}), {ratios[name]:.2f}x{goal}")

    return timed


@pytest.mark.parametrize("network", ["as written", "optimized"])
@pytest.mark.parametrize("blended", [False, True], ids=["alone", "blended"])
@pytest.mark.parametrize("kind", PROMPTS)
@torch.no_grad()
def test_run(turns, kind, blended, network):
    model = fastdiff.load("emoji-ldm-64")
    info, prompts = model.info, PROMPTS[kind]
    length = info.tokenizer.length
    tokens = [editing.tokens_of(info.tokenizer, prompt) for prompt in prompts]
    edit = editing.prompt_edit(tokens, steps=STEPS, length=length, edit=kind, cross=0.8, self_attention=0.4)
    blend = editing.LocalBlend.of(tokens, ["heart"] * 2, length, (8, 8), threshold=0.8) if blended else None
    given = dict(cond=info.condition(prompts, 2), uncond=info.condition(None, 1), guidance=3.0)
    times = editing.stepping.times_of(info.schedule, None, STEPS)
    if network == "optimized":
        model = fastdiff.optimize(model)

    def plain():
        return fastdiff.sample(model, (2, *info.shape), solver="ddim", grid=times, seed=[SEED] * 2, **given)

    def edited():
        return editing.prompt_to_prompt(model, (1, *info.shape), edit, blend=blend, seed=SEED, **given)

    before, after = plain(), edited()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-4)
    assert not torch.equal(after[1], before[1])
    turns({"plain": plain, "edit": edited}, rounds=9, wanted=WANTED)


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_layer(turns, layer, kind):
    where, pixels, keys, channels = LAYERS[layer]
    words = [prompt.split() for prompt in PROMPTS[kind]]
    known = sorted({word for each in words for word in each})
    tokens = [editing.Tokens(tuple(each), tuple(map(known.index, each)), tuple(each)) for each in words]
    edit = editing.prompt_edit(tokens, steps=STEPS, length=77, edit=kind)
    place = Place(layer, where, (pixels,))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 8, n, channels, generator=generator) for n in (pixels, keys, keys))
    runs = {
        "plain": lambda: attention(q, k, v),
        "edit": lambda: edit.attend(place, q, k, v),
        "of maps": lambda: Controller.attend(edit, place, q, k, v),
    }
    torch.testing.assert_close(runs["edit"](), runs["of maps"](), rtol=0, atol=1e-5)
    turns(runs, rounds=9)


if __name__ == "__main__":
    raise SystemExit(run_benchmark(__file__))
