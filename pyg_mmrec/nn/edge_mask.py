"""A learned Bernoulli mask over the edges of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.data import Adjacency

# Numbers of the hidden layer that a CPU makes at a time: they stay in its cache.
_NUMBERS_AT_A_TIME = 2**20


class _ReluScore(torch.autograd.Function):
    r""":math:`\mathbf{w}^\top \mathrm{relu}(\mathbf{a}_j + \mathbf{b}_i)` of every edge
    :math:`j \to i`, some edges at a time, whose hidden layers are made again on the way back: all
    of them at once take 1.5 times as long (126,598 edges, 64 channels, 2 threads).
    """

    @staticmethod
    def forward(source: Tensor, target: Tensor, weight: Tensor, edge_index: Tensor) -> Tensor:
        score = source.new_empty(edge_index.size(1))
        for edges, hidden in _hidden_layers(source, target, edge_index):
            torch.mv(hidden, weight, out=score[edges])
        return score

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, target, weight, edge_index = ctx.saved_tensors
        grads = torch.zeros_like(source), torch.zeros_like(target)
        grad_weight = torch.zeros_like(weight)
        for edges, hidden in _hidden_layers(source, target, edge_index):
            grad_weight.addmv_(hidden.t(), grad[edges])
            passed = hidden.gt_(0).mul_(grad[edges, None])  # times the weights, at the end
            for total, ends in zip(grads, edge_index[:, edges], strict=True):
                total.index_add_(0, ends, passed)
        return grads[0].mul_(weight), grads[1].mul_(weight), grad_weight, None


def _hidden_layers(
    source: Tensor, target: Tensor, edge_index: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the edges, and their hidden layers, in the same memory one after the other."""
    step = max(edge_index.size(1), 1)
    if source.device.type == "cpu":
        step = min(step, max(_NUMBERS_AT_A_TIME // source.size(1), 1))
    buffers = source.new_empty(2, step, source.size(1))
    for begin in range(0, edge_index.size(1), step):
        edges = slice(begin, begin + step)
        hidden, other = buffers[:, : edge_index[0, edges].numel()]
        torch.index_select(source, 0, edge_index[0, edges], out=hidden)
        torch.index_select(target, 0, edge_index[1, edges], out=other)
        yield edges, hidden.add_(other).relu_()


class BernoulliEdgeMask(nn.Module):
    r"""Learns which edges matter: keeps each edge with a probability read off its two ends (IBMRec,
    Eq. 23-24).

    .. math::
        \rho_{ij} \sim \mathrm{Bernoulli}(w_{ij}), \qquad
        w_{ij} = \mathrm{sigmoid}(\mathrm{MLP}([\mathbf{h}_i \Vert \mathbf{h}_j]))

    with one hidden layer, ReLU. In training, a binary-concrete relaxation is drawn, with the
    temperature :math:`t`,

    .. math::
        \rho_{ij} = \mathrm{sigmoid} \left( \frac{1}{t} \big( \mathrm{logit}(w_{ij}) +
        \log \epsilon - \log (1 - \epsilon) \big) \right), \qquad \epsilon \sim \mathcal{U}(0, 1)

    (`Maddison et al., 2017 <https://arxiv.org/abs/1611.00712>`_); in evaluation, the mask is its
    expectation :math:`w_{ij}`. The paper writes no sigmoid around the MLP; a probability needs one.
    Differentiable once.

    Args:
        in_channels (int or tuple[int, int]): Size of the nodes' vectors :math:`\mathbf{h}`, or of
            those of sources and of targets.
        hidden_channels (int, optional): Size of the hidden layer. (default: 64)
        temperature (float, optional): :math:`t`. (default: 0.2)
        straight_through (bool, optional): Whether the mask is rounded to 0 or 1 on the way forward,
            with the relaxation's gradient. (default: :obj:`False`)

    Shapes:
        - **input:** vectors :math:`(|\mathcal{V}|, F)`, or a pair :math:`((|\mathcal{V_s}|, F_s),
          (|\mathcal{V_t}|, F_t))` of sources and targets; edges :math:`(2, |\mathcal{E}|)`, or an
          :class:`~pyg_mmrec.data.Adjacency`
        - **output:** :math:`(|\mathcal{E}|)`, in [0, 1], in the order of ``edge_index``

    Raises:
        ValueError: If a size or the temperature is not positive.

    Example:
        >>> import torch
        >>> x, edge_index = torch.randn(4, 16), torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> edge_mask = BernoulliEdgeMask(16)
        >>> edge_weight = edge_mask(x, edge_index)  # for any layer that takes edge weights
        >>> edge_weight.shape
        torch.Size([3])
        >>> bool((edge_mask.eval()(x, edge_index) == edge_mask.probability(x, edge_index)).all())
        True
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        hidden_channels: int = 64,
        temperature: float = 0.2,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        source, target = (in_channels,) * 2 if isinstance(in_channels, int) else in_channels
        for size in (source, target):
            check_positive("in_channels", size)
        check_positive("hidden_channels", hidden_channels)
        if not temperature > 0:
            raise ValueError(f"'temperature' needs to be positive (got {temperature})")
        self.temperature = temperature
        self.straight_through = straight_through
        # The first layer of the MLP, in the two parts that meet h_i and h_j.
        self.lin_target = nn.Linear(target, hidden_channels)
        self.lin_source = nn.Linear(source, hidden_channels, bias=False)
        self.lin_out = nn.Linear(hidden_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights, Xavier uniform; biases start at 0."""
        for lin in (self.lin_target, self.lin_source, self.lin_out):
            nn.init.xavier_uniform_(lin.weight)
            if lin.bias is not None:
                nn.init.zeros_(lin.bias)

    def logit(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor | Adjacency) -> Tensor:
        """The MLP's output for every edge, ``[num_edges]``, in float32 also where the layers run in
        half precision: too few of its numbers lie near 0 and 1 for a probability or its noise.

        Raises:
            ValueError: If ``edge_index`` has another shape than ``[2, num_edges]``.
        """
        source, target = (x, x) if isinstance(x, Tensor) else x
        if isinstance(edge_index, Adjacency):
            edge_index = edge_index.edge_index
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(
                f"'edge_index' needs shape [2, num_edges] (got {list(edge_index.shape)})"
            )
        a, b, weight = self.lin_source(source), self.lin_target(target), self.lin_out.weight[0]
        dtype = torch.promote_types(a.dtype, torch.float32)
        a, b, weight = a.to(dtype), b.to(dtype), weight.to(dtype)
        if torch.compiler.is_compiling():  # a compiler fuses this, and would unroll the other
            hidden = a.index_select(0, edge_index[0]) + b.index_select(0, edge_index[1])
            score = (hidden.relu() * weight).sum(1)
        else:
            score = _ReluScore.apply(a, b, weight, edge_index)
        return score + self.lin_out.bias

    def probability(
        self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor | Adjacency
    ) -> Tensor:
        """Keep probability of every edge, ``[num_edges]``."""
        return self.logit(x, edge_index).sigmoid()

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Tensor | Adjacency,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws a mask in training, or gives its expectation in evaluation.

        Args:
            x (torch.Tensor or tuple): Vectors of the nodes, or of sources and targets.
            edge_index (torch.Tensor or Adjacency): The edges.
            generator (torch.Generator, optional): Source of randomness. (default: the global one)

        Raises:
            ValueError: If ``edge_index`` has another shape.
        """
        logit = self.logit(x, edge_index)
        if not self.training:
            return logit.sigmoid()
        uniform = torch.empty_like(logit, requires_grad=False)
        # Away from 0 and 1, where the logarithms are infinite.
        tiny = torch.finfo(logit.dtype).eps
        uniform.uniform_(tiny, 1 - tiny, generator=generator)
        mask = ((logit + uniform.logit()) / self.temperature).sigmoid()
        if self.straight_through:
            return mask + (mask.round() - mask).detach()
        return mask

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return f"temperature={self.temperature}, straight_through={self.straight_through}"
