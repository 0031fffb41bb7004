"""What holds of the losses beside the golden numbers: closed-form optima, precision, draws, refused input."""

import math

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.process.prediction import PREDICTIONS
from fastdiff.schedules import CosineLogSNR, Respaced, VPDiscrete
from fastdiff.train import losses, variance
from fastdiff.train.losses import consistency, flow, progressive, variational
from fastdiff.train.process import Process

STD = 0.7  # of the Gaussian data


def generator():
    return torch.Generator().manual_seed(0)


def data(count=16, dtype=torch.float64):
    return STD * torch.randn(count, 2, 4, 4, generator=generator(), dtype=dtype)


def test_reflow_has_no_loss_at_its_optimum():
    """Noise and data that a flow pairs: the velocity is known, and the path is straight."""
    noise = data() / STD
    pairs = STD * noise  # where the exact flow of Gaussian data takes the noise

    def velocity(x, t):
        t = t.view(-1, 1, 1, 1)
        return (STD - 1) / (1 - t + t * STD) * x

    loss = losses.flow_matching_loss(velocity, "cond-ot", pairs, generator(), noise=noise)
    assert loss.max() < 1e-24
    off = losses.flow_matching_loss(lambda x, t: velocity(x, t) + 0.1, "cond-ot", pairs, generator(), noise=noise)
    assert off == pytest.approx(0.01 * torch.ones(16), rel=1e-6)


def exact_f(process):
    """The consistency function of Gaussian data, and the denoiser whose flow it follows to the end."""
    total = STD**2

    def f(x, sigma):
        return x * ((total + process.sigma_min**2) / (total + sigma.view(-1, 1, 1, 1) ** 2)).sqrt()

    return f, lambda x, sigma: total / (total + sigma.view(-1, 1, 1, 1) ** 2) * x


def test_consistency_distillation_has_no_loss_at_its_optimum():
    """But for the error of the solver's one step: of Heun's, third order in its length, so sixth order in the loss."""
    process = consistency.ConsistencyProcess()
    f, denoiser = exact_f(process)

    def loss(scales):
        options = {"target": f, "teacher": denoiser, "scales": scales}
        return float(losses.consistency_loss(f, process, data(256), generator(), **options).mean())

    few, many = loss(200), loss(400)
    assert few < 1e-6
    assert math.log2(few / many) == pytest.approx(6, abs=1)


def test_a_consistency_function_is_the_identity_at_the_smallest_level():
    process = consistency.ConsistencyProcess()
    f = consistency.parametrized(lambda x, t: x + 1, process)
    x = data()
    assert torch.equal(f(x, torch.full((16,), process.sigma_min, dtype=torch.float64)), x)


@pytest.mark.parametrize("name", [name for name, each in PREDICTIONS.items() if not each.split])
@pytest.mark.parametrize("schedule", ["cosine", "vp-linear", "cosine-logsnr"])
def test_progressive_distillation_takes_any_prediction_and_schedule(name, schedule):
    """A teacher that knows the data x0 sends the student there: the exact student has no loss."""
    x0 = data(8)
    process = Process.of(schedule, name)

    def knows(x, t):
        points = {process.prediction.time(process.schedule, p): p for p in seen}
        rows = []
        for row, scaled, time in zip(x0, x, t.tolist()):
            p = points[time]
            of_x, of_out = process.prediction.x0(p)
            rows.append((row - of_x * scaled / process.prediction.scale(p)) / of_out)
        return torch.stack(rows)

    times = np.arange(1, 9) / 8
    seen = process.schedule.points(np.concatenate([times, times - 1 / 16]))
    terms = progressive.progressive_terms(knows, process, x0, generator(), teacher=knows, steps=8, weight="constant",
                                          index=torch.arange(8))  # fmt: skip
    assert terms.loss.max() < 1e-8
    torch.testing.assert_close(terms.target.x0, x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_loss_has_the_precision_of_the_network(dtype):
    process, x0 = Process.of("cosine", "v"), data(4, torch.float32).to(dtype)
    wanted = torch.float32 if dtype == torch.bfloat16 else dtype
    assert losses.denoising_loss(lambda x, t: x, process, x0, generator()).dtype == wanted
    assert losses.ddpm_loss(lambda x, t: x, process, x0, generator()).dtype == wanted
    assert losses.flow_matching_loss(lambda x, t: x, "vp", x0, generator()).dtype == wanted


def test_the_same_generator_gives_the_same_loss():
    process, x0 = Process.of("cosine", "eps"), data()
    for loss in (losses.denoising_loss, losses.ddpm_loss):
        a, b = (loss(lambda x, t: x, process, x0, generator()) for _ in range(2))
        assert torch.equal(a, b)
        assert a.shape == (16,)


def test_a_respaced_process_is_sampled_like_the_original():
    """DDIM over the steps that were kept gives the same samples on both schedules."""
    original = VPDiscrete.cosine(1000)
    kept = Respaced.sections(original, "10,5")
    grid = [(n + 1) / 1000 for n in reversed(kept.kept)] + [0.0]

    def network(x, n):  # of Gaussian data
        alpha = torch.from_numpy(original.alpha((n.numpy() + 1) / 1000)).view(-1, 1)
        sigma2 = 1 - alpha**2
        return sigma2.sqrt() / (alpha**2 * STD**2 + sigma2) * x

    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    own = [(k + 1) / 15 for k in reversed(range(15))] + [0.0]
    results = [fastdiff.sample(network, x, schedule=schedule, prediction="eps", solver="ddim", grid=np.array(times))
               for schedule, times in ((original, grid), (kept, own))]  # fmt: skip
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_measured_variances_are_those_of_the_solver():
    """Analytic-DPM by `fastdiff.sample` and by the module that measures."""
    schedule, x = VPDiscrete.cosine(50), torch.randn(4, 3, generator=generator(), dtype=torch.float64)

    def network(x, n):
        return x * (0.5 + 0.005 * n.view(-1, 1))

    squares = variance.eps_mean_squares(network, schedule, 0.5 * x, generator()).mean(1)
    noise = torch.randn(4, 4, 3, generator=generator(), dtype=torch.float64)
    steps = [1, 13, 26, 38, 50]
    ours, _ = variance.sample(network, schedule, x, generator(), timesteps=steps, noise=noise, clip=False,
                              eps_square=squares)  # fmt: skip
    pairs = [(n / 50, float(squares[n])) for n in range(1, 51)]
    solver = fastdiff.solvers.get_solver("analytic-dpm", eps_square=pairs)
    grid = np.array([n / 50 for n in reversed(steps)] + [0.0])
    theirs = fastdiff.sample(network, x, schedule=schedule, prediction="eps", solver=solver, grid=grid, noise=noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "gamma", [variational.FixedGamma(), variational.ScalarGamma(), variational.MonotoneGamma(hidden=8)]
)
def test_a_learned_schedule_can_be_sampled_on(gamma):
    schedule = variational.Learned(gamma.double())
    t = np.linspace(0.01, 1, 50)
    np.testing.assert_allclose(schedule.t_of_lam(schedule.lam(t)), t, rtol=1e-9)
    np.testing.assert_allclose(-2 * schedule.lam(t), gamma(torch.from_numpy(t)).detach().numpy(), rtol=0, atol=1e-4)
    for each in t[1:-1]:
        rates = schedule.rates(each)
        step = (schedule.alpha(each + 1e-6) - schedule.alpha(each - 1e-6)) / 2e-6
        assert rates[0] == pytest.approx(step, rel=2e-2, abs=1e-6)

    def network(x, gamma):
        sigma2 = torch.sigmoid(gamma).view(-1, 1)
        return sigma2.sqrt() / ((1 - sigma2) * STD**2 + sigma2) * x

    x = torch.randn(2000, 2, generator=generator(), dtype=torch.float64)
    out = fastdiff.sample(network, x, schedule=schedule, prediction="eps", solver="ddim", grid="uniform", steps=100)
    assert out.std() == pytest.approx(STD, rel=0.05)


def test_the_cosine_of_the_log_snr_ends_where_it_says():
    schedule = CosineLogSNR(-15, 12)
    assert 2 * schedule.lam(1.0) == pytest.approx(-15)
    assert 2 * schedule.lam(1e-12) == pytest.approx(12)
    assert schedule.point(0.0).sigma == 0


def test_paths_of_schedules_go_the_other_way():
    x1, x0, t = data(), data() + 1, torch.linspace(0.05, 0.95, 16, dtype=torch.float64)
    for schedule, name in (("rectified-flow", "cond-ot"), ("vp-linear", "vp")):
        path = flow.get_path(Process.of(schedule, "v").schedule)
        for a, b in zip(path.sample(x1, x0, t), flow.get_path(name).sample(x1, x0, t)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def refused():
    x0, eps = data(), Process.of("cosine", "eps")

    def zero(x, t):
        return 0 * x

    process = consistency.ConsistencyProcess()
    return {
        "unknown reduction 'total'": lambda: losses.denoising_loss(zero, eps, x0, generator(), reduction="total"),
        "unknown norm 'l3'": lambda: losses.denoising_loss(zero, eps, x0, generator(), norm="l3"),
        "learns a variance": lambda: losses.denoising_loss(zero, Process.of("cosine", "eps+variance"), x0, generator()),
        "no uniform time": lambda: losses.denoising_loss(zero, Process.of("edm", "x0"), x0, generator()),
        "unknown variance 'tiny'": lambda: losses.ddpm_loss(zero, eps, x0, generator(), variance="tiny"),
        "needs a prediction with a learned": lambda: losses.ddpm_loss(zero, eps, x0, generator(), variance="learned"),
        "unknown kind 'elbo'": lambda: losses.ddpm_loss(zero, eps, x0, generator(), kind="elbo"),
        "unknown path 'cubic'": lambda: losses.flow_matching_loss(zero, "cubic", x0, generator()),
        "unknown weight 'snrs'": lambda: losses.progressive_loss(zero, eps, x0, generator(), weight="snrs"),
        "needs the student's number": lambda: losses.progressive_loss(zero, eps, x0, generator(), teacher=zero),
        "unknown solver 'rk4'": lambda: losses.consistency_loss(
            zero, process, x0, generator(), target=zero, scales=9, solver="rk4"
        ),
        "at least 2": lambda: losses.consistency_loss(zero, process, x0, generator(), target=zero, scales=1),
        "unknown prediction of sliced_loss": lambda: losses.sliced_loss(zero, eps, x0, generator()),
        "unknown prediction of covariance": lambda: losses.covariance_loss(
            zero, Process.of("cosine", "v"), x0, generator(), output="eps", criterion="dsm"
        ),
        "kept must be increasing": lambda: Respaced(VPDiscrete.linear(10), [3, 2]),
        "no stride takes": lambda: Respaced.sections(VPDiscrete.linear(10), "ddim7"),
        "unknown output 'x0'": lambda: variance.reverse_step(zero, VPDiscrete.linear(9), x0, 1, 2, output="x0"),
    }


@pytest.mark.parametrize("message", refused())
def test_what_a_loss_does_not_know_is_refused(message):
    with pytest.raises(ValueError, match=message):
        refused()[message]()


def test_losses_with_steps_refuse_a_schedule_without():
    with pytest.raises(TypeError, match="discrete schedule"):
        losses.ddpm_loss(lambda x, t: x, Process.of("vp-linear", "eps"), data(), generator())
    with pytest.raises(TypeError, match="discrete schedule"):
        variance.Bars(CosineLogSNR())
