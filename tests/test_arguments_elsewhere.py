"""Arguments of what stands beside `sample`: schedules, grids, Programs, losses, edits and `optimize`. What is none of
its kind is refused by a short message that names the argument."""

from __future__ import annotations

import functools
import math
import re

import numpy as np
import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import editing
from fastdiff.prediction import get_prediction
from fastdiff.schedules import EDM, VE, CosineLogSNR, RectifiedFlow, SubVP, VPDiscrete, VPLinear
from fastdiff.train import losses
from fastdiff.train.process import Process

VP = VPDiscrete.linear()
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ON_VP = dict(schedule=VP, prediction="eps", steps=3)
MASK = (torch.arange(8) < 4).float().expand(1, 1, 8, 8)


def flat(x, t):
    return 0.1 * x


def refused(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
        call()
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "0.1", True, 1j, [], torch.ones(2), np.ones(3), math.nan, math.inf, VP])
@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (EDM, "sigma_min"),
        (EDM, "sigma_max"),
        (VE, "sigma_min"),
        (VE, "sigma_max"),
        (VE, "t_min"),
        (VPLinear, "beta_0"),
        (VPLinear, "beta_1"),
        (SubVP, "t_min"),
        (RectifiedFlow, "shift"),
        (RectifiedFlow, "time_scale"),
        (RectifiedFlow, "t_min"),
        (CosineLogSNR, "logsnr_min"),
        (CosineLogSNR, "t_min"),
        (VPDiscrete.linear, "start"),
        (VPDiscrete.scaled_linear, "end"),
        (VPDiscrete.cosine, "s"),
    ],
)
def test_numbers_of_schedules(schedule, name, value):
    refused(lambda: schedule(**{name: value}), f"{name} must be a finite number, got ")


def test_numbers_of_schedules_of_any_kind_are_that_number():
    for shift in (3, np.float32(3), np.int64(3), torch.tensor(3.0)):
        assert RectifiedFlow(shift).key == RectifiedFlow(3.0).key


@pytest.mark.parametrize("steps", [None, "3", True, 0, -1, 2.5, [3], math.nan])
def test_steps(steps):
    refused(lambda: VPDiscrete.cosine(steps), "num_steps must be a whole number >= 1, got ")
    for grid in fastdiff.grids.GRIDS.values():
        refused(functools.partial(grid, VP, steps), "steps must be a whole number >= 1, got ")


@pytest.mark.parametrize("name", fastdiff.grids.GRIDS)
def test_schedules_of_grids(name):
    grid = fastdiff.grids.GRIDS[name]
    for schedule in (3, EDM, X, {}):
        refused(functools.partial(grid, schedule, 4), "schedule must be a fastdiff Schedule or a name, got ")
    np.testing.assert_array_equal(grid("linear", 4), grid(VP, 4))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("betas", "x", "betas must be a vector of numbers, got 'x'"),
        ("rho", "7", "rho must be a finite number, got '7'"),
        ("rho", 0, "rho must be positive, got 0"),
        ("times", 0.5, "times must be two times or more, got shape ()"),
        ("times", [], "times must be two times or more, got shape (0,)"),
        ("times", "x", "times must be a row of schedule times, got 'x'"),
        ("times", [1.0, None, "a"], "times must be a row of schedule times, got [1.0, None, 'a'] (list)"),
        ("times", X, "times must be two times or more, got shape (2, 3, 8, 8)"),
        ("times", np.linspace(3, 2, 500), "t must lie in [0, 1], got [3.0, "),
        ("keep_states", 1, "keep_states must be True or False, got 1"),
        ("keep_states", X, "keep_states must be True or False, got a tensor float32"),
        ("gradients", 3, "gradients must hold functions (x, t) by their names, got 3"),
        ("gradients", {"classifier": 3}, "gradients must hold functions"),
        ("disable", "attention", "disable must be a list of names, got 'attention'"),
        ("disable", 3, "disable must be a list of names, got 3"),
        ("disable", [3], "disable must be a list of names, got [3]"),
        ("disable", X, "disable must be a list of names, got a tensor"),
        ("verify", "yes", "verify must be True or False, got 'yes'"),
        ("progress", X, "progress must be True or False, got a tensor float32"),
        ("inputs", X, "inputs must be a tuple of the model's arguments, got a tensor float32"),
        ("inputs", 3, "inputs must be a tuple"),
        ("caching", 3, "caching must be a Caching, or like"),
        ("caching", None, "caching must be a Caching, or like"),
        ("backend", ["cpu"], "backend must be a name, got ['cpu'] (list)"),
        ("model name", X, "name must be that of a bundled model, got a tensor"),
        ("layout", ["edm"], "layout must be a name, got ['edm'] (list)"),
        ("layout", X, "layout must be a name, got tensor([["),
        ("config", X, "config must hold arguments by their names, got a tensor"),
        ("part", 3, "part must be a name, got 3"),
        ("takes", 3, "takes must be the name of an argument of the model, got 3"),
    ],
)
def test_other_arguments(name, value, message):
    program = fastdiff.trace("ddim", VP, [1.0, 0.5, 0.0], "eps")
    calls = {
        "betas": lambda: VPDiscrete(value),
        "rho": lambda: fastdiff.grids.karras(VP, 4, rho=value),
        "times": lambda: fastdiff.trace("ddim", VP, value, "eps"),
        "keep_states": lambda: fastdiff.trace("ddim", VP, [1.0, 0.0], "eps", keep_states=value),
        "gradients": lambda: fastdiff.run(program, flat, X, gradients=value),
        "disable": lambda: fastdiff.optimize(Net(), disable=value),
        "verify": lambda: fastdiff.optimize(Net(), verify=value),
        "progress": lambda: fastdiff.optimize(Net(), progress=value),
        "inputs": lambda: fastdiff.explain(fastdiff.optimize(Net()), value),
        "caching": lambda: fastdiff.caching.Cached(Net(), value),
        "backend": lambda: fastdiff.use(value).__enter__(),
        "model name": lambda: fastdiff.load(value),
        "layout": lambda: fastdiff.models.load({"a": X}, layout=value),
        "config": lambda: fastdiff.models.load({"a": X}, config=value),
        "part": lambda: fastdiff.models.load({"a": X}, part=value),
        "takes": lambda: fastdiff.Stage(flat, (3, 8, 8), takes=value),
    }
    refused(calls[name], message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fastdiff.encode(flat, X, **ON_VP, to=3), "to must lie in (0, 1], got 3"),
        (lambda: editing.inpaint(flat, X / 9, MASK, **ON_VP, method=["a"]), "method must be a name, got ['a'] (list)"),
        (lambda: editing.inpaint(flat, X, MASK, **ON_VP, limits="x"), "limits must be two numbers, (low, high), got"),
        (lambda: editing.inpaint(flat, X, MASK, **ON_VP, limits=(1, -1)), "limits must be increasing, got (1, -1)"),
        (lambda: editing.inpaint(flat, X, MASK, **ON_VP, limits=(0, "1")), "limits[1] must be a finite number"),
        (lambda: editing.dps(flat, X, "blur", X, **ON_VP), "operator must be a function of pictures, got 'blur'"),
        (lambda: editing.reconstruct(flat, X, X, mask=MASK, **ON_VP, replace=X), "replace must be True or False"),
        (lambda: editing.reconstruct(flat, X, X, operator=3, **ON_VP), "operator must be a function of pictures"),
    ],
)
def test_edits(call, message):
    refused(call, message)


def of(loss, **given):
    """The loss with arguments of which some are wrong."""
    process = Process.of(EDM() if loss is losses.edm_loss else VP, "edm" if loss is losses.edm_loss else "eps")
    first = "cond-ot" if loss is losses.flow_matching_loss else process
    given = dict(batch=X, generator=torch.Generator().manual_seed(0)) | given
    return lambda: loss(flat, first, given.pop("batch"), given.pop("generator"), **given)


@pytest.mark.parametrize("loss", [losses.denoising_loss, losses.edm_loss, losses.flow_matching_loss])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch", X.numpy()[:, :1], "batch must be a tensor (B, ...), got a NumPy array"),
        ("generator", 3, "generator must be a torch.Generator, got 3"),
        ("noise", 0.5, "noise must be a tensor like the batch, got 0.5"),
        ("noise", X[:1], "noise must be (2, 3, 8, 8), as the batch, got (1, 3, 8, 8)"),
        ("reduction", ["mean"], "reduction must be a name, got ['mean'] (list)"),
        ("reduction", "max", "unknown reduction 'max'"),
    ],
)
def test_losses(loss, name, value, message):
    refused(of(loss, **{name: value}), message)


@pytest.mark.parametrize(
    ("loss", "name", "value", "message"),
    [
        (losses.denoising_loss, "times", "x", "times must be numbers, one a sample, got 'x'"),
        (losses.denoising_loss, "times", [0.5], "times must be one a sample (2), got 1"),
        (losses.denoising_loss, "norm", 2, "norm must be a name, got 2 (int)"),
        (losses.flow_matching_loss, "times", 0.5, "times must be one a sample, (2,), got shape ()"),
        (losses.flow_matching_loss, "times", "x", "times must be numbers, one a sample, got 'x'"),
        (losses.edm_loss, "sigma", "x", "sigma must be numbers, one a sample, got 'x'"),
        (losses.edm_loss, "sigma", torch.ones(3), "sigma must be one a sample, (2,), got shape (3,)"),
        (losses.edm_loss, "sigma_data", -1, "sigma_data must be positive, got -1"),
        (losses.edm_loss, "sigma_data", "x", "sigma_data must be a finite number, got 'x'"),
        (losses.edm_loss, "kind", "elbo", "unknown kind 'elbo'"),
        (losses.sds_loss, "interval", 0.5, "interval must be two numbers, (low, high), got 0.5"),
    ],
)
def test_further_arguments_of_losses(loss, name, value, message):
    more = dict(guidance=1.0) if loss is losses.sds_loss else {}
    refused(of(loss, **{name: value}, **more), message)


def test_lists_of_times_are_times():
    given = [losses.flow_matching_loss(flat, "cond-ot", X, None, times=t, noise=X) for t in ([0.2, 0.7], (0.2, 0.7))]
    torch.testing.assert_close(*given)


@pytest.mark.parametrize(("schedule", "prediction"), [("linear", get_prediction("eps")), (VP, "eps")])
def test_a_process_takes_objects(schedule, prediction):
    refused(lambda: Process(schedule, prediction), "Process.of takes names")
