"""Training methods over any backbone."""

from pyg_mmrec.nn.objectives.amr import AMR
from pyg_mmrec.nn.objectives.dvib import DVIBa, DVIBc
from pyg_mmrec.nn.objectives.fib import FIB
from pyg_mmrec.nn.objectives.gib import GIB, mask_item_graph
from pyg_mmrec.nn.objectives.ibmrec import ibmrec
from pyg_mmrec.nn.objectives.method import Method
from pyg_mmrec.nn.objectives.mirror_gradient import MirrorGradient
from pyg_mmrec.nn.objectives.objective import Objective
from pyg_mmrec.nn.objectives.second_stage import SecondStage

__all__ = [
    "AMR",
    "DVIBa",
    "DVIBc",
    "FIB",
    "GIB",
    "Method",
    "MirrorGradient",
    "Objective",
    "SecondStage",
    "ibmrec",
    "mask_item_graph",
]
