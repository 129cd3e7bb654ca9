from torch import Tensor, nn

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.functional.spmm import spmm


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
        ValueError: If ``num_layers`` is not such a number, or a graph is no
            :class:`~pyg_mmrec.data.Adjacency`.

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
        self, user: Tensor, item: Tensor, to_item: Adjacency, to_user: Adjacency
    ) -> tuple[Tensor, Tensor]:
        """Propagates users and items through all layers."""
        for name, graph in (("to_item", to_item), ("to_user", to_user)):
            if not isinstance(graph, Adjacency):
                raise ValueError(
                    f"'{name}' needs to be an Adjacency, made with 'Adjacency.from_edge_index' "
                    f"(got {type(graph).__name__})"
                )
        # Horner's scheme: sum_l A^l E = E + A (E + A (E + ...)).
        user_sum, item_sum = user, item
        for layer in range(self.num_layers):
            factor = 1 / (self.num_layers + 1) if layer == self.num_layers - 1 else 1.0
            user_sum, item_sum = (
                spmm(to_user, item_sum, base=user, factor=factor),
                spmm(to_item, user_sum, base=item, factor=factor),
            )
        return user_sum, item_sum
