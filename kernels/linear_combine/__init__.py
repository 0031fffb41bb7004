"""The solver's step in Triton."""

from .forward import Forward, launch_step, linear_combine, make_table

__all__ = ["Forward", "launch_step", "linear_combine", "make_table"]
