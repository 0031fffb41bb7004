"""A run of milliseconds a step: a network of two layers that learns the squares of numbers."""

import time

import torch
from torch import nn

from fastdiff.train.loop import Training
from fastdiff.train.objective import Objective
from fastdiff.train.run import Run

RUN = Run(
    name="squares", steps=10, batch=4, learning_rate=0.01, warmup=2, precision="float32", ema_decay=0.9,
    validate_every=5, checkpoint_every=100,
)  # fmt: skip


class Squares(Objective):
    """Drops out by torch's generator, so that a run is resumed exactly only if that is seeded too."""

    number = -1

    def __init__(self, run):
        super().__init__(run, "numbers from -1 to 1")

    def make_network(self):
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))

    def prepare(self, number):
        self.number = number

    def loss(self, network, generator):
        x = 2 * torch.rand(self.recipe.batch, 1, generator=generator) - 1
        with self.autocast():
            y = network(x)
        return (y.float() - x.square()).square().mean()

    def validation_loss(self, network, generator):
        return self.loss(network, generator)


def average(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def train(run, folder, on_step=None):
    folder.mkdir(exist_ok=True)
    training = Training(Squares(run), folder)
    training.run(on_step=on_step)
    return training


def train_and_tell(run, folder, connection):
    """For a process of its own: sends the number of every step."""
    torch.set_num_threads(1)
    training = Training(Squares(run), folder)

    def on_step(training, loss):
        connection.send(training.step)
        time.sleep(0.002)  # so that who listens is not far behind

    connection.send(training.step)
    training.run(on_step=on_step)
