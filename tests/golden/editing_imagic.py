"""Imagic's interpolation of embeddings."""

from fastdiff.editing.imagic import interpolate


def run(case):
    return {"mixed": interpolate(case["target"], case["optimized"], case.eta)}
