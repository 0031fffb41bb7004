"""Guidance: how conditions steer the sample."""
