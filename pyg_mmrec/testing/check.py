"""What the checks of backbones and of methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import Backbone, Triplets
from pyg_mmrec.training import TripletSampler

_BATCH_SIZE = 32


def check_types(backbone: Any, graph: Any) -> None:
    """Raises a :class:`ValueError` unless it is a backbone and what one computes on."""
    if not isinstance(backbone, Backbone):
        raise ValueError(f"'backbone' needs to be a Backbone (got {_kind(backbone)})")
    if not isinstance(graph, Graph):
        raise ValueError(
            f"'graph' needs to be a Graph, as 'backbone.graph(data)' makes it (got {_kind(graph)})"
        )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def forked_random_state(graph: Graph) -> Any:
    """Gives the random states back at the end of a ``with`` block."""
    device = graph.adjacency[INTERACTS].col.device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def some_batch(graph: Graph) -> Triplets:
    """Some training interactions, with sampled negatives."""
    edge_index = graph.adjacency[INTERACTS].edge_index
    generator = torch.Generator(edge_index.device).manual_seed(0)
    sampler = TripletSampler(edge_index, graph.num_users, graph.num_items)
    return next(sampler.epoch(_BATCH_SIZE, generator))


def close(x: Any, y: Any) -> bool:
    """Tensors equal up to rounding, on the scale of the larger entries; anything else equal."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return bool(x == y)
    if x.shape != y.shape:
        return False
    if not x.is_floating_point() or x.numel() == 0:
        return torch.equal(x, y)
    scale = float(y.detach().abs().max())
    return torch.allclose(x, y, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def different(x: Mapping[str, Any], y: Mapping[str, Any]) -> list[str]:
    """Keys that only one side has, or whose tensors differ."""
    return sorted(k for k in {**x, **y} if k not in x or k not in y or not _alike(x[k], y[k]))


def _alike(x: Any, y: Any) -> bool:
    """Whether two trees of tensors have the same form and close leaves."""
    (ours, structure), (theirs, other) = pytree.tree_flatten(x), pytree.tree_flatten(y)
    return structure == other and all(map(close, ours, theirs))


class Snapshot:
    """What a tree of tensors held, to see later whether somebody wrote into it."""

    def __init__(self, tree: Any) -> None:
        leaves, self.structure = pytree.tree_flatten(tree)
        self.leaves = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]

    def holds(self, tree: Any) -> bool:
        """Whether the tree is as it was."""
        leaves, structure = pytree.tree_flatten(tree)
        return structure == self.structure and all(
            torch.equal(x, y) if isinstance(y, Tensor) else x == y
            for x, y in zip(leaves, self.leaves, strict=True)
        )


class Check:
    """What both checks share."""

    def __init__(self, backbone: Backbone, graph: Graph, batch: Triplets) -> None:
        self.backbone = backbone
        self.graph = graph
        self.batch = batch
        self.subject = type(backbone).__name__
        self.given = Snapshot(graph)
        backbone.train()

    def require(self, condition: bool, broken: str) -> None:
        """Raises what is broken (``assert`` statements are stripped under ``python -O``)."""
        if not condition:
            raise AssertionError(f"{self.subject}: {broken}")

    def require_unwritten(self, where: str) -> None:
        """The graph is as it was."""
        self.require(
            self.given.holds(self.graph),
            f"{where} writes into the graph it is given; make a new one with 'graph.replace(...)', "
            f"and new tensors instead of in-place operations",
        )

    def require_terms(self, terms: Any, where: str) -> None:
        """Loss terms are finite scalars by name."""
        self.require(
            isinstance(terms, dict) and all(isinstance(name, str) for name in terms),
            f"{where} needs to return a dict of loss terms by name (got {type(terms).__name__})",
        )
        for name, value in terms.items():
            self.require(
                isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point(),
                f"the loss term '{name}' of {where} needs to be a scalar tensor "
                f"(got {list(value.shape) if isinstance(value, Tensor) else type(value).__name__})",
            )
            self.require(
                bool(value.isfinite()), f"the loss term '{name}' of {where} is {value.item()}"
            )

    @torch.no_grad()
    def rank(self, backbone: Backbone, graph: Graph) -> Tensor:
        """Scores of all items for the batch's users, in evaluation mode."""
        training = backbone.training
        backbone.eval()
        scores = backbone.scores(backbone(graph), graph, self.batch.user)
        backbone.train(training)
        return scores


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward pass from the loss gives gradients."""
    found, seen, nodes = [], set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [before for before, _ in node.next_functions]
    return found


def finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(x.isfinite().all())


def graph_sizes(graph: Graph) -> dict[Any, tuple[int, int]]:
    """Numbers of sources and targets by edge type."""
    return {edge_type: adjacency.size for edge_type, adjacency in graph.adjacency.items()}
