"""IBMRec: which of its parts go with a backbone."""

from __future__ import annotations

from pyg_mmrec.nn.backbones import Backbone
from pyg_mmrec.nn.objectives.fib import FIB
from pyg_mmrec.nn.objectives.gib import GIB
from pyg_mmrec.nn.objectives.method import Method
from pyg_mmrec.nn.objectives.second_stage import SecondStage


def ibmrec(backbone: Backbone | type[Backbone]) -> list[type[Method]]:
    """The parts of IBMRec ("Less is More: Information Bottleneck Denoised Multimedia
    Recommendation", Table 3) that go with a backbone.

    :class:`GIB` where there is an item-item graph, :class:`SecondStage` where users have multimedia
    vectors, and :class:`FIB` where these or projections alone are what represents the modalities:
    so FIB and the second stage on VBPR and VLightGCN, GIB on LATTICE, all three on VLATTICE.

    Args:
        backbone (Backbone or type): The backbone, or its class.

    Returns:
        list[type[Method]]: Classes to make the methods of.
    """
    parts: list[type[Method]] = []
    if backbone.has_user_content or not backbone.has_item_graph:
        parts.append(FIB)
    if backbone.has_item_graph:
        parts.append(GIB)
    if backbone.has_user_content:
        parts.append(SecondStage)
    return parts
