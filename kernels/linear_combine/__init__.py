"""The solver's step in Triton."""

from .forward import launch_step, linear_combine, make_table

__all__ = ["launch_step", "linear_combine", "make_table"]
