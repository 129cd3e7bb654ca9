"""The least time in which this machine can do what a training step of LightGCN or FREEDOM must."""

from __future__ import annotations

import torch
from clock import Clock
from common_way import CHANNELS

from pyg_mmrec.data.graph import INTERACTS, SIMILAR
from pyg_mmrec.training import Trainer


def machine(device: torch.device) -> dict[str, float]:
    """Measured copy bandwidth (bytes read and written per second) and product rate (FLOP/s)."""
    clock = Clock(device)
    x, y = torch.empty(2, 2**26, device=device)
    a, b = torch.rand(2, 2048, 2048, device=device)
    best = {"bandwidth": 0.0, "flops": 0.0}
    for _ in range(5):
        start = clock.now()
        y.copy_(x)
        middle = clock.now()
        torch.mm(a, b)
        best["bandwidth"] = max(best["bandwidth"], 2 * 4 * x.numel() / (middle - start))
        best["flops"] = max(best["flops"], 2 * 2048**3 / (clock.now() - middle))
    return best


def limits(trainer: Trainer, rates: dict[str, float]) -> dict[str, float]:
    """Least seconds of LightGCN's or FREEDOM's propagation and of its step.

    A propagation reads every edge (index and weight, 8 bytes, in both directions) and every row
    once and writes every row once, per layer, forward and backward. A step adds Adam (four numbers
    read, three written, per parameter), the batch's rows, and for FREEDOM the item graph and the
    batch's rows of the projections.
    """
    backbone, graph = trainer.backbone, trainer.graph
    sizes = (backbone.num_users + backbone.num_items, backbone.num_items)
    layers = backbone.propagation.num_layers  # type: ignore[union-attr]
    edges = 2 * graph.adjacency[INTERACTS].num_edges
    if getattr(backbone, "edge_dropout", 0.0):
        edges = round(edges * (1 - backbone.edge_dropout))  # type: ignore[arg-type,operator]

    def seconds(moved: float, flops: float) -> float:
        return max(moved / rates["bandwidth"], flops / rates["flops"])

    def product(num_edges: int, rows: int) -> float:  # forward and backward
        flops = 2 * num_edges * CHANNELS
        return 2 * seconds(8 * num_edges + 8 * rows * CHANNELS, flops)

    propagate = layers * product(edges, sizes[0])
    step = propagate
    batch = trainer.options.batch_size
    step += seconds(4 * 3 * batch * CHANNELS * 4, 0)  # rows gathered, their gradients scattered
    parameters = [p for p in trainer.objective.parameters() if p.requires_grad]
    step += seconds(28 * sum(p.numel() for p in parameters), 0)
    similar = graph.adjacency.get(SIMILAR)
    if similar is not None:
        step += product(similar.num_edges, sizes[1])
    if getattr(backbone, "reg_weight", 0.0) and hasattr(backbone, "projection"):
        for x in graph.x.values():
            rows, width = min(2 * batch, x.size(0)), x.size(1)
            step += seconds(4 * 2 * rows * width, 2 * 2 * rows * width * CHANNELS)
    return {"propagation": propagate, "step": step}
