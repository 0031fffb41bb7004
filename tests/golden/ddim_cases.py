"""The times of the families that run diffusers' DDIM: every (1000 // n)-th training step, moved by an offset."""


def grid(case, steps):
    """Decreasing times of the schedule. The last one is where the original takes its data: training step 0."""
    assert case.set_alpha_to_one is False
    ratio = 1000 // steps
    kept = [k * ratio + case.steps_offset for k in reversed(range(steps))]
    return [(n + 1) / 1000 for n in kept] + [1 / 1000]


def model(case):
    """(the exact network, the schedule and the prediction as arguments)."""
    process = case.process
    network = case.toy.network(lambda n: process.point((n + 1) / 1000))
    return network, dict(schedule=process, prediction=case.prediction)


def steps_of(times):
    """The training steps of times."""
    return [round(1000 * t) - 1 for t in times]
