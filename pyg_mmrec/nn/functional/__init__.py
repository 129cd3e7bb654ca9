"""Formulas as functions."""

from pyg_mmrec.nn.functional.confidence_weight import confidence_weight
from pyg_mmrec.nn.functional.edge_softmax import edge_softmax
from pyg_mmrec.nn.functional.normalize_rows import normalize_rows
from pyg_mmrec.nn.functional.spmm import sddmm, spmm
from pyg_mmrec.nn.functional.unit_dot import unit_dot

__all__ = ["confidence_weight", "edge_softmax", "normalize_rows", "sddmm", "spmm", "unit_dot"]
