"""Several gradients beside classifier-free guidance, and gradients of other networks."""

import pytest
import torch
from conftest import relative_error
from gaussian import Gaussian, states
from small_network import Net
from tape import both

from fastdiff import CFG, Classifier, Program, run, sample, trace
from fastdiff.engine.direct import integrate
from fastdiff.grids import make_grid
from fastdiff.guidance import Gradients
from fastdiff.guidance.by_network import gradient_of, image_similarity, point_of, style_similarity, text_similarity
from fastdiff.noise import CounterNoise
from fastdiff.prediction import PREDICTIONS
from fastdiff.runtime import graphs
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import get_solver

SCHEDULE = VPDiscrete.linear()
DATA = Gaussian(SCHEDULE)
COMMON = dict(schedule=SCHEDULE, prediction="eps")


def model(x, t, shift):
    return DATA.network("eps", lambda n: (n + 1) / 1000)(x, t) + shift[:, None]


def first(x, t):
    return 0.3 * torch.cos(x) * (1 + t[:, None] / 1000)


def second(x, t):
    return -0.2 * x


def conditions():
    return dict(cond={"shift": torch.full((16,), 0.1)}, uncond={"shift": torch.full((16,), -0.05)})


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp-2m", "stsp"])
def test_the_sum_of_gradients_is_one_gradient(solver):
    both = Gradients({"first": Classifier(first, 1.5), "second": second}, cfg=3.0)
    summed = Gradients({"sum": lambda x, t: 1.5 * first(x, t) + second(x, t)}, cfg=CFG(3.0))
    common = dict(steps=12, solver=solver, grid="uniform", seed=1, **conditions(), **COMMON)
    x = sample(model, states(), guidance=both, **common)
    assert relative_error(x, sample(model, states(), guidance=summed, **common)) < 1e-12
    assert relative_error(x, sample(model, states(), guidance=3.0, **common)) > 1e-2
    noise = [CounterNoise.of(1, 16).draw(n, x.shape, x.dtype) for n in range(12)]
    direct = integrate(
        get_solver(solver), model, states(), SCHEDULE, make_grid("uniform", SCHEDULE, 12), PREDICTIONS["eps"],
        draw=noise.__getitem__, guidance=both, **conditions(),
    )  # fmt: skip
    assert relative_error(x, direct) < 1e-10


def test_one_gradient_is_a_classifier():
    common = dict(steps=8, solver="ddpm", seed=1, cond=conditions()["cond"], **COMMON)
    alone = sample(model, states(), guidance=Classifier(first, 1.5), **common)
    assert torch.equal(alone, sample(model, states(), guidance=Gradients({"x": Classifier(first, 1.5)}), **common))


def test_scales_of_each_sample_beside_gradients():
    common = dict(steps=8, solver="ddim", seed=1, **conditions(), **COMMON)
    terms = {"first": first}
    several = sample(model, states(), guidance=Gradients(terms, CFG([2.0] * 8 + [4.0] * 8)), **common)
    for part, scale in ((slice(8), 2.0), (slice(8, 16), 4.0)):
        one = sample(model, states(), guidance=Gradients(terms, scale), **common)
        assert relative_error(several[part], one[part]) < 1e-10


def test_an_adaptive_solver_takes_them():
    common = dict(solver="rk45", **conditions(), **COMMON)
    both = Gradients({"first": first, "second": second}, cfg=2.0)
    summed = Gradients({"sum": lambda x, t: first(x, t) + second(x, t)}, cfg=2.0)
    x, y = (sample(model, states(), guidance=guidance, **common) for guidance in (both, summed))
    assert relative_error(x, y) < 1e-10


def test_a_program_calls_them_by_name():
    both = Gradients({"first": first, "second": second})
    times = make_grid("uniform", SCHEDULE, 4)
    program = trace("ddim", SCHEDULE, times, "eps", guidance=both)
    assert [call.network for call in program.calls[:3]] == ["model", "first", "second"]
    again = Program.from_json(program.to_json())
    given = dict(gradients={"first": first, "second": second}, cond=conditions()["cond"])
    x = run(again, model, states(), **given)
    common = dict(solver="ddim", grid=times, cond=conditions()["cond"], **COMMON)
    assert torch.equal(x, sample(model, states(), guidance=both, **common))
    with pytest.raises(ValueError, match="calls 'second', got gradients"):
        run(again, model, states(), **{**given, "gradients": {"first": first}})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m"])
def test_the_engine_of_a_gpu_calls_them_by_name(on_cuda, solver, dtype):
    """Its stand-in on the CPU, to the bit. No graph is made, as what a function refers to may change unseen."""
    net, strength = Net(dtype), {"cosine": 1.0}

    def cosine(x, t):
        return strength["cosine"] * torch.cos(x)

    guidance = Gradients({"cosine": cosine, "towards": Classifier(second, 2.5)}, cfg=3.0)
    shifts = dict(cond={"shift": torch.full((2,), 0.3, dtype=dtype)}, uncond={"shift": torch.zeros(2, dtype=dtype)})
    common = dict(solver=solver, steps=6, seed=3, **shifts, **COMMON)
    samples = []
    for strength["cosine"] in (1.0, 1.0, 1.0, -1.0):
        ours, theirs = both(net, (2, 3, 8, 8), guidance=guidance, **common)
        assert torch.equal(ours, theirs)
        samples.append(ours)
    assert torch.equal(samples[0], samples[2])
    assert not torch.equal(samples[0], samples[3])
    assert graphs.explain(net) == []
    assert not torch.equal(ours, both(net, (2, 3, 8, 8), guidance=Gradients({"towards": second}, 3.0), **common)[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Gradients({}), ValueError, "at least one"),
        (lambda: Gradients({"model": first}), ValueError, "the network's name"),
        (lambda: Gradients({"a": 3.0}), TypeError, "must be a function"),
        (lambda: Gradients({"a": first}, cfg="2"), TypeError, "cfg must be"),
        (lambda: Gradients(first), TypeError, "map names"),
        (lambda: sample(model, (1, 4), guidance=Gradients({"a": first}, 2.0), **COMMON), ValueError, "needs uncond"),
        (lambda: text_similarity(lambda x, t: x, torch.ones(3)), TypeError, "must be features"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def features(x, t):
    return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3)), x[:, 0, 0, 0]], 1)


X = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.full((2,), 400.0, dtype=torch.float64)


def test_gradients_raise_what_they_are_of():
    text = torch.tensor([[0.2, 1.0, -0.5]], dtype=torch.float64)
    reference = X.flip(0)
    noise = lambda k: torch.zeros_like(reference)  # noqa: E731
    p = point_of(SCHEDULE, 400.0)
    assert p == SCHEDULE.point(0.401)
    of_reference = features(p.alpha * reference, T)
    cosine = torch.nn.functional.cosine_similarity
    pairs = {
        text_similarity(features, text): lambda x, t: cosine(features(x, t), text),
        image_similarity(features, reference, SCHEDULE, noise=noise): lambda x, t: cosine(features(x, t), of_reference),
    }
    for found, function in pairs.items():
        assert relative_error(found(X, T), gradient_of(function)(X, T)) < 1e-10


def test_style_is_of_each_picture_unless_across_the_batch():
    layers = lambda x, t: [x, x[:, :2].tanh()]  # noqa: E731
    given = dict(schedule=SCHEDULE, seed=3)
    each = style_similarity(layers, X.flip(0), **given)(X, T)
    changed = X.clone()
    changed[1] += 1
    assert torch.equal(style_similarity(layers, X.flip(0), **given)(changed, T)[0], each[0])
    across = style_similarity(layers, X.flip(0), across_batch=True, **given)
    assert not torch.equal(across(X, T)[0], across(changed, T)[0])
    one = [style_similarity(layers, X[:1], across_batch=b, **given)(X[1:], T[:1]) for b in (False, True)]
    assert relative_error(one[0], one[1]) < 1e-12


def test_the_noise_of_a_reference_begins_anew_with_each_run():
    similarity = image_similarity(features, X[:1], SCHEDULE, seed=0)
    runs = [[similarity(X, torch.full((2,), n)) for n in (900.0, 500.0, 100.0)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    assert not torch.equal(runs[0][0], runs[0][1])
