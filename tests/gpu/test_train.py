"""Training on a GPU: precisions, data that come from the CPU, and a run that goes on."""

import pytest
import torch

import fastdiff
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.train.fitting import fit

NETWORK = UNetConfig(channels=(16, 32), blocks=1, attention_levels=(1,), num_classes=2, groups=4, head_channels=16)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_network_learns_and_goes_on(tmp_path, device, precision):
    labels = torch.arange(64) % 2
    images = torch.full((64, 3, 8, 8), 40, dtype=torch.uint8) + 150 * labels.view(-1, 1, 1, 1).to(torch.uint8)
    data = [*zip(images, labels)]
    options = dict(uncond={"y": 2}, classes=("dark", "light"), device=device, batch=16, warmup=10, learning_rate=3e-3,
                   precision=precision, ema_decay=0.9, validate_every=30)  # fmt: skip
    torch.manual_seed(0)
    run = fit(UNet(NETWORK), data, tmp_path, steps=60, **options)
    assert sum(run.losses[-10:]) < 0.8 * sum(run.losses[:10])
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert next(run.model.parameters()).device.type == torch.device(device).type
    longer = fit(UNet(NETWORK), data, tmp_path, steps=62, **options)
    assert longer.losses[:60] == run.losses
    model = fastdiff.models.load(tmp_path, device=device)
    x = fastdiff.sample(model, (4, 3, 8, 8), steps=10, seed=0, cond=model.info.condition("light", 4))
    assert x.device.type == torch.device(device).type
    assert torch.isfinite(x).all()
