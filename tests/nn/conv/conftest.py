from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor

from pyg_mmrec.data import Adjacency


@pytest.fixture
def layouts() -> Callable[..., Iterator[tuple[str, Any, Tensor | None]]]:
    """Every adjacency layout that PyG knows, as (name, edge_index argument, edge_weight)."""

    def make(
        edge_index: Tensor, weight: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[str, Any, Tensor | None]]:
        transposed = torch.sparse_coo_tensor(edge_index.flip(0), weight, size[::-1]).coalesce()
        order = (edge_index[1] * size[0] + edge_index[0]).argsort()
        ordered = EdgeIndex(edge_index[:, order], sparse_size=size, sort_order="col")
        yield "coo", edge_index, weight
        yield "edge_index", EdgeIndex(edge_index, sparse_size=size), weight
        yield "sorted edge_index", ordered, weight[order]
        narrow = edge_index.int()  # as PyG allows
        yield "coo of int32", narrow, weight
        yield "edge_index of int32", EdgeIndex(narrow, sparse_size=size), weight
        yield "sorted edge_index of int32", ordered.int(), weight[order]
        yield "sparse coo", transposed, None
        yield "sparse csr", transposed.to_sparse_csr(), None
        yield "sparse csc", transposed.to_sparse_csc(), None
        yield "adjacency", Adjacency.from_edge_index(edge_index, weight, size=size), None
        if WITH_TORCH_SPARSE:
            row, col = edge_index.flip(0)
            tensor = SparseTensor(row=row, col=col, value=weight, sparse_sizes=size[::-1])
            yield "sparse tensor", tensor, None

    return make
