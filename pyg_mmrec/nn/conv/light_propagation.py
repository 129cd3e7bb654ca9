from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.functional.spmm import check_features, outside_autocast, spmm, weighted_sum

# A graph in the type of the vectors, and its transpose: ``rowptr, col, weight``, twice.
_CSR = tuple[Tensor, Tensor, Tensor]
_Sorted = tuple[_CSR, _CSR]


def _sorted_both_ways(graph: Adjacency, dtype: torch.dtype) -> _Sorted:
    return (
        (graph.rowptr, graph.col, graph.weight.to(dtype)),
        (graph.rowptr_t, graph.col_t, graph.weight_t.to(dtype)),
    )


class _MeanLayer(torch.autograd.Function):
    """Mean over the layers; its gradient is the same over transposed graphs."""

    @staticmethod
    def forward(
        user: Tensor, item: Tensor, to_item: _Sorted, to_user: _Sorted, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        user_sum, item_sum = user, item
        for layer in range(num_layers):  # Horner's scheme: E + A (E + A (E + ...))
            factor = 1 / (num_layers + 1) if layer == num_layers - 1 else 1.0
            user_sum, item_sum = (
                weighted_sum(*to_user[0], item_sum, user, factor),
                weighted_sum(*to_item[0], user_sum, item, factor),
            )
        return user_sum, item_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.to_item, ctx.to_user, ctx.num_layers = inputs

    @staticmethod
    def backward(ctx: Any, user: Tensor, item: Tensor) -> tuple[Any, ...]:
        to_user, to_item = ctx.to_item[::-1], ctx.to_user[::-1]
        return *_MeanLayer.apply(user, item, to_item, to_user, ctx.num_layers), None, None, None


class _RowsOfMeanLayer(torch.autograd.Function):
    """Some rows of the mean over the layers, which is made for no other row."""

    @staticmethod
    def forward(
        user: Tensor,
        item: Tensor,
        user_rows: Tensor,
        item_rows: Tensor,
        to_item: _Sorted,
        to_user: _Sorted,
        num_layers: int,
    ) -> tuple[Tensor, Tensor]:
        users, items = user.index_select(0, user_rows), item.index_select(0, item_rows)
        for _ in range(num_layers):
            user, item = weighted_sum(*to_user[0], item), weighted_sum(*to_item[0], user)
            users += user.index_select(0, user_rows)
            items += item.index_select(0, item_rows)
        return users.div_(num_layers + 1), items.div_(num_layers + 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, user_rows, item_rows, ctx.to_item, ctx.to_user, ctx.num_layers = inputs
        ctx.save_for_backward(user_rows, item_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, users: Tensor, items: Tensor) -> tuple[Any, ...]:
        user_rows, item_rows = ctx.saved_tensors
        to_user: _CSR = ctx.to_item[1]
        to_item: _CSR = ctx.to_user[1]
        users, items = users / (ctx.num_layers + 1), items / (ctx.num_layers + 1)
        num_users, num_items = to_user[0].numel() - 1, to_item[0].numel() - 1
        user = users.new_zeros(num_users, users.size(1)).index_add_(0, user_rows, users)
        item = items.new_zeros(num_items, items.size(1)).index_add_(0, item_rows, items)
        for _ in range(ctx.num_layers):  # Horner's scheme: g + A' (g + A' (g + ...))
            user, item = weighted_sum(*to_user, item), weighted_sum(*to_item, user)
            user.index_add_(0, user_rows, users)
            item.index_add_(0, item_rows, items)
        return user, item, None, None, None, None, None


class LightPropagation(nn.Module):
    r"""Light propagation over users and items, the mean of all layers.

    .. math::
        \mathbf{E}^{(l+1)} = \hat{\mathbf{A}} \mathbf{E}^{(l)}, \qquad
        \mathbf{E} = \frac{1}{L+1} \sum_{l=0}^{L} \mathbf{E}^{(l)}

    (`"LightGCN" <https://arxiv.org/abs/2002.02126>`_, Eq. 7-8). The bipartite graph is given as
    its two directions, which replace one square matrix over users and items.

    Args:
        num_layers (int): Number of layers :math:`L`, 0 or more.

    Raises:
        ValueError: If ``num_layers`` is not such a number, a graph is no
            :class:`~pyg_mmrec.data.Adjacency`, or vectors do not fit it or each other.

    Shapes:
        - **input:** users :math:`(|\mathcal{U}|, F)`, items :math:`(|\mathcal{I}|, F)`,
          the :class:`~pyg_mmrec.data.Adjacency` from users to items and the one from items to users
        - **output:** users :math:`(|\mathcal{U}|, F)`, items :math:`(|\mathcal{I}|, F)`

    Example:
        >>> import torch
        >>> to_item = Adjacency.from_edge_index(torch.tensor([[0, 1], [0, 0]]))  # 2 users, 1 item
        >>> user, item = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0]])
        >>> user, item = LightPropagation(1)(user, item, to_item, to_item.t())
        >>> user.flatten().tolist(), item.flatten().tolist()
        ([2.5, 3.0], [3.5])
    """

    def __init__(self, num_layers: int):
        super().__init__()
        if type(num_layers) is not int or num_layers < 0:
            raise ValueError(
                f"'num_layers' needs to be an integer of 0 or more (got {num_layers!r})"
            )
        self.num_layers = num_layers

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        to_item: Adjacency,
        to_user: Adjacency,
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Propagates users and items through all layers.

        Args:
            user (torch.Tensor): User vectors.
            item (torch.Tensor): Item vectors.
            to_item (Adjacency): The graph from users to items.
            to_user (Adjacency): The graph from items to users.
            rows (tuple, optional): Ids of users and of items; the result then has their rows
                alone, made faster, and is differentiable once. (default: every row)
        """
        for name, graph in (("to_item", to_item), ("to_user", to_user)):
            if not isinstance(graph, Adjacency):
                raise ValueError(
                    f"'{name}' needs to be an Adjacency, made with 'Adjacency.from_edge_index' "
                    f"(got {type(graph).__name__})"
                )
        user, item = outside_autocast(user), outside_autocast(item)
        check_features(to_item, user, "user")
        check_features(to_user, item, "item")
        if user.dtype != item.dtype or user.size(1) != item.size(1):
            raise ValueError(
                f"'user' and 'item' need the same type and width (got {user.dtype} "
                f"{list(user.shape)} and {item.dtype} {list(item.shape)})"
            )
        if self.num_layers > 0 and not (
            to_item.weight.requires_grad
            or to_user.weight.requires_grad
            or torch.compiler.is_compiling()  # which is told what a product is, not what these are
        ):
            graphs = [_sorted_both_ways(graph, user.dtype) for graph in (to_item, to_user)]
            if rows is None:
                return _MeanLayer.apply(user, item, *graphs, self.num_layers)
            return _RowsOfMeanLayer.apply(user, item, *rows, *graphs, self.num_layers)
        user_sum, item_sum = user, item
        for layer in range(self.num_layers):
            factor = 1 / (self.num_layers + 1) if layer == self.num_layers - 1 else 1.0
            user_sum, item_sum = (
                spmm(to_user, item_sum, base=user, factor=factor),
                spmm(to_item, user_sum, base=item, factor=factor),
            )
        if rows is not None:
            return user_sum.index_select(0, rows[0]), item_sum.index_select(0, rows[1])
        return user_sum, item_sum
