from typing import Any

import torch
from torch import Tensor, nn

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.functional.spmm import check_features, spmm, weighted_sum


def _product(graph: list[Tensor], x: Tensor) -> Tensor:
    rowptr, col, weight = graph
    return weighted_sum(rowptr, col, weight, x)


@torch.library.custom_op("pyg_mmrec::rows_of_mean_layer", mutates_args=())
def _rows_of_mean_layer(
    user: Tensor,
    item: Tensor,
    user_rows: Tensor,
    item_rows: Tensor,
    to_item: list[Tensor],
    to_user: list[Tensor],
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    """Some rows of the mean over the layers, which is made for no other row. A graph is given as
    ``rowptr, col, weight``, then the same of its transpose.
    """
    users, items = user.index_select(0, user_rows), item.index_select(0, item_rows)
    for _ in range(num_layers):
        user, item = _product(to_user[:3], item), _product(to_item[:3], user)
        users += user.index_select(0, user_rows)
        items += item.index_select(0, item_rows)
    return users.div_(num_layers + 1), items.div_(num_layers + 1)


@_rows_of_mean_layer.register_fake
def _(
    user: Tensor, item: Tensor, user_rows: Tensor, item_rows: Tensor, *graphs: Any
) -> tuple[Tensor, Tensor]:
    channels = user.size(1)
    return user.new_empty(user_rows.size(0), channels), item.new_empty(item_rows.size(0), channels)


@torch.library.custom_op("pyg_mmrec::rows_of_mean_layer_backward", mutates_args=())
def _rows_of_mean_layer_backward(
    users: Tensor,
    items: Tensor,
    user_rows: Tensor,
    item_rows: Tensor,
    to_item: list[Tensor],
    to_user: list[Tensor],
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    """The same sum over layers, of gradients that flow from the rows along transposed graphs."""
    users, items = users / (num_layers + 1), items / (num_layers + 1)
    num_users, num_items = to_user[0].numel() - 1, to_item[0].numel() - 1
    user = users.new_zeros(num_users, users.size(1)).index_add_(0, user_rows, users)
    item = items.new_zeros(num_items, items.size(1)).index_add_(0, item_rows, items)
    for _ in range(num_layers):  # Horner's scheme: g + A' (g + A' (g + ...))
        user, item = _product(to_item[3:], item), _product(to_user[3:], user)
        user.index_add_(0, user_rows, users)
        item.index_add_(0, item_rows, items)
    return user, item


@_rows_of_mean_layer_backward.register_fake
def _(users: Tensor, items: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _, _, to_item, to_user, _ = others
    channels = users.size(1)
    return (
        users.new_empty(to_user[0].size(0) - 1, channels),
        items.new_empty(to_item[0].size(0) - 1, channels),
    )


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, user_rows, item_rows, to_item, to_user, ctx.num_layers = inputs
    ctx.save_for_backward(user_rows, item_rows, *to_item, *to_user)


def _backward(ctx: Any, users: Tensor, items: Tensor) -> tuple[Any, ...]:
    user_rows, item_rows, *graphs = ctx.saved_tensors
    to_item, to_user = graphs[:6], graphs[6:]
    user, item = _rows_of_mean_layer_backward(
        users, items, user_rows, item_rows, to_item, to_user, ctx.num_layers
    )
    return user, item, None, None, [None] * 6, [None] * 6, None


_rows_of_mean_layer.register_autograd(_backward, setup_context=_context)


def _sorted_both_ways(graph: Adjacency, dtype: torch.dtype) -> list[Tensor]:
    return [
        graph.rowptr, graph.col, graph.weight.to(dtype),
        graph.rowptr_t, graph.col_t, graph.weight_t.to(dtype),
    ]  # fmt: skip


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
        check_features(to_item, user, "user")
        check_features(to_user, item, "item")
        if user.dtype != item.dtype or user.size(1) != item.size(1):
            raise ValueError(
                f"'user' and 'item' need the same type and width (got {user.dtype} "
                f"{list(user.shape)} and {item.dtype} {list(item.shape)})"
            )
        learned = to_item.weight.requires_grad or to_user.weight.requires_grad
        if rows is not None and not learned:
            graphs = (_sorted_both_ways(graph, user.dtype) for graph in (to_item, to_user))
            return _rows_of_mean_layer(user, item, *rows, *graphs, self.num_layers)
        # Horner's scheme: sum_l A^l E = E + A (E + A (E + ...)).
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
