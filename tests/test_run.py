"""fastdiff.run, and fastdiff.sample with a Program as its solver: what a Program computes, also after JSON."""

import numpy as np
import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import CFG, Classifier, Program, SamplingError, Threshold, run, sample, trace
from fastdiff.grids import make_grid
from fastdiff.schedules import EDM, VPDiscrete
from fastdiff.solvers import SOLVERS

VP = VPDiscrete.linear()
SHAPE = (2, 3, 8, 8)
TIMES = make_grid("uniform", VP, 5)


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    with fastdiff.use(request.param):
        yield request.param


def state():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def again(program):
    """After a file of JSON."""
    return Program.from_json(program.to_json())


@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if not s.adaptive and s.spans is None])
def test_a_program_is_what_sample_runs(backend, solver):
    net, x = Net(), state()
    expected = sample(net, x, schedule=VP, prediction="eps", solver=solver, grid=TIMES, seed=3)
    program = again(trace(solver, VP, TIMES, "eps"))
    assert torch.equal(run(program, net, x, seed=3), expected)
    assert torch.equal(sample(net, x, solver=program, seed=3), expected)
    assert torch.equal(sample(net, x, schedule=VP, prediction="eps", solver=program, seed=3, steps=5), expected)


@pytest.mark.parametrize("schedule", [VP, EDM()])
def test_a_shape_starts_where_the_programs_schedule_does(schedule):
    times = make_grid("karras", schedule, 5)
    common = dict(schedule=schedule, seed=3)
    expected = sample(Net(), SHAPE, prediction="v", solver="heun", grid=times, **common)
    program = trace("heun", schedule, times, "v")
    assert torch.equal(sample(Net(), SHAPE, solver=program, **common), expected)
    with pytest.raises(ValueError, match="a shape and a Program need the schedule as well"):
        sample(Net(), SHAPE, solver=program, seed=3)


def test_guidance_and_thresholds_are_in_the_program(backend):
    net, x = Net(), state()
    conditions = dict(cond={"shift": torch.ones(2)}, uncond={"shift": torch.zeros(2)})
    kinds = dict(guidance=CFG(2.0, rescale=0.5), threshold=Threshold(1.0))
    expected = sample(net, x, schedule=VP, prediction="eps", solver="ddim", grid=TIMES, **kinds, **conditions)
    program = again(trace("ddim", VP, TIMES, "eps", **kinds))
    assert torch.equal(run(program, net, x, **conditions), expected)
    assert torch.equal(sample(net, x, solver=program, **conditions), expected)
    with pytest.raises(ValueError, match="guidance needs uncond"):
        run(program, net, x, cond=conditions["cond"])


def test_a_classifier_is_given_to_the_run(backend):
    net, x = Net(), state()
    classifier = Classifier(lambda x, t: -x, 0.5)
    expected = sample(net, x, schedule=VP, prediction="eps", solver="ddim", grid=TIMES, guidance=classifier)
    program = again(trace("ddim", VP, TIMES, "eps", guidance=classifier))
    assert torch.equal(run(program, net, x, gradients={"classifier": classifier.gradient}), expected)
    with pytest.raises(ValueError, match=r"calls 'classifier', got gradients \[\]"):
        run(program, net, x)


def test_noise_and_seeds(backend):
    net, x, draws = Net(), state(), torch.randn(5, *SHAPE)
    program = trace("ddpm", VP, TIMES, "eps")
    expected = sample(net, x, schedule=VP, prediction="eps", solver="ddpm", grid=TIMES, noise=draws)
    assert torch.equal(run(program, net, x, noise=draws), expected)
    with pytest.raises(ValueError, match="'ddpm' draws 4 noises in this run, and noise holds 3"):
        run(program, net, x, noise=draws[:3])
    whole = run(program, lambda x, t: torch.tanh(x), x, seed=1)
    assert torch.equal(run(program, lambda x, t: torch.tanh(x), x[1:], seed=1, first_sample=1), whole[1:])


def test_states_of_a_program_that_keeps_them(backend):
    states = []
    program = again(trace("ddim", VP, TIMES, "eps", keep_states=True))
    found = run(program, Net(), state(), callback=lambda step, x: states.append((step, x.clone())))
    assert [step for step, _ in states] == list(range(5))
    torch.testing.assert_close(states[-1][1], found)
    with pytest.raises(ValueError, match="keeps its states"):
        run(trace("ddim", VP, TIMES, "eps"), Net(), state(), callback=lambda step, x: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(program="ddim"), r"program must be a Program, as fastdiff.trace makes it, got 'ddim' \(str\)"),
        (dict(program="{}"), "program must be a Program"),
        (dict(x=SHAPE), "x must be a tensor"),
        (dict(x=np.zeros(SHAPE)), "got a NumPy array"),
        (dict(cond=3), "cond must hold"),
        (dict(seed="a"), "seed must be"),
    ],
)
def test_arguments_of_run(change, message):
    arguments = {"program": trace("ddim", VP, TIMES, "eps"), "model": Net(), "x": state(), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        run(**arguments)


@pytest.mark.parametrize("name", ["grid", "guidance", "threshold", "start"])
def test_what_is_in_a_program_is_not_given_beside_it(name):
    program = trace("ddim", VP, TIMES, "eps")
    with pytest.raises(ValueError, match=f"{name} is part of a Program"):
        sample(Net(), state(), solver=program, **{name: 1.0}, uncond={})
    with pytest.raises(ValueError, match="the Program has 5 steps, and steps=7 was given"):
        sample(Net(), state(), solver=program, steps=7)


def test_a_model_that_fails_is_named_with_its_step():
    with pytest.raises(SamplingError, match=r"ddim, step 1 of 5 \(t=1\): the model returned shape"):
        run(trace("ddim", VP, TIMES, "eps"), lambda x, t: x[:1], state())


@pytest.mark.parametrize("solver", ["ddim", "heun", "rk45"])
def test_progress_counts_the_models_calls(capsys, solver):
    calls = []

    def model(x, t):
        calls.append(t)
        return torch.tanh(x)

    common = dict(schedule=VP, prediction="eps", solver=solver, steps=4, seed=0)
    plain = sample(model, SHAPE, **common)
    assert capsys.readouterr().err == ""
    number = len(calls)
    assert torch.equal(sample(model, SHAPE, progress=True, **common), plain)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{number}/{'?' if solver == 'rk45' else number}" in shown.err.replace(" ", "")
    if solver != "rk45":
        run(trace(solver, VP, TIMES, "eps"), model, state(), progress=True)
        assert "model calls" in capsys.readouterr().err
