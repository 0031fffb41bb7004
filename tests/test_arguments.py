"""Arguments that do not fit are refused, by a message that names them, what was given and what was expected."""

import re

import numpy as np
import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import CFG, SamplingError, sample
from fastdiff.schedules import VPDiscrete

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=4, seed=0)
SHAPE = (2, 3, 8, 8)
X = torch.zeros(SHAPE)
WRONG = (TypeError, ValueError)


def flat(x, t, c=None):
    return 0.3 * torch.tanh(x) + (0 if c is None else c[:, :1, None, None])


def halves(batch=2):
    return dict(cond={"c": torch.ones(batch, 4)}, uncond={"c": torch.zeros(batch, 4)})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance", "7.5", "guidance must be a number, one a sample, .*got '7.5' (str)"),
        ("guidance", True, "got True (bool)"),
        ("guidance", {}, "got {} (dict)"),
        ("guidance", CFG, "guidance must be"),
        ("guidance", 1j, "guidance must be"),
        ("guidance", torch.tensor(True), "guidance scale must be a finite number"),
        ("guidance", [7.5, "a"], "guidance scale[1] must be a finite number, got 'a' (str)"),
        ("guidance", [7.5, float("nan")], "guidance scale[1] must be a finite number, got nan"),
        ("guidance", [], "got none"),
        ("guidance", [1.0, 2.0, 3.0], "guidance must be one scale or one a sample (2), got 3"),
        ("guidance", torch.ones(2, 2), "got a tensor float32 (2, 2)"),
        ("guidance", np.ones(3), "one a sample (2), got 3"),
        ("threshold", "x", "threshold must be a number or fastdiff.Threshold, got 'x' (str)"),
        ("threshold", True, "got True (bool)"),
        ("threshold", torch.ones(2), "threshold must be a finite number, got a tensor float32 (2,)"),
        ("threshold", -1.0, "threshold limit must be positive"),
        ("steps", True, "steps must be a whole number >= 1, got True"),
        ("steps", "4", "steps must be a whole number >= 1, got '4'"),
        ("steps", 4.0, "steps must be a whole number"),
        ("solver", 3, "solver must be a name"),
        ("solver", ["ddim"], "solver must be a name"),
        ("prediction", 3, "prediction must be a name"),
        ("prediction", ["eps"], "prediction must be a name"),
        ("schedule", VPDiscrete, "schedule must be a fastdiff Schedule"),
        ("grid", ["a", "b"], "grid must be a name, a function or decreasing times"),
        ("grid", 3, "grid must hold at least two times"),
        ("grid", object(), "grid must"),
        ("start", "0.5", "start must be a finite number"),
        ("start", True, "start must be a finite number"),
        ("start", float("nan"), "start must be a finite number"),
        ("cond", torch.zeros(2, 4), "cond must hold the model's arguments by their names, .*got a tensor float32"),
        ("cond", [1], "cond must hold"),
        ("cond", "y", "cond must hold"),
        ("cond", {1: torch.zeros(2, 4)}, "cond must hold the model's arguments by their names, got the name 1"),
        ("cond", {"c": torch.zeros(3, 4)}, r"cond['c'] must be (2, ...), one row a sample, .* got (3, 4)"),
        ("cond", {"c": {"d": torch.zeros(4)}}, r"cond['c']['d'] must be (2, ...)"),
        ("uncond", torch.zeros(2, 4), "uncond must hold"),
        ("uncond", {"c": torch.zeros(3, 4)}, "uncond['c'] must be (2, ...)"),
        ("seed", "3", "seed must be a whole number, one a sample, or None, got '3' (str)"),
        ("seed", True, "seed must be whole numbers"),
        ("seed", [True, False], "seed must be whole numbers"),
        ("seed", torch.Generator(), "a torch.Generator goes to noise="),
        ("seed", torch.tensor([1.0, 2.0]), "seed must be whole numbers"),
        ("seed", np.array([[1, 2]]), "one a sample (2), got 1"),
        ("seed", np.arange(3), "one a sample (2), got 3"),
        ("seed", {1, 2}, "seed must be"),
        ("first_sample", -1, "first_sample must be a whole number >= 0, got -1"),
        ("first_sample", True, "first_sample must be"),
        ("first_sample", "a", "first_sample must be"),
        ("noise", 3, "noise must be a torch.Generator"),
        ("noise", "normal", "noise must be a torch.Generator"),
        ("noise", np.zeros((4, *SHAPE)), "noise must be a torch.Generator"),
        ("callback", 3, "callback must be a function callback(step, state), got 3 (int)"),
        ("progress", 1, "progress must be True or False"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("solver", ["ddpm", "rk45"])
def test_sample(solver, name, value, message):
    arguments = {**COMMON, "solver": solver, name: value}
    if name == "guidance":
        arguments |= halves()
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(WRONG, match=pattern):
        sample(flat, X, **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (8, "x_init_or_shape must be a tensor (B, ...), or the shape of the samples, like (4, 3, 32, 32), got 8 (int)"),
        (2.5, "got 2.5 (float)"),
        (None, "got None"),
        ("2x3", "got '2x3' (str)"),
        ({2: 3}, "x_init_or_shape must be"),
        (np.zeros(SHAPE), "got a NumPy array float64 (2, 3, 8, 8); torch.from_numpy makes a tensor of it"),
        (np.array(SHAPE), "torch.from_numpy"),
        ((True, 3), "positive whole numbers"),
        ((2, "3"), "positive whole numbers"),
        ([np.zeros((3, 8, 8)).tolist()], "positive whole numbers"),
        (torch.zeros(SHAPE, dtype=torch.bool), "x_init must be a floating-point tensor"),
        (torch.zeros(SHAPE, dtype=torch.complex64), "x_init must be a floating-point tensor"),
        (torch.zeros(0, 3), "x_init must be a floating-point tensor (B, ...), got torch.float32 (0, 3)"),
        (torch.tensor(1.0), "x_init must be a floating-point tensor"),
    ],
)
def test_what_is_neither_a_state_nor_a_shape(given, message):
    with pytest.raises(WRONG, match=re.escape(message)) as caught:
        sample(flat, given, **COMMON)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("emoji-unet-32", "got the name 'emoji-unet-32'; fastdiff.load(name) gives a bundled model"),
        (3, "model must be a function model(x, t, **cond), got 3 (int)"),
        (torch.zeros(3), "model must be a function"),
        (None, "model must be a function"),
    ],
)
def test_what_is_no_model(model, message):
    program = fastdiff.trace("ddim", VP, [1.0, 0.5], "eps")
    common = dict(schedule=VP, prediction="eps")
    for call in (
        lambda: sample(model, SHAPE, **COMMON),
        lambda: fastdiff.encode(model, X, **common),
        lambda: fastdiff.log_likelihood(model, X, **common),
        lambda: fastdiff.run(program, model, X),
        lambda: sample(model, SHAPE, solver=program, schedule=VP),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


@pytest.mark.parametrize("solver", ["ddim", "rk45"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x, t: x.long(), "the model returned torch.int64, expected floating-point numbers"),
        (lambda x, t: x > 0, "the model returned torch.bool"),
        (lambda x, t: x.to(torch.complex64), "the model returned torch.complex64"),
        (lambda x, t: x[:1], "the model returned shape (1, 3, 8, 8), expected (2, 3, 8, 8)"),
        (lambda x, t: x[:, :1], "the model returned shape (2, 1, 8, 8)"),
        (lambda x, t: x.numpy(), "the model returned ndarray, expected a tensor"),
        (lambda x, t: 3, "the model returned int"),
        (lambda x, t: None, "the model returned NoneType"),
        (lambda x, t: x.to("meta"), "the model returned a tensor on meta"),
        (lambda x, t: x * float("nan"), "NaN"),
    ],
)
def test_what_a_model_must_not_return(solver, model, message):
    with pytest.raises(SamplingError, match=re.escape(message)):
        sample(model, SHAPE, solver=solver, **COMMON)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_may_return_another_floating_type(backend, dtype):
    with fastdiff.use(backend):
        found = sample(lambda x, t: x.to(dtype), X + 1, **COMMON)
        torch.testing.assert_close(found, sample(lambda x, t: x.to(dtype).float(), X + 1, **COMMON))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x0=np.zeros(SHAPE)), "x0 must be a tensor (B, ...), got a NumPy array"),
        (dict(x0=X.long()), "x0 must be a floating-point tensor"),
        (dict(t="0.5"), "t must be a finite number"),
        (dict(t=1.5), "t must lie in"),
        (dict(schedule=3), "schedule must be"),
        (dict(schedule="linea"), "did you mean 'linear'"),
        (dict(seed="a"), "seed must be"),
    ],
)
def test_diffuse(change, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        fastdiff.diffuse(**{"x0": X, "schedule": VP, "t": 0.5, "seed": 0, **change})


def test_diffuse_takes_the_name_of_a_schedule():
    assert torch.equal(fastdiff.diffuse(X, "linear", 0.5, seed=0), fastdiff.diffuse(X, VP, 0.5, seed=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x0=np.zeros(SHAPE)), "x0 must be a tensor (B, ...), got a NumPy array"),
        (dict(x0=SHAPE), "x0 must be a tensor"),
        (dict(steps=True), "steps must be"),
        (dict(to="x"), "to must be a finite number"),
        (dict(cond=X), "cond must hold"),
        (dict(cond={"c": torch.zeros(3, 4)}), "cond['c'] must be (2, ...)"),
        (dict(solver=3), "solver must be"),
    ],
)
def test_encode(change, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        fastdiff.encode(flat, **{"x0": X, "schedule": VP, "prediction": "eps", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=np.zeros(SHAPE)), "x must be a tensor (B, ...), got a NumPy array"),
        (dict(x=SHAPE), "x must be a tensor"),
        (dict(probes=True), "probes must be a whole number >= 1, got True"),
        (dict(max_steps="x"), "max_steps must be a whole number >= 1, got 'x'"),
        (dict(rtol="x"), "rtol must be a finite number"),
        (dict(atol=-1.0), "rtol and atol must not be negative"),
        (dict(rtol=0, atol=0), "rtol and atol must not both be 0"),
        (dict(atol=0), "atol must be positive: the change of log p begins at 0"),
        (dict(cond=X), "cond must hold"),
        (dict(cond={"c": torch.zeros(3, 4)}), "cond['c'] must be (2, ...)"),
        (dict(seed=torch.Generator()), "a torch.Generator goes to noise="),
    ],
)
def test_log_likelihood(change, message):
    with pytest.raises(WRONG, match=re.escape(message)):
        fastdiff.log_likelihood(flat, **{"x": X, "schedule": VP, "prediction": "eps", **change})


@pytest.mark.parametrize("wrong", ["model", np.zeros(3), {}], ids=["text", "array", "dictionary"])
def test_what_is_no_model_is_named(wrong):
    kind = type(wrong).__name__
    net = Net()
    with pytest.raises(TypeError, match=f"verify.. compares two of torch.nn.Module, got {kind}"):
        fastdiff.verify(wrong, net, (X,))
    with pytest.raises(TypeError, match=f"verify.. compares two of torch.nn.Module, got {kind}"):
        fastdiff.verify(net, wrong, (X,))
    with pytest.raises(TypeError, match=f"explain.. takes a model or a pipeline of diffusers, got {kind}"):
        fastdiff.explain(wrong)


def test_states_are_dense():
    sparse, network = X.to_sparse(), Net()
    linear = VPDiscrete.linear()
    for call in (
        lambda: fastdiff.sample(network, sparse, schedule=linear, prediction="eps", solver="ddim", steps=2),
        lambda: fastdiff.diffuse(sparse, linear, 0.5),
        lambda: fastdiff.encode(network, sparse, schedule=linear, prediction="eps", steps=2),
        lambda: fastdiff.log_likelihood(network, sparse, schedule=linear, prediction="eps"),
    ):
        with pytest.raises(ValueError, match=r"must be a dense tensor, got torch\.sparse_coo"):
            call()


def test_what_a_model_returns_is_dense():
    with pytest.raises(
        fastdiff.SamplingError, match=r"the model returned a torch\.sparse_coo tensor, expected a dense one"
    ):
        fastdiff.sample(
            lambda x, t: x.to_sparse(), SHAPE, schedule=VPDiscrete.linear(), prediction="eps", solver="ddim", steps=2
        )
