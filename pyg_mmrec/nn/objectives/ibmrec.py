"""IBMRec: which of its parts go with a backbone."""

from __future__ import annotations

from pyg_mmrec.nn.backbones import Backbone
from pyg_mmrec.nn.objectives.fib import FIB
from pyg_mmrec.nn.objectives.gib import GIB
from pyg_mmrec.nn.objectives.method import Method
from pyg_mmrec.nn.objectives.second_stage import SecondStage


def ibmrec(backbone: Backbone | type[Backbone]) -> list[Method]:
    """The parts of IBMRec ("Less is More: Information Bottleneck Denoised Multimedia
    Recommendation", Table 3) that go with a backbone, with their default options.

    VBPR and VLightGCN take :class:`FIB` and :class:`SecondStage`, LATTICE takes :class:`GIB`,
    VLATTICE all three. The rule for others: :class:`GIB` if there is an item-item graph,
    :class:`SecondStage` if users have multimedia vectors, and :class:`FIB` if they have some or
    there is no item-item graph; of a backbone that projects only some of its modalities, such as
    MMGCN, it asks for their names.

    Args:
        backbone (Backbone or type): The backbone, or its class.

    Example:
        .. code-block:: python

            objective = Objective(backbone, *ibmrec(backbone))
    """
    parts: list[Method] = []
    if backbone.has_user_content or not backbone.has_item_graph:
        parts.append(FIB())
    if backbone.has_item_graph:
        parts.append(GIB())
    if backbone.has_user_content:
        parts.append(SecondStage())
    return parts
