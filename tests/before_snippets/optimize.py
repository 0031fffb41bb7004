"""What docs/optimize.md leaves to its reader: a model and its inputs."""

import torch


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

    def forward(self, x, t):
        return self.layers(x)


model, x, t = Network().eval(), torch.randn(2, 4, 16, 16), torch.zeros(2)
