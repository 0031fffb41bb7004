"""andreas128/RePaint: the authors' code draws a step's noise first, and one that is not used at the end."""

from itertools import pairwise

from ancestral import Ancestral

from fastdiff.editing import Jumps, repaint


def order(times):
    """The numbers of the stored draws in the order in which `repaint` asks for them."""
    asked, number = [], 0
    for step, (a, b) in enumerate(pairwise(times)):
        blend = b < a and step > 0
        asked += [number + 1] if blend else []
        asked += [number] if b >= 0 else []
        number += 2 if blend else 1
    return asked


def run(case):
    run = Ancestral(case)
    options = dict(case.schedule_jump_params)
    jumps, t_T = Jumps(**{key: value for key, value in options.items() if key != "t_T"}), options["t_T"]
    noise = case["noise"][order(jumps.times(t_T))]
    tensors = {"known": case["gt"], "mask": case["mask"]}
    return run.results(run.sample(repaint(run.solver, jumps, blend="before"), noise, tensors))
