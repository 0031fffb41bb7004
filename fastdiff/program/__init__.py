"""Solvers as data: the Program, how a step's formula becomes one, and what in it is not linear."""

from fastdiff.program.program import KINDS, Apply, Call, Combine, Instruction, Output, Program, Source

__all__ = ["KINDS", "Apply", "Call", "Combine", "Instruction", "Output", "Program", "Source"]
