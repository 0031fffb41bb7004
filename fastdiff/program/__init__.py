"""Solvers as data: the Program, how a step's formula becomes one, and what in it is not linear."""

from fastdiff.program.program import KINDS, Apply, Call, Combine, Instruction, Output, Program, Source
from fastdiff.program.transforms import TRANSFORMS

__all__ = ["KINDS", "TRANSFORMS", "Apply", "Call", "Combine", "Instruction", "Output", "Program", "Source"]
