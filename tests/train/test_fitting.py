"""Training of a network that was given on data that were given."""

import logging
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fastdiff
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.profiling import get_subject
from fastdiff.train.fitting import fit
from fastdiff.train.losses import LOSSES, ddpm_loss

TINY = UNetConfig(channels=(8, 16), blocks=1, attention_levels=(1,), groups=4, head_channels=8, embedding_channels=16)
SETTINGS = dict(steps=4, batch=4, warmup=1, precision="float32", validate_every=2)


class Points(nn.Module):
    """Of points in the plane."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None] / 1000], dim=1))


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_any_network_learns_any_data(tmp_path):
    torch.manual_seed(0)
    data = torch.tensor([[1.0, -1.0]]) + 0.05 * torch.randn(200, 2)
    network = Points()
    training = fit(network, data, tmp_path, steps=300, batch=64, learning_rate=5e-3, warmup=10, ema_decay=0.9,
                   precision="float32", schedule="linear", prediction="x0")  # fmt: skip
    assert training.model is network
    samples = fastdiff.sample(training.ema.module, (64, 2), schedule="linear", prediction="x0", steps=20, seed=0)
    assert (samples.mean(0) - torch.tensor([1.0, -1.0])).abs().max() < 0.1
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt", "log.csv", "loss.png", "diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    fresh = Points()
    fresh.load_state_dict(state)
    assert torch.equal(weights(fresh), weights(training.ema.module))


@pytest.mark.parametrize("loader", [False, True])
def test_a_run_goes_on_at_the_exact_step(tmp_path, loader):
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def run(folder, on_step=None):
        torch.manual_seed(1)
        network = UNet(TINY)
        network.middle.append(nn.Dropout(0.2))
        data = images.float() / 127.5 - 1 if loader else images
        if loader:
            data = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
        return fit(
            network, data, tmp_path / folder, name="run", mirror=True, on_step=on_step, **SETTINGS | {"steps": 9}
        )

    whole = run("whole")

    def stop(training, loss):
        if training.step == 4:
            training.save()
            raise MemoryError

    with pytest.raises(MemoryError):
        run("parts", stop)
    parts = run("parts")
    assert parts.losses == whole.losses
    assert torch.equal(weights(parts.ema.module), weights(whole.ema.module))


def test_a_trained_u_net_is_loaded_and_sampled_from_its_folder(tmp_path, caplog):
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = [(image, k % 2) for k, image in enumerate(images)]
    with caplog.at_level(logging.INFO, logger="fastdiff"):
        training = fit(
            UNet(UNetConfig(**{**vars(TINY), "num_classes": 2})), data, tmp_path / "mine", schedule="linear",
            prediction="eps", classes=("even", "odd"), uncond={"y": 2}, dropout=0.5, more_ema_decays=(0.5,), **SETTINGS,
        )  # fmt: skip
    assert "step 2 of 4: loss " in caplog.text
    assert "on held-out data" in caplog.text
    names = {path.name for path in (tmp_path / "mine").iterdir() if path.name != "tensorboard"}
    assert names == {
        "checkpoint.pt", "log.csv", "loss.png", "samples-000002.png", "samples-000004.png", "config.json",
        "diffusion_pytorch_model.safetensors", "average-0.5.safetensors",
    }  # fmt: skip
    model = fastdiff.models.load(tmp_path / "mine")
    assert torch.equal(weights(model), weights(training.ema.module))
    info = model.info
    assert (info.name, info.shape, info.prediction, info.classes) == ("mine", (3, 8, 8), "eps", ("even", "odd"))
    assert info.schedule == fastdiff.schedules.VPDiscrete.linear()
    assert info.card["steps"] == 4
    x = fastdiff.sample(model, (2, *info.shape), steps=3, seed=0, cond=info.condition("odd", 2))
    assert torch.isfinite(x).all()
    subject = get_subject(str(tmp_path / "mine"))
    assert subject.shape == (3, 8, 8)
    assert subject.conditions_of(0, 3)[0]["y"].tolist() == [0, 1, 0]
    assert subject.conditions_of(0, 3)[1]["y"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_name(tmp_path, loss):
    schedule, prediction = {
        "edm": ("edm", "edm"),
        "covariance": ("linear", "eps+variance"),
        "sliced": ("ve", "score"),
    }.get(loss, ("linear", "eps"))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 2 if loss == "covariance" else 1, 3, padding=1)

        def forward(self, x, t):
            return self.layer(x)

    data = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    before = Network()
    training = fit(before, data, tmp_path, loss=loss, schedule=schedule, prediction=prediction, **SETTINGS)
    assert training.step == 4
    assert len(set(training.losses)) == 4


def test_a_loss_may_be_a_function(tmp_path):
    data = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))

    def loss(network, process, batch, generator, **cond):
        assert process.prediction.name == "x0"
        return (network(batch, torch.zeros(len(batch))) - batch).square().mean(1)

    training = fit(
        Points(),
        data,
        tmp_path,
        loss=loss,
        prediction="x0",
        **SETTINGS | {"steps": 60, "learning_rate": 0.01, "validate_every": 60},
    )
    assert training.losses[-1] < 0.5 * training.losses[0]


def test_no_condition_is_trained_as_often_as_asked(tmp_path):
    seen = []

    def loss(network, process, batch, generator, y):
        seen.append(y)
        return (network(batch, y.float()) - batch).square().mean(1)

    data = [(torch.zeros(2), 1)] * 24
    settings = SETTINGS | {"steps": 100, "batch": 8, "validate_every": 100}
    fit(Points(), data, tmp_path, loss=loss, uncond={"y": 9}, dropout=0.25, **settings)
    drawn = torch.cat(seen[:100])  # the rest is validated
    assert set(drawn.tolist()) == {1, 9}
    assert 0.15 < (drawn == 9).float().mean() < 0.35


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "denoise"}, "unknown loss 'denoise'; did you mean 'denoising'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"prediction": "noise"}, "unknown prediction"),
        ({"schedule": "edm"}, "schedule 'edm' has no uniform time to train on"),
        ({"prediction": "eps+variance"}, "learns a variance, for which there is no loss here"),
        ({"loss": "ddpm", "schedule": "ve"}, "needs a discrete schedule"),
        ({"loss": "sliced"}, "score"),
        ({"loss": "covariance"}, "unknown prediction of covariance_loss 'v'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_what_a_loss_does_not_know_is_said_before_anything_is_written(tmp_path, options, said):
    data = torch.zeros(30, 1, 4, 4)
    with pytest.raises((ValueError, TypeError), match=said):
        fit(UNet(TINY), data, tmp_path / "run", **SETTINGS | options)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_loss_data_and_network_only(tmp_path):
    data = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    fit(Points(), data, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="made with another recipe: prediction 'v', not 'x0'"):
        fit(Points(), data, tmp_path, prediction="x0", **SETTINGS)
    with pytest.raises(ValueError, match="made with another recipe: loss 'denoising', not 'partial'"):
        fit(Points(), data, tmp_path, loss=partial(ddpm_loss), **SETTINGS)
    with pytest.raises(ValueError, match="made with another data set"):
        fit(Points(), data + 1, tmp_path, **SETTINGS)
    other = Points()
    other.layers.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="holds the weights of another network"):
        fit(other, data, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        fit(Points().requires_grad_(False), data, tmp_path / "frozen", **SETTINGS)


def test_events_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(Points(), torch.randn(12, 2), tmp_path, **SETTINGS)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == [2, 4]
