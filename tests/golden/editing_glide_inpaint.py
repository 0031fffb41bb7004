"""openai/glide-text2im, notebooks/inpaint.ipynb."""

from ancestral import Ancestral

from fastdiff.editing import glide


def run(case):
    run = Ancestral(case)
    tensors = {"known": case["gt"], "mask": case["mask"]}
    return run.results(run.sample(glide(run.solver), case["noise"], tensors))
