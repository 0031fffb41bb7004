"""fastdiff.sample: what it promises of its results, and how it refuses bad input."""

import re

import numpy as np
import pytest
import torch
from small_network import Net

import fastdiff
from fastdiff import CFG, SamplingError, sample
from fastdiff.schedules import VPDiscrete
from fastdiff.solvers import SOLVERS

VP = VPDiscrete.linear()
COMMON = dict(schedule=VP, prediction="eps", steps=6)


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    with fastdiff.use(request.param):
        yield request.param


@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if not s.adaptive])  # a batch shares its steps
def test_a_sample_is_the_same_at_any_batch_size(backend, solver):
    """To the bit, but for what the convolution itself does differently at another batch size: so none here."""
    pointwise = lambda x, t: torch.tanh(x)  # noqa: E731
    large = sample(pointwise, (5, 3, 7, 9), solver=solver, seed=3, **COMMON)
    small = sample(pointwise, (2, 3, 7, 9), solver=solver, seed=3, **COMMON)
    assert torch.equal(large[:2], small)
    later = sample(pointwise, (2, 3, 7, 9), solver=solver, seed=3, first_sample=3, **COMMON)
    assert torch.equal(large[3:], later)
    assert not torch.equal(large[0], large[1])


def test_a_shape_and_its_noise_are_the_same_run(backend):
    x = sample(Net(), (2, 3, 8, 8), seed=1, **COMMON)
    init = fastdiff.noise.CounterNoise.of(1, 2).initial((2, 3, 8, 8), torch.float32)
    assert torch.equal(x, sample(Net(), init, **COMMON))
    before = init.clone()
    sample(Net(), init, **COMMON)
    assert torch.equal(init, before)  # the caller's tensor is left alone


def test_guidance_is_the_mixed_model(backend):
    net, scale = Net(torch.float64), 2.5
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond, uncond = ({"shift": torch.tensor(values, dtype=torch.float64)} for values in ([0.3, -0.2], [0.0, 0.0]))

    def mixed(x, t):
        a, b = net(x, t, **cond), net(x, t, **uncond)
        return b + scale * (a - b)

    ours = sample(net, x, guidance=CFG(scale), cond=cond, uncond=uncond, **COMMON)
    torch.testing.assert_close(ours, sample(mixed, x, **COMMON), rtol=1e-11, atol=1e-11)
    same = sample(net, x, guidance=scale, cond=cond, uncond=uncond, **COMMON)
    assert torch.equal(ours, same)


def test_guidance_of_one_is_the_conditional_model(backend):
    cond, calls = {"shift": torch.ones(2)}, []
    net = Net()

    def counted(x, t, shift):
        calls.append(len(x))
        return net(x, t, shift)

    guided = sample(counted, (2, 3, 8, 8), seed=0, guidance=1.0, cond=cond, uncond={"shift": torch.zeros(2)}, **COMMON)
    assert torch.equal(guided, sample(net, (2, 3, 8, 8), seed=0, cond=cond, **COMMON))
    assert calls == [2] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(backend, dtype):
    seen = set()
    net = Net(dtype)

    def model(x, t):
        seen.update((x.dtype, t.dtype))
        return net(x, t)

    out = sample(model, torch.randn(2, 3, 8, 8).to(dtype), seed=0, **COMMON)
    assert out.dtype == dtype
    assert seen == {dtype, torch.promote_types(dtype, torch.float32)}  # x as it is, t never in a half precision


def test_models_that_return_more_than_a_tensor(backend):
    class Output:
        def __init__(self, tensor):
            self.sample = tensor

    plain = sample(Net(), (1, 3, 8, 8), seed=0, **COMMON)
    assert torch.equal(plain, sample(lambda x, t: Output(Net()(x, t)), (1, 3, 8, 8), seed=0, **COMMON))
    assert torch.equal(plain, sample(lambda x, t: (Net()(x, t), None), (1, 3, 8, 8), seed=0, **COMMON))


def test_channels_last_and_aliasing_outputs(backend):
    plain = sample(lambda x, t: 0.1 * x, (2, 3, 8, 8), seed=0, **COMMON)
    strided = sample(
        lambda x, t: (0.1 * x).contiguous(memory_format=torch.channels_last), (2, 3, 8, 8), seed=0, **COMMON
    )
    assert torch.equal(plain, strided)
    same = sample(lambda x, t: x, (2, 3, 8, 8), seed=0, **COMMON)  # the very buffer that it was given
    assert torch.equal(same, sample(lambda x, t: x.clone(), (2, 3, 8, 8), seed=0, **COMMON))


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_callback_sees_every_state(backend, solver, guidance):
    states, condition = [], {"shift": torch.zeros(2)}
    common = dict(solver=solver, seed=0, guidance=guidance, cond=condition, uncond=condition, **COMMON)
    final = sample(Net(), (2, 3, 8, 8), callback=lambda i, x: states.append((i, x.clone())), **common)
    assert [i for i, _ in states] == list(range(len(states)))
    if SOLVERS[solver].spans is None and not SOLVERS[solver].adaptive:  # a step is an interval of the grid
        assert len(states) == 6
    assert all(x.shape == final.shape for _, x in states)
    torch.testing.assert_close(states[-1][1], final, rtol=0, atol=0)
    torch.testing.assert_close(final, sample(Net(), (2, 3, 8, 8), **common), rtol=1e-6, atol=1e-6)


def test_no_gradient_and_no_inference_tensor(backend):
    out = sample(Net(), torch.randn(1, 3, 8, 8, requires_grad=True), seed=0, **COMMON)
    assert not out.requires_grad
    assert not out.is_inference()


def test_inside_inference_mode(backend):
    def run():
        return sample(lambda x, t: 0.5 * x, (2, 3, 8, 8), schedule="cosine", prediction="eps", steps=3, seed=0)

    with torch.inference_mode():
        inside = run()
    assert torch.equal(inside, run())


def test_given_noise_replaces_the_solvers_noise(backend):
    common = dict(solver="ddpm", seed=0, **COMMON)
    default = sample(Net(), (2, 3, 8, 8), **common)
    counter = fastdiff.noise.CounterNoise.of(0, 2)
    same = sample(Net(), (2, 3, 8, 8), noise=lambda n: counter.draw(n, (2, 3, 8, 8), torch.float32), **common)
    torch.testing.assert_close(same, default, rtol=1e-6, atol=1e-6)
    drawn = [sample(Net(), (2, 3, 8, 8), noise=torch.Generator().manual_seed(4), **common) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], default)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver="dpmp-2m"), "unknown solver 'dpmp-2m'; did you mean 'dpmpp-2m'"),
        (dict(schedule="cosin"), "unknown schedule 'cosin'; did you mean 'cosine'"),
        (dict(prediction="epsilon"), "unknown prediction 'epsilon'; did you mean 'eps'"),
        (dict(grid="kerras"), "unknown grid 'kerras'; did you mean 'karras'"),
        (dict(steps=0), "steps must be a whole number >= 1, got 0"),
        (dict(steps=2.5), "steps must be a whole number"),
        (dict(guidance=float("nan"), uncond={}), "guidance scale must be a finite number, got nan"),
        (dict(guidance=float("inf"), uncond={}), "guidance scale must be a finite number"),
        (dict(guidance=2.0), "guidance needs uncond"),
        (dict(guidance=2.0, cond={"shift": torch.zeros(2)}, uncond={}), "same keys"),
        (dict(guidance=2.0, cond={"shift": torch.zeros(3)}, uncond={"shift": torch.zeros(3)}), r"cond\['shift'\]"),
        (dict(schedule=None), "schedule must be given"),
        (dict(prediction=None), "prediction must be given"),
        (dict(seed=-1), "seed must be"),
        (dict(seed=[1, 2, 3]), "one a sample"),
        (dict(noise=torch.zeros(0, 2, 3, 8, 8), solver="ddpm"), "draws 5 noises in this run, and noise holds 0"),
        (dict(grid=np.array([0.1, 0.9])), "must decrease"),
    ],
)
def test_arguments_that_do_not_fit(backend, change, message):
    with pytest.raises(ValueError, match=message):
        sample(Net(), (2, 3, 8, 8), **{**COMMON, **change})


@pytest.mark.parametrize("shape", [(), (0, 3, 8, 8), (2, -3), (2.0, 3)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match="shape of the samples"):
        sample(Net(), shape, **COMMON)


def test_integer_state():
    with pytest.raises(ValueError, match=r"x_init must be a floating-point tensor .* torch.int64"):
        sample(Net(), torch.zeros(2, 3, 8, 8, dtype=torch.int64), **COMMON)


def test_schedule_of_another_type():
    with pytest.raises(TypeError, match="schedule must be a fastdiff Schedule"):
        sample(Net(), (1, 3, 8, 8), schedule=3.0, prediction="eps")


@pytest.mark.parametrize(
    ("solver", "option", "value", "message"),
    [
        ("rk45", "rtol", "x", "rtol must be a number, got 'x' (str)"),
        ("rk45", "atol", None, "atol must be a number, got None"),
        ("rk45", "max_steps", 10.0, "max_steps must be a whole number, got 10.0"),
        ("edm-heun", "s_churn", True, "s_churn must be a number, got True"),
        ("dpmpp-2m", "lower_order_final", 1, "lower_order_final must be True or False, got 1"),
        ("dpmpp-2m", "variant", 2, "variant must be a name, got 2"),
    ],
)
def test_a_solver_option_of_another_kind(solver, option, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fastdiff.solvers.get_solver(solver, **{option: value})


def test_unknown_solver_option():
    with pytest.raises(ValueError, match="option of solver 'ddim' 'etaa'; did you mean 'eta'"):
        fastdiff.solvers.get_solver("ddim", etaa=1.0)
    with pytest.raises(ValueError, match="'heun' has no options"):
        fastdiff.solvers.get_solver("heun", eta=1.0)
    with pytest.raises(ValueError, match="unknown variance 'medium'"):
        sample(Net(), (1, 3, 8, 8), solver=fastdiff.solvers.get_solver("ddpm", variance="medium"), **COMMON)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_breaks_down_is_named_with_its_step(backend, bad):
    calls = []

    def model(x, t):
        calls.append(t)
        out = torch.zeros_like(x)
        if len(calls) == 3:
            out[1, 2, 3, 4] = bad
        return out

    with pytest.raises(SamplingError, match=r"step 3 of 6 \(t=.*the model returned 1 values that are NaN or infinite"):
        sample(model, (2, 3, 8, 8), **COMMON)
    assert len(calls) == 3


def test_a_state_that_overflows(backend):
    with pytest.raises(SamplingError, match=r"step \d of 6 .*the state overflowed"):
        sample(lambda x, t: torch.full_like(x, 3e38), (2, 3, 8, 8), **{**COMMON, "prediction": "v"}, solver="heun")


def test_an_initial_state_that_is_not_finite(backend):
    x = torch.zeros(2, 3, 8, 8)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(SamplingError, match="the initial state holds values that are NaN"):
        sample(Net(), x, **COMMON)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x, t: x[:, :1], r"step 1 of 6 .*returned shape \(2, 1, 8, 8\), expected \(2, 3, 8, 8\)"),
        (lambda x, t: "nothing", "step 1 of 6 .*returned str, expected a tensor"),
        (lambda x, t: torch.zeros(x.shape, device="meta"), "step 1 of 6 .*on meta, expected cpu"),
        (
            Net(torch.float64).forward,
            r"step 1 of 6 .*the model raised RuntimeError: .*given x float32 \(2, 3, 8, 8\) on cpu",
        ),
        (lambda x: x, "step 1 of 6 .*the model raised TypeError"),
    ],
)
def test_a_model_that_returns_something_else(backend, model, message):
    with pytest.raises(SamplingError, match=message):
        sample(model, (2, 3, 8, 8), **COMMON)


def test_numbers_of_numpy_are_numbers(backend):
    plain = sample(Net(), (1, 3, 8, 8), seed=3, guidance=2.0, uncond={}, **COMMON)
    other = {**COMMON, "steps": np.int64(6)}
    assert torch.equal(plain, sample(Net(), (1, 3, 8, 8), seed=np.int64(3), guidance=np.float32(2), uncond={}, **other))


def test_nested_conditions(backend):
    def model(x, t, extra):
        return torch.tanh(x) + extra["shift"][:, None, None, None] * extra["scale"]

    cond, uncond = ({"extra": {"shift": torch.full((2,), value), "scale": 0.5}} for value in (0.3, 0.0))
    guided = sample(model, (2, 3, 8, 8), seed=0, guidance=1.5, cond=cond, uncond=uncond, **COMMON)
    plain = sample(model, (2, 3, 8, 8), seed=0, cond=cond, **COMMON)
    assert not torch.equal(guided, plain)
    uncond["extra"]["scale"] = 1.0
    with pytest.raises(ValueError, match=r"cond\['extra'\]\['scale'\] and uncond.* must be equal"):
        sample(model, (2, 3, 8, 8), guidance=1.5, cond=cond, uncond=uncond, **COMMON)
    cond, uncond = {"shift": torch.tensor(1.0)}, {"shift": torch.tensor(0.0)}
    with pytest.raises(ValueError, match=r"must be \(2, \.\.\.\) and alike"):
        sample(Net(), (2, 3, 8, 8), guidance=1.5, cond=cond, uncond=uncond, **COMMON)


def test_a_model_that_changes_its_input(backend):
    with pytest.raises(SamplingError, match=r"step 1 of 6 .*changed its input x in place"):
        sample(lambda x, t: x.mul_(0.9), (2, 3, 8, 8), **COMMON)


def test_a_shape_takes_dtype_from_the_model(backend):
    assert sample(Net(torch.bfloat16), (1, 3, 8, 8), seed=0, **COMMON).dtype == torch.bfloat16


@pytest.mark.parametrize("eta", [-1.0, float("nan"), "much"])
@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if "eta" in s.options])
def test_bad_eta(solver, eta):
    with pytest.raises(ValueError, match="eta must be a finite number >= 0"):
        sample(Net(), (1, 3, 8, 8), solver=fastdiff.solvers.get_solver(solver, eta=eta), **COMMON)


def test_more_noise_than_there_is():
    with pytest.raises(ValueError, match=r"solver 'ddim' with {'eta': 3.0} cannot step from t=1"):
        sample(Net(), (1, 3, 8, 8), solver=fastdiff.solvers.get_solver("ddim", eta=3.0), **COMMON)


def test_a_program_is_traced_once():
    calls = []

    def step(model, x, s, t, history):
        calls.append(s)
        return model.x0(x, s)

    mine = fastdiff.solvers.Solver("mine", step, 1, 1, 0, "uniform", "", False)
    for _ in range(3):  # equal schedules made anew are the same schedule
        sample(Net(), (1, 3, 8, 8), solver=mine, seed=0, schedule=VPDiscrete.linear(), prediction="eps", steps=4)
    assert len(calls) == 4
    sample(Net(), (1, 3, 8, 8), solver=mine, seed=0, schedule=VPDiscrete.cosine(), prediction="eps", steps=4)
    assert len(calls) == 8


def test_backends():
    with pytest.raises(ValueError, match="unknown backend 'cpuu'; did you mean 'cpu'"), fastdiff.use("cpuu"):
        pass
    with fastdiff.use("reference"):
        with fastdiff.use("cpu"):
            assert fastdiff.runtime.choice.current() == "cpu"
        assert fastdiff.runtime.choice.current() == "reference"
    assert fastdiff.runtime.choice.current() == "auto"


def test_what_the_cpu_engine_cannot_run_is_an_error_when_insisted_on():
    with fastdiff.use("cpu"), pytest.raises(NotImplementedError, match="meta"):
        sample(Net().to("meta"), torch.zeros(2, 3, 8, 8, device="meta"), **COMMON)
