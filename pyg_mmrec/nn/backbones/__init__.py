"""Backbones in stages, and recommenders without training to hold them against."""

from inspect import isabstract

from pyg_mmrec.nn.backbones.backbone import Backbone
from pyg_mmrec.nn.backbones.bm3 import BM3
from pyg_mmrec.nn.backbones.bprmf import BPRMF
from pyg_mmrec.nn.backbones.content_backbone import ContentBackbone
from pyg_mmrec.nn.backbones.freedom import FREEDOM
from pyg_mmrec.nn.backbones.grcn import GRCN
from pyg_mmrec.nn.backbones.item_knn import ItemKNN
from pyg_mmrec.nn.backbones.lattice import LATTICE
from pyg_mmrec.nn.backbones.layergcn import LayerGCN
from pyg_mmrec.nn.backbones.lightgcn import LightGCN
from pyg_mmrec.nn.backbones.mmgcn import MMGCN
from pyg_mmrec.nn.backbones.most_pop import MostPop
from pyg_mmrec.nn.backbones.selfcf import SelfCF
from pyg_mmrec.nn.backbones.stages import (
    EVERY_ROW,
    GatheredTriplets,
    Rows,
    SomeRows,
    Stages,
    Triplets,
)
from pyg_mmrec.nn.backbones.vbpr import VBPR
from pyg_mmrec.nn.backbones.vlattice import VLATTICE
from pyg_mmrec.nn.backbones.vlightgcn import VLightGCN

__all__ = [
    "BACKBONES",
    "EVERY_ROW",
    "BM3",
    "BPRMF",
    "Backbone",
    "ContentBackbone",
    "FREEDOM",
    "GRCN",
    "GatheredTriplets",
    "ItemKNN",
    "LATTICE",
    "LayerGCN",
    "LightGCN",
    "MMGCN",
    "MostPop",
    "Rows",
    "SelfCF",
    "SomeRows",
    "Stages",
    "Triplets",
    "VBPR",
    "VLATTICE",
    "VLightGCN",
]

#: Every backbone, by name.
BACKBONES: dict[str, type[Backbone]] = {
    name: item
    for name, item in list(globals().items())
    if isinstance(item, type) and issubclass(item, Backbone) and not isabstract(item)
}
