"""TimeGrad's network: the next day of four series, as samples, against a naive forecast. Trains for half a minute."""

import math

import torch

import fastdiff
from fastdiff.models.timegrad import TimeGrad, TimeGradConfig

SERIES, DAY, STEPS = 4, 24, 100
LAGS = torch.tensor([1, 2, DAY, 2 * DAY, 3 * DAY, 4 * DAY])
torch.manual_seed(0)


def demand(days):
    """(24 days, 4): a daily curve whose phase differs by series, a weekly one, and noise that all series share."""
    hour = torch.arange(24 * days)[:, None]
    phase = torch.arange(SERIES) * math.pi / SERIES
    curve = torch.sin(2 * math.pi * hour / DAY + phase) * (1 + 0.3 * torch.sin(2 * math.pi * hour / (7 * DAY)))
    return curve + 0.2 * torch.randn(24 * days, 1) + 0.1 * torch.randn(24 * days, SERIES)


def past(values, at):
    """What the network knows at moments `at` (B,): the last 2 hours and the same hour of 4 days before, flat."""
    return values[..., at[:, None] - LAGS, :].flatten(-2)


def crps(samples, truth):
    """Continuous ranked probability score of samples (N, ...), the mean over all values (Gneiting & Raftery 2007)."""
    spread = (samples[:, None] - samples[None]).abs().mean((0, 1)) / 2
    return ((samples - truth).abs().mean(0) - spread).mean().item()


values = demand(56)
split = 49 * 24  # seven weeks to learn from, one to forecast
schedule = fastdiff.schedules.VPDiscrete.linear(STEPS, start=1e-4, end=0.1)
points = schedule.points((torch.arange(STEPS).numpy() + 1) / STEPS)
scales = torch.tensor([[point.alpha, point.sigma] for point in points]).float()
model = TimeGrad(TimeGradConfig(target_dim=SERIES, cond_length=len(LAGS) * SERIES, residual_layers=4))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900)
for _ in range(900):
    at = torch.randint(4 * DAY, split, (256,))
    x0, eps, step = values[at][:, None], torch.randn(256, 1, SERIES), torch.randint(STEPS, (256,))
    alpha, sigma = scales[step].T[:, :, None, None]
    loss = (model(alpha * x0 + sigma * eps, step.float(), past(values, at)) - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    slower.step()

# One day ahead, hour by hour: each of 100 samples goes on from its own past.
model.eval().requires_grad_(False)
paths = values[:split].repeat(100, 1, 1)
for hour in range(DAY):
    known = past(paths, torch.tensor([split + hour]))
    x = fastdiff.sample(
        model, (100, 1, SERIES), schedule=schedule, prediction="eps", solver="dpmpp-2m", steps=10, seed=hour,
        cond={"cond": known},
    )  # fmt: skip
    paths = torch.cat([paths, x], dim=1)
truth = values[split : split + DAY]
ours = crps(paths[:, split:], truth)
days = values[:split].reshape(-1, DAY, SERIES)
naive = crps(days[-1] + days[1:] - days[:-1], truth)
print(f"CRPS of one day: {ours:.3f}; of the day before, give or take what days have differed by: {naive:.3f}")
assert ours < naive
