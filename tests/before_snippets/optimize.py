"""What docs/optimize.md leaves to its reader: a model and its inputs, a U-Net and a transformer."""

import torch

from fastdiff.models.dit import DiT, DiTConfig
from fastdiff.models.unet import UNet, UNetConfig


class Network(torch.nn.Module):
    """A convolutional network that takes a time."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(4, 64, 3, padding=1),
            torch.nn.GroupNorm(8, 64),
            torch.nn.SiLU(),
            torch.nn.Conv2d(64, 64, 3, padding=1),
            torch.nn.Conv2d(64, 4, 3, padding=1),
        )
        self.time = torch.nn.Sequential(
            torch.nn.Linear(1, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 4)
        )

    def forward(self, x, t):
        return self.layers(x) + self.time(t[:, None])[:, :, None, None]


model, x, t = Network().eval(), torch.randn(2, 4, 16, 16), torch.zeros(2)
unet = UNet(UNetConfig((16, 32), 1, (), embedding_channels=16, groups=4)).eval()
transformer = DiT(DiTConfig(input_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=3)).eval()
torch.nn.init.normal_(unet.conv_out.weight, std=0.1)  # which begins at zero
