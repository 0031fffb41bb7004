"""Solvers as data: the Program, how a step's formula becomes one, and what in it is not linear."""
