"""The functions phi of exponential integrators: Hochbruck & Ostermann 2010, Exponential Integrators, Eq. 2.10."""

from __future__ import annotations

from functools import lru_cache
from math import expm1, factorial


@lru_cache(maxsize=256)  # the stages of a step ask for the same ones
def phi(k: int, z: float) -> float:
    """phi_k(z) = integral over u in (0, 1) of e^((1 - u) z) u^(k - 1) / (k - 1)! = sum over n of z^n / (n + k)!.

    k >= 1. Where |z| < 1 the series: the recurrence phi_k+1 = (phi_k - 1 / k!) / z loses a factor 1 / z of the digits
    in each of its steps.
    """
    if abs(z) < 1:
        term = total = 1 / factorial(k)
        for n in range(k + 1, k + 20):
            term *= z / n
            total += term
        return total
    value = expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / factorial(j)) / z
    return value
