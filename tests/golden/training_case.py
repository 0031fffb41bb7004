"""What a golden case of training.json becomes: its metadata, its arrays, and the toy network.

What a case reads of its arrays is an input; every other array it must compute.
"""

import re

import numpy as np
import torch
from folder import FOLDER, cases

CASES = cases("training")
ARRAYS = np.load(FOLDER / "training.npz") if CASES else {}


class TrainingCase:
    """meta: the metadata. case[name]: the array, which is noted as an input from then on."""

    def __init__(self, name):
        self.name, self.meta = name, CASES[name]
        self.inputs = set()

    def __contains__(self, array):
        return array in self.meta["arrays"]

    def __getitem__(self, array):
        self.inputs.add(array)
        return self.expected(array)

    def optional(self, array):
        """The array, or None where the case has none of that name."""
        if array in self:
            return self[array]
        return None

    def expected(self, array):
        return torch.from_numpy(np.asarray(ARRAYS[f"{self.name}/{array}"]))

    def leaf(self, array):
        """The array as something to differentiate by."""
        return self[array].clone().requires_grad_()

    def network(self, theta="theta", kind=None):
        """The toy network with these weights, a tensor or an array's name. kind: "teacher", "encoder", ..."""
        spec = self.meta.get(f"network_{kind}", self.meta.get("network"))
        return Toy(spec, self.leaf(theta) if isinstance(theta, str) else theta)

    def cond(self, kind=None, **values):
        """(B, N): the condition as the metadata write it, of the values that they name."""
        return columns(self.meta.get(f"cond_{kind}", self.meta["cond"]), **values)


class Toy:
    """y = W2 tanh(W1 vec(x) + Wc c + b1) + b2, all of one vector theta."""

    def __init__(self, spec, theta):
        d, n, h, o = (spec[key] for key in ("inputs", "cond", "hidden", "outputs"))
        w1, wc, self.b1, w2, self.b2 = theta.split([h * d, h * n, h, o * h, o])
        self.w1, self.wc, self.w2 = w1.view(h, d), wc.view(h, n), w2.view(o, h)
        self.theta, self.inputs, self.outputs = theta, d, o

    def __call__(self, x, c=None):
        hidden = x.flatten(1) @ self.w1.T + self.b1
        if self.wc.numel():
            hidden = hidden + c.to(x).reshape(len(x), -1) @ self.wc.T
        y = hidden.tanh() @ self.w2.T + self.b2
        if self.outputs == self.inputs:
            return y.view(x.shape)
        return y.view(len(x), 2 * x.shape[1], *x.shape[2:]) if self.outputs == 2 * self.inputs else y


def columns(text, **values):
    """ "0.05 * logsnr, onehot(label), 0.25 * w" of tensors (B,) or (B, n) by name: their columns side by side."""
    text = re.sub(r"\((the time given to the model)\)", "time", text)
    text = re.sub(r"\(zeros for no class\)|^c_noise = ", "", text)
    text = text.replace("mean of the prompt's embeddings", "embeddings")
    values = {key: value if callable(value) else torch.as_tensor(value).double() for key, value in values.items()}
    names = {"log": torch.log, **values}
    found = eval(f"[{text}]", {"__builtins__": {}}, names)  # of our own data
    length = max(len(value) for value in values.values() if isinstance(value, torch.Tensor) and value.ndim)
    rows = [torch.as_tensor(value, dtype=torch.float64).expand(length, *torch.as_tensor(value).shape[1:])
            if torch.as_tensor(value).ndim else torch.full((length,), float(value), dtype=torch.float64)
            for value in found]  # fmt: skip
    return torch.cat([row.reshape(length, -1) for row in rows], 1)


def gradient(loss, by):
    """d mean(loss) / d by, with the graph kept."""
    return torch.autograd.grad(loss.mean(), by, retain_graph=True)[0]
