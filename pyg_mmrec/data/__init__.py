from .adjacency import Adjacency
from .feature_file import (
    ModalityFeatures,
    NeighborGraph,
    find_features,
    find_graphs,
    load_features,
    load_graph,
)
from .graph import Graph
from .interaction_file import INTERACTION_COLUMNS, Interactions, read_interactions
from .modality import feature_fingerprint, modalities, modality_order
from .multimodal_dataset import MultimodalDataset, to_hetero_data
from .planted_dataset import PlantedDataset
from .splits import (
    global_temporal_split,
    has_training,
    item_cold_start_split,
    random_split,
    temporal_split,
)
from .statistics import fingerprints, statistics

__all__ = [
    "Adjacency",
    "Graph",
    "INTERACTION_COLUMNS",
    "Interactions",
    "ModalityFeatures",
    "MultimodalDataset",
    "NeighborGraph",
    "PlantedDataset",
    "feature_fingerprint",
    "find_features",
    "find_graphs",
    "fingerprints",
    "global_temporal_split",
    "has_training",
    "item_cold_start_split",
    "load_features",
    "load_graph",
    "modalities",
    "modality_order",
    "random_split",
    "read_interactions",
    "statistics",
    "temporal_split",
    "to_hetero_data",
]
