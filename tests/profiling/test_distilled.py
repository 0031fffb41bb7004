"""A distilled model is profiled as it is sampled, and held to its teacher's trajectory."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import SCHEDULE, SHAPE, Toy, conditions, subject

import fastdiff
from fastdiff.profiling import Subject


class Student(nn.Module):
    """eps that makes a DDIM step to the data what the guided teacher's many steps give."""

    def __init__(self, teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, x, t, shift=None):
        point = SCHEDULE.point((float(t[0]) + 1) / SCHEDULE.num_steps)
        x0 = fastdiff.sample(
            self.teacher, x, schedule=SCHEDULE, prediction="eps", solver="unipc-3", steps=128, start=point.t,
            guidance=2.0, cond={"shift": shift}, uncond={"shift": torch.zeros_like(shift)},
        )  # fmt: skip
        return (x - point.alpha * x0) / point.sigma


@pytest.fixture
def student():
    teacher = replace(subject(), guidance=2.0)
    return Subject(
        "student", Student(teacher.model), SHAPE, SCHEDULE, "eps", conditions, features="pixels", teacher=teacher,
        axes={"solvers": ["ddim"], "steps": [1, 2], "grids": ["trailing"]},
    )  # fmt: skip


def test_it_is_compared_with_its_teacher(student, tmp_path):
    found = fastdiff.profile(student, samples=12, reference_steps=128, out=tmp_path)
    rows = {(row["setting"]["solver"], row["setting"]["steps"]): row for row in found.rows}
    assert set(rows) == {("ddim", 1), ("ddim", 2)}
    assert all((row["setting"]["grid"], row["setting"]["guidance"]) == ("trailing", 1) for row in rows.values())
    assert rows["ddim", 1]["rmse"]["value"] < 1e-3
    alone = replace(student, teacher=None, model=Toy())
    without = fastdiff.profile(alone, samples=12, reference_steps=128, out=tmp_path / "alone", steps=[1])
    assert without.rows[0]["rmse"]["value"] > 0.1


def test_what_is_named_is_profiled(student, tmp_path):
    found = fastdiff.profile(student, solvers=["euler"], steps=[3], samples=12, reference_steps=8, out=tmp_path)
    settings = [row["setting"] for row in found.rows]
    assert [(each["solver"], each["steps"], each["grid"]) for each in settings] == [("euler", 3, "trailing")]


def test_the_teacher_moves_with_it(student):
    moved = student.to(torch.device("meta"))
    assert moved.teacher.device == moved.device == torch.device("meta")
