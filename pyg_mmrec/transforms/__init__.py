from .feature_noise import AddFeatureNoise
from .fuse_graphs import FuseModalityGraphs
from .item_cosine_graph import ItemCosineGraph
from .knn_graph import KNN_INDEXES, ModalityKNNGraph, cosine_knn
from .modality_features import replace_features
from .normalize import (
    NormalizeInteractions,
    normalize_item_graph,
    row_normalization,
    symmetric_normalization,
)
from .prune import (
    DegreeSensitivePruning,
    degree_sensitive_sample,
    degree_sensitive_weight,
    num_kept_edges,
    prune_interactions,
)
from .redundancy import AddTextRedundancy, AddVisualRedundancy
from .scale_features import ScaleFeatures

__all__ = [
    "AddFeatureNoise",
    "AddTextRedundancy",
    "AddVisualRedundancy",
    "DegreeSensitivePruning",
    "FuseModalityGraphs",
    "ItemCosineGraph",
    "KNN_INDEXES",
    "ModalityKNNGraph",
    "NormalizeInteractions",
    "ScaleFeatures",
    "cosine_knn",
    "degree_sensitive_sample",
    "degree_sensitive_weight",
    "normalize_item_graph",
    "num_kept_edges",
    "prune_interactions",
    "replace_features",
    "row_normalization",
    "symmetric_normalization",
]
