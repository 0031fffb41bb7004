"""andreas128/RePaint: the order in which time indices are visited."""

import torch

from fastdiff.editing import Jumps, slow_times


def run(case):
    options = {key: value for key, value in case.meta.items() if key not in ("family", "source", "schedule")}
    if case.schedule == "slow":
        return {"times": torch.tensor(slow_times(**options))}
    t_T = options.pop("t_T")
    return {"times": torch.tensor(Jumps(**options).times(t_T))}
