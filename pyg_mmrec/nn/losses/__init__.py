"""Loss terms, each as one function and one module."""

from pyg_mmrec.nn.losses.bpr import BPRLoss, bpr_loss, triplet_scores
from pyg_mmrec.nn.losses.divergence import (
    DistillationLoss,
    js_divergence,
    kl_divergence,
    softmax_twice_divergence,
)
from pyg_mmrec.nn.losses.embedding_norm import EmbLoss, L2Loss, emb_loss, l2_loss
from pyg_mmrec.nn.losses.hsic import HSICLoss, KernelRows, hsic, median_variance, rbf_kernel
from pyg_mmrec.nn.losses.info_nce import InfoNCELoss, info_nce
from pyg_mmrec.nn.losses.rate import BottleneckRate, NormalKLRate, bottleneck_rate, normal_kl_rate

__all__ = [
    "BPRLoss",
    "BottleneckRate",
    "DistillationLoss",
    "EmbLoss",
    "HSICLoss",
    "InfoNCELoss",
    "KernelRows",
    "L2Loss",
    "NormalKLRate",
    "bottleneck_rate",
    "bpr_loss",
    "emb_loss",
    "hsic",
    "info_nce",
    "js_divergence",
    "kl_divergence",
    "l2_loss",
    "median_variance",
    "normal_kl_rate",
    "rbf_kernel",
    "softmax_twice_divergence",
    "triplet_scores",
]
