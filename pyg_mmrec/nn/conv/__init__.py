"""Graph layers, usable alone in any PyG project."""

from pyg_mmrec.nn.conv.layer_refinement_conv import LayerRefinementConv
from pyg_mmrec.nn.conv.light_propagation import LightPropagation
from pyg_mmrec.nn.conv.routing_attention_conv import RoutingAttentionConv
from pyg_mmrec.nn.conv.weighted_conv import WeightedConv

__all__ = ["LayerRefinementConv", "LightPropagation", "RoutingAttentionConv", "WeightedConv"]
