"""Graph layers, usable alone in any PyG project."""

from pyg_mmrec.nn.conv.confidence_conv import ConfidenceConv
from pyg_mmrec.nn.conv.cosine_knn_conv import CosineKNNConv, cosine_knn_adjacency
from pyg_mmrec.nn.conv.layer_refinement_conv import LayerRefinementConv
from pyg_mmrec.nn.conv.light_propagation import LightPropagation
from pyg_mmrec.nn.conv.mmgcn_conv import MMGCNConv
from pyg_mmrec.nn.conv.routing_attention_conv import RoutingAttentionConv
from pyg_mmrec.nn.conv.row_normalized_conv import RowNormalizedConv
from pyg_mmrec.nn.conv.weighted_conv import WeightedConv

__all__ = [
    "ConfidenceConv",
    "CosineKNNConv",
    "LayerRefinementConv",
    "LightPropagation",
    "MMGCNConv",
    "RoutingAttentionConv",
    "RowNormalizedConv",
    "WeightedConv",
    "cosine_knn_adjacency",
]
