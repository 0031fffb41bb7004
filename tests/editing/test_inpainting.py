"""Inpainting as solvers: engines agree, what is known stays, a Gaussian's conditional law, and bad input."""

from collections import deque

import numpy as np
import pytest
import torch
from conftest import relative_error
from gaussian import correlated_eps
from small_network import Net

import fastdiff
from fastdiff import Program, editing
from fastdiff.engine.direct import integrate
from fastdiff.prediction import get_prediction
from fastdiff.process.noise import CounterNoise
from fastdiff.schedules import VE, VPDiscrete
from fastdiff.solvers import get_solver

SCHEDULE = VPDiscrete.linear()
TIMES = np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0])
FINE = np.append(np.linspace(1.0, 1e-2, 25), 0.0)  # as the released tables need: beta / 25 < 1
METHODS = {
    "replacement": editing.replacement(),
    "replacement, start": editing.replacement(level="start"),
    "multistep": editing.replacement("dpmpp-2m"),
    "palette": editing.palette(),
    "glide": editing.glide("dpmpp-2m"),
    "repaint": editing.repaint(jumps=editing.Jumps(2, 2)),
    "repaint, before": editing.repaint("ddim", editing.Jumps(3, 2), blend="before"),
    "imputation": editing.imputation(get_solver("predictor-corrector", corrector="langevin")),
    "imputation, released": editing.imputation(get_solver("predictor-corrector", discretization="released")),
}
KEEPING = [name for name in METHODS if "start" not in name and "before" not in name and "released" not in name]


def network(x, t):
    """Correlated, so that the known part has influence."""
    return (0.4 * x + 0.3 * x.roll(1, -1)).tanh()


def pictures(dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(batch, 3, 4, 5, dtype=torch.float64, generator=generator).to(dtype) * 2 - 1
    mask = torch.ones(batch, 1, 4, 5, dtype=dtype)
    mask[:, :, 1:3, 1:4] = 0
    return picture, mask


def times_of(method):
    return FINE if method.options.get("discretization") == "released" else TIMES


def inpaint(method, dtype=torch.float64, **others):
    picture, mask = pictures(dtype)
    return editing.inpaint(
        network,
        picture,
        mask,
        method=method,
        schedule=SCHEDULE,
        prediction="eps",
        grid=times_of(method),
        seed=5,
        **others,
    )


@pytest.mark.parametrize("name", METHODS)
def test_engines_agree(name):
    """To the bit: C++, the engine in PyTorch, and a Program that went through JSON."""
    ours = inpaint(METHODS[name])
    with fastdiff.use("reference"):
        assert torch.equal(ours, inpaint(METHODS[name]))
    picture, mask = pictures()
    program = Program.from_json(fastdiff.trace(METHODS[name], SCHEDULE, times_of(METHODS[name]), "eps").to_json())
    x = CounterNoise.of(5, 2).initial(picture.shape, torch.float32).double()
    known = torch.where(mask > 0, picture, 0.0)
    again = fastdiff.run(program, network, x, seed=5, tensors={"known": known, "mask": mask})
    assert torch.equal(ours, again)
    assert "tensor known in b" in str(program)
    assert "blend" in str(program)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["repaint", "glide", "replacement"])
def test_the_engine_of_a_gpu_agrees(on_cuda, name, dtype):
    """Launched, captured, and replayed with another picture and another hole: its stand-in on the CPU."""
    net = Net()
    for run in range(4):
        picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(run)).to(dtype) * 2 - 1
        mask = torch.ones(2, 1, 8, 8)
        mask[:, :, run : run + 3] = 0
        common = dict(method=METHODS[name], schedule=SCHEDULE, prediction="eps", grid=TIMES, seed=run)
        ours = editing.inpaint(net.to(dtype), picture, mask, **common)
        with fastdiff.use("reference"):
            assert torch.equal(ours, editing.inpaint(net, picture, mask, **common))


@pytest.mark.parametrize("name", METHODS)
def test_traced_runs_match_the_step_function(name, monkeypatch):
    """The step on tensors is the definition."""
    picture, mask = pictures()
    tensors = {"known": torch.where(mask > 0, picture, 0.0), "mask": mask.expand(picture.shape)}
    x = CounterNoise.of(5, 2).initial(picture.shape, torch.float32).double()
    draws = torch.randn(120, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    method, eps = METHODS[name], get_prediction("eps")
    times, draw = times_of(method), draws.__getitem__
    direct = integrate(method, network, x, SCHEDULE, times, eps, draw=draw, tensors=tensors)
    assert relative_error(inpaint(METHODS[name], noise=draws), direct) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KEEPING)
def test_what_is_known_is_kept_to_the_last_bit(name, dtype):
    picture, mask = pictures(dtype)
    result = inpaint(METHODS[name], dtype)
    kept = mask.expand(picture.shape) == 1
    assert torch.equal(result[kept], picture[kept])
    assert not torch.isclose(result[~kept], picture[~kept]).any()


def test_what_is_in_the_hole_has_no_influence():
    picture, mask = pictures()
    other = torch.where(mask > 0, picture, torch.nan)
    common = dict(method="replacement", solver="ddim", schedule=SCHEDULE, prediction="eps", steps=4, seed=1)
    ours = editing.inpaint(network, picture, mask, **common)
    assert torch.equal(ours, editing.inpaint(network, other, mask.bool(), **common))
    assert torch.equal(ours[1:], editing.inpaint(network, picture[1:], mask[1:], first_sample=1, **common))


def test_repaint_finds_the_conditional_law_of_a_gaussian():
    """Two standard normals with correlation 0.8: of the second, given the first. Replacement alone does not find it."""
    picture = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4000, 2)
    mask = torch.tensor([1, 0])
    errors = {}
    for name, method in (("repaint", editing.repaint(jumps=editing.Jumps(5, 6))), ("replacement", "replacement")):
        x = editing.inpaint(
            correlated_eps(SCHEDULE, 0.8), picture, mask, method=method, schedule=SCHEDULE, prediction="eps", steps=200,
            seed=2,
        )[:, 1]  # fmt: skip
        errors[name] = abs(float(x.mean()) - 0.8)
        if name == "repaint":
            assert abs(float(x.std()) - 0.6) < 0.06
    assert errors["repaint"] < 0.07  # of 0.8: it falls with the number of steps
    assert errors["repaint"] < errors["replacement"] / 4


def test_colorization_keeps_the_grey_value():
    grey = (torch.rand(2, 1, 4, 4, dtype=torch.float64) * 2 - 1).expand(2, 3, 4, 4)
    tensors = editing.colorization_tensors(grey)
    solver = editing.imputation(matrix=editing.GREY)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    schedule = VE(0.01, 5.0)
    result = fastdiff.sample(
        lambda x, t: -x / (1 + t[0] ** 2), x, schedule=schedule, prediction="score", solver=solver, steps=8, seed=0,
        grid=np.append(np.linspace(1, 1e-3, 8), 0.0), tensors=tensors,
    )  # fmt: skip
    assert torch.allclose(result.mean(1), grey[:, 0], atol=1e-12)
    assert (result - grey).abs().mean() > 0.1
    matrix = torch.tensor(editing.GREY, dtype=torch.float64)
    assert torch.allclose(matrix.T @ matrix, torch.eye(3, dtype=torch.float64), atol=1e-15)


def test_a_soft_mask_blends():
    x, known = torch.randn(2, 3), torch.randn(2, 3)
    mask = torch.tensor([0.0, 0.25, 1.0])
    blend = fastdiff.program.TRANSFORMS["blend"]
    assert torch.equal(blend(x, known, mask)[:, 0], x[:, 0])
    assert torch.equal(blend(x, known, mask)[:, 2], known[:, 2])
    assert torch.allclose(blend(x, known, mask)[:, 1], 0.25 * known[:, 1] + 0.75 * x[:, 1])


def test_equal_methods_are_traced_once():
    assert editing.repaint("ddim") == editing.repaint("ddim")
    assert hash(editing.glide()) == hash(editing.glide())
    assert editing.repaint("ddim") != editing.repaint("ddim", editing.Jumps(2, 2))
    assert editing.replacement(get_solver("ddim", eta=0.5)) != editing.replacement("ddim")


def test_a_multistep_solver_begins_anew_after_a_jump():
    history = deque([1, 2], maxlen=2)
    point = SCHEDULE.point
    editing.repaint("dpmpp-2m").step(None, torch.ones(1), point(0.2), point(0.4), history, noise=lambda: torch.ones(1))
    assert not history


PICTURE, MASK = pictures()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PICTURE, MASK[..., :4]), ValueError, r"mask must have the picture's size \(2, 3, 4, 5\), got \(2, 1, 4, 4\)"),
        ((PICTURE, MASK[None]), ValueError, "mask must have the picture's size"),
        ((PICTURE, torch.ones_like(MASK)), ValueError, "mask has no hole"),
        ((PICTURE, 2 * MASK), ValueError, r"mask must lie in \[0, 1\]"),
        ((PICTURE, MASK.numpy()), TypeError, "mask must be a tensor"),
        ((PICTURE.numpy(), MASK), TypeError, "picture must be a tensor"),
        ((127 * PICTURE, MASK), ValueError, r"picture must lie in \[-1, 1\] where it is known, got -12.* limits=None"),
        ((PICTURE / 0, MASK), ValueError, "NaN or infinite where it is known"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_called(arguments, error, message):
    def model(x, t):
        raise AssertionError("called")

    with pytest.raises(error, match=message):
        editing.inpaint(model, *arguments, schedule=SCHEDULE, prediction="eps")


def test_bad_methods_are_refused():
    common = dict(schedule=SCHEDULE, prediction="eps")
    with pytest.raises(ValueError, match="unknown method 'repant'; did you mean 'repaint'"):
        editing.inpaint(network, PICTURE, MASK, method="repant", **common)
    with pytest.raises(ValueError, match="needs a solver with fixed steps"):
        editing.replacement("rk45")
    with pytest.raises(ValueError, match="imputation needs a predictor-corrector sampler, not 'ddim'"):
        editing.imputation("ddim")
    with pytest.raises(ValueError, match="matrix must have an inverse"):
        editing.imputation(matrix=[[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="jump_length must be a whole number >= 1, got 0"):
        editing.Jumps(0)
    with pytest.raises(ValueError, match=r"reads the tensors \['known', 'mask'\], and tensors holds \['mask'\]"):
        fastdiff.sample(network, PICTURE, solver=editing.glide(), tensors={"mask": MASK}, **common)
    with pytest.raises(ValueError, match=r"solver 'ddim' reads the tensors \[\]"):
        fastdiff.sample(network, PICTURE, solver="ddim", tensors={"mask": MASK}, **common)
    with pytest.raises(ValueError, match=r"tensors\['mask'\] must have the state's shape"):
        fastdiff.sample(network, PICTURE, solver=editing.glide(), tensors={"mask": MASK[..., :3]}, **common)


def test_a_program_does_not_write_to_its_tensors():
    text = fastdiff.trace(editing.palette("ddim"), SCHEDULE, TIMES, "eps").to_json()
    with pytest.raises(ValueError, match="writes to the tensor 'known'"):
        Program.from_json(text.replace('"slot": 0', '"slot": 1'))
    with pytest.raises(ValueError, match="must have names and buffers of their own"):
        Program("twice", (), 2, 0, 0, tensors=(("mask", 1), ("known", 1)))
