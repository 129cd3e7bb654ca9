"""The tensors of a :class:`~torch_geometric.data.HeteroData` that backbones compute on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import register_dataclass
from torch.utils import _pytree as pytree
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType

from pyg_mmrec.data.adjacency import Adjacency, moved
from pyg_mmrec.data.modality import modalities

INTERACTS: EdgeType = ("user", "interacts", "item")
INTERACTED_BY: EdgeType = ("item", "rev_interacts", "user")
SIMILAR: EdgeType = ("item", "similar", "item")


def check_hetero(data: HeteroData) -> None:
    """Raises a :class:`ValueError` that names what is missing or wrong in the data of a backbone:
    nodes, ids of the edges, shape and values of the modalities' features.
    """
    if not isinstance(data, HeteroData):
        raise ValueError(
            f"'data' needs to be a HeteroData, of a data set its [0] (got {type(data).__name__})"
        )
    for node_type in ("user", "item"):
        if node_type not in data.node_types or data[node_type].num_nodes is None:
            raise ValueError(f"'data' needs nodes of type '{node_type}' with 'num_nodes'")
    if INTERACTS not in data.edge_types:
        raise ValueError(f"'data' needs edges of type {INTERACTS}")
    num_items = data["item"].num_nodes
    for name in modalities(data):
        store = data[name]
        mask = store.mask if "mask" in store else None
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (num_items,)):
            raise ValueError(
                f"'mask' of '{name}' needs to be boolean of shape [{num_items}], one value per "
                f"item (got {mask.dtype} {list(mask.shape)})"
            )
        if "x" not in store:
            continue
        if store.x.dim() != 2 or store.x.size(0) != num_items:
            raise ValueError(
                f"'x' of '{name}' needs shape [{num_items}, channels], one row per item "
                f"(got {list(store.x.shape)})"
            )
        bad = ~store.x.sum(1, dtype=torch.float64).isfinite()  # without a mask as large as x
        if mask is not None:
            bad &= mask  # whatever stands where an item lacks it
        if bool(bad.any()):
            raise ValueError(
                f"'x' of '{name}' holds NaN or infinite values in {int(bad.sum())} rows, the first "
                f"of item {int(bad.int().argmax())}; a boolean 'mask' says which items have it"
            )
    for edge_type in data.edge_types:
        if "edge_index" not in data[edge_type]:
            raise ValueError(f"the edges {edge_type} of 'data' need an 'edge_index'")
        edge_index = data[edge_type].edge_index
        if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.is_floating_point():
            raise ValueError(
                f"'edge_index' of {edge_type} needs to be an integer tensor of shape [2, "
                f"num_edges] (got {edge_index.dtype} {list(edge_index.shape)})"
            )
        for node_type, ids in zip(edge_type[::2], edge_index, strict=True):
            count = data[node_type].num_nodes
            if ids.numel() == 0 or count is None:
                continue
            low, high = map(int, ids.aminmax())
            if low < 0 or high >= count:
                raise ValueError(
                    f"'edge_index' of {edge_type} needs ids of '{node_type}' from 0 to {count - 1} "
                    f"(got {low} to {high})"
                )


@dataclass(frozen=True)
class Graph:
    r"""What a backbone reads: a pytree of tensors made from a :class:`HeteroData`.

    A graph is an *argument* of a backbone, never a member. Methods that need another graph (masked
    edges, perturbed features) pass another one, made with :meth:`replace`.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        x (dict[str, torch.Tensor]): Features ``[num_items, F]`` of each modality that has some.
        mask (dict[str, torch.Tensor]): ``[num_items]``, true where an item has the modality; only
            for modalities that some item lacks.
        adjacency (dict[tuple[str, str, str], Adjacency]): One sorted adjacency per edge type. The
            training interactions stand there in both directions, as
            ``('user', 'interacts', 'item')`` and ``('item', 'rev_interacts', 'user')``.
        weighted (tuple): Edge types whose weights a transform has set; the others' are ones.
        content (dict[str, torch.Tensor]): Projections of ``x`` ``[num_items, channels]`` that a
            method has made for this step, so that the backbone need not make them again. They go
            when ``x`` or ``mask`` is replaced.
    """

    num_users: int
    num_items: int
    x: dict[str, Tensor]
    mask: dict[str, Tensor]
    adjacency: dict[EdgeType, Adjacency]
    weighted: tuple[EdgeType, ...] = ()
    content: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_hetero(cls, data: HeteroData) -> Graph:
        r"""Sorts the edges of ``data`` once; edges without ``edge_weight`` get weight one.

        Args:
            data (HeteroData): With node types ``user`` and ``item`` and the training interactions
                ``('user', 'interacts', 'item')``; modality nodes and item graphs are optional.

        Raises:
            ValueError: If users, items or interactions are missing, an id is out of range, or
                features have another shape than one finite row per item.
        """
        check_hetero(data)
        x, mask = {}, {}
        for modality in modalities(data):
            store = data[modality]
            if "mask" in store:
                mask[modality] = store.mask
            if "x" in store:
                x[modality] = store.x.float()
                if modality in mask:  # whatever stands there, be it NaN
                    x[modality] = x[modality].masked_fill(~store.mask[:, None], 0.0)
        adjacency = {}
        for edge_type in data.edge_types:
            source, relation, target = edge_type
            if relation == "describes":  # ties a modality node to its item, one to one
                continue
            adjacency[edge_type] = Adjacency.from_edge_index(
                data[edge_type].edge_index,
                data[edge_type].get("edge_weight"),
                size=(data[source].num_nodes, data[target].num_nodes),
            )
        adjacency[INTERACTED_BY] = adjacency[INTERACTS].t()  # whatever the data have there
        weighted = tuple(
            edge_type
            for edge_type in adjacency
            if "edge_weight" in data[INTERACTS if edge_type == INTERACTED_BY else edge_type]
        )
        return cls(
            int(data["user"].num_nodes),
            int(data["item"].num_nodes),
            x,
            mask,
            adjacency,
            weighted,
        )

    def weighted_adjacency(self, edge_type: EdgeType, made_by: str) -> Adjacency:
        """The adjacency of an edge type whose weights a transform has to set.

        Args:
            edge_type (tuple[str, str, str]): The edge type.
            made_by (str): Name of that transform, for the error message.

        Raises:
            ValueError: If the graph lacks the edges or their weights.
        """
        if edge_type not in self.weighted:
            raise ValueError(
                f"the graph has no weighted edges {edge_type}: make it with the backbone's "
                f"'graph(data)', or apply '{made_by}' before 'Graph.from_hetero(data)'"
            )
        return self.adjacency[edge_type]

    def replace(self, **changes: Any) -> Graph:
        """A graph with some fields exchanged, the others shared."""
        if "x" in changes or "mask" in changes:
            changes = {"content": {}, **changes}
        return replace(self, **changes)

    def with_interactions(self, to_item: Adjacency) -> Graph:
        """A graph with other interactions, given in the direction user to item."""
        adjacency = {**self.adjacency, INTERACTS: to_item, INTERACTED_BY: to_item.t()}
        return self.replace(adjacency=adjacency)

    def detach(self) -> Graph:
        """The same graph without gradient."""
        return pytree.tree_map_only(Tensor, Tensor.detach, self)

    def to(self, device: torch.device | str) -> Graph:
        """A copy of the graph on another device."""
        return moved(self, device)


register_dataclass(Graph)
