"""Measuring how well a model ranks."""

from .full_ranking import FORMULAS, KS, FullRanking

__all__ = ["FORMULAS", "KS", "FullRanking"]
