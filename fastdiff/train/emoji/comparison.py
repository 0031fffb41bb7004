"""A student and its teacher side by side: in pictures, and in the profiler's distances."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.models.bundled import BundledModel
from fastdiff.models.info import Sampling
from fastdiff.profiling.distances import Data
from fastdiff.profiling.drawing import Drawer
from fastdiff.profiling.features import emoji_extractor
from fastdiff.profiling.measures import rms, rmse
from fastdiff.profiling.settings import Setting
from fastdiff.profiling.subject import Subject
from fastdiff.profiling.subjects import subject_of

TEACHER, CONVERGED = Setting("dpmpp-2m", 20), Setting("unipc-3", 100)
PICTURES_A_CLASS = 4
SAMPLES = 540
COMPARED = 36  # samples of which the converged ones are drawn
SHOWN = ("frechet", "kid", "precision", "recall")


def beside(original: BundledModel, student: nn.Module, sampling: Sampling) -> tuple[Tensor, int]:
    """Pictures (N, 3, H, W) in [-1, 1] and how many are in a row: a row a class, `PICTURES_A_CLASS` of the teacher, in
    20 steps of DPM-Solver++(2M), then of the student in each of its numbers of steps, from the same noise."""
    info = original.info
    names = [name for name in info.classes for _ in range(PICTURES_A_CLASS)]

    def conditions(first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return info.condition(names[first : first + count], count), info.condition(None, count)

    of_names = replace(subject_of(original), conditions=conditions)
    parts = [
        subject.pictures(Drawer(subject, 0).draw(setting, 0, len(names)).samples).unflatten(0, (-1, PICTURES_A_CLASS))
        for subject, setting in _both(of_names, student, sampling, len(names))
    ]
    return torch.cat(parts, dim=1).flatten(0, 1), PICTURES_A_CLASS * len(parts)


def compare(original: BundledModel, student: nn.Module, sampling: Sampling) -> list[dict[str, Any]]:
    """For the teacher and each number of steps of the student: solver, steps, evaluations of the network a sample,
    distances of `SAMPLES` samples to the data on the features of the bundled extractor, with the ends of their
    intervals; and the RMSE of `COMPARED` pictures to those of the teacher in 100 steps of UniPC-3 from the same noise,
    where the sampler draws no further noise."""
    extractor = emoji_extractor()
    assert extractor.data is not None
    data, subject = Data(extractor.data), subject_of(original)
    count = min(SAMPLES, COMPARED)
    converged = subject.pictures(
        Drawer(subject, 0).draw(replace(CONVERGED, guidance=sampling.guidance, batch=count), 0, count).samples
    )
    rows = []
    for each, setting in _both(subject, student, sampling, COMPARED):
        drawn = Drawer(each, 0).draw(setting, 0, SAMPLES)
        pictures = each.pictures(drawn.samples)
        found = data.compare(extractor(pictures))
        noisy = setting.solver == "consistency" and setting.steps > 1
        rows.append(
            {
                "network": "teacher" if each is subject else "student",
                "solver": setting.solver,
                "steps": setting.steps,
                "evaluations": drawn.evaluations,
                "samples": SAMPLES,
                "rmse": None if noisy else rms(rmse(pictures[:count], converged)),
                **{name: asdict(found[name]) for name in SHOWN},
            }
        )
    return rows


def _both(subject: Subject, student: nn.Module, sampling: Sampling, batch: int) -> list[tuple[Subject, Setting]]:
    """The teacher, and the student in each of its numbers of steps, the most first."""
    other = replace(subject, model=student)
    steps = sorted({sampling.steps, *sampling.other_steps}, reverse=True)
    students = [(other, Setting(sampling.solver, n, batch=batch, grid=sampling.grid)) for n in steps]
    return [(subject, replace(TEACHER, guidance=sampling.guidance, batch=batch)), *students]
