"""The feature bottleneck of IBMRec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyg_mmrec.argument_checks import check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, ContentBackbone, Stages, Triplets
from pyg_mmrec.nn.losses import HSICLoss, KernelRows, rbf_kernel
from pyg_mmrec.nn.objectives.method import Method, backbones_with

# From so many columns on, looking a kernel up takes less time than computing it.
_WIDE = 512
_MOST_BYTES = 2**31


def _projects_all(backbone: type[Backbone]) -> bool:
    return issubclass(backbone, ContentBackbone) and "projected" not in backbone.options()


class FIB(Method):
    r"""Feature-level information bottleneck of IBMRec ("Less is More: Information Bottleneck
    Denoised Multimedia Recommendation", Eq. 22, 30).

    .. math::
        \alpha \sum_m \mathrm{HSIC}(\mathbf{Z}^m_b, \mathbf{x}^m_b)

    is added to the loss: what the projected modalities :math:`\mathbf{Z}^m` keep of the raw
    features :math:`\mathbf{x}^m` has to pay for itself. :math:`b` are the batch's items, positive
    and negative, each once; those without a modality have no part in its term. Raw features are
    the graph's, constant, also where a backbone trains its own copy. Of VBPR, whose modalities
    share a projection, :math:`\mathbf{Z}^m = \mathbf{W}_m \mathbf{x}^m` with the columns of
    :math:`m`. Where items lack a modality, a GPU is waited for to count those that have it.

    On a CPU the kernel of all items' raw features is computed in the first step and kept, for each
    modality of 512 or more columns whose kernel takes no more than 2 GiB (23,170 items in float32).
    It is not for other features than those of the first step, with ``variance=None``, or under
    :func:`torch.compile`.

    Args:
        weight (float, optional): :math:`\alpha`. (default: 1)
        variance (float, optional): :math:`\sigma^2` of the kernels, or :obj:`None` for the median
            heuristic. (default: 0.2)
        normalize (bool, optional): Whether rows are first divided by their norm.
            (default: :obj:`True`)
        unbiased (bool, optional): The unbiased estimator of :func:`~pyg_mmrec.nn.losses.hsic`.
            (default: :obj:`False`)
        modalities (list[str], optional): Modalities to take part. (default: all in use)
        keep_kernels (bool, optional): Whether kernels of wide raw features are kept.
            (default: :obj:`True`)

    Raises:
        ValueError: If an option is out of range; from :class:`Objective`, if the backbone does not
            project a modality.
    """

    name = "fib"
    reads_hidden = False

    def __init__(
        self,
        weight: float = 1.0,
        variance: float | None = 0.2,
        normalize: bool = True,
        unbiased: bool = False,
        modalities: Sequence[str] | None = None,
        keep_kernels: bool = True,
    ) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = weight
        self.hsic = HSICLoss(variance, normalize, unbiased)
        if modalities is not None and (isinstance(modalities, str) or not modalities):
            raise ValueError(f"'modalities' needs one or more names (got {modalities!r})")
        self.modalities = None if modalities is None else list(modalities)
        self.keep_kernels = keep_kernels
        self._names: list[str] = []  # those of the backbone, without a choice
        # Features, their version, and the kernel of them.
        self._kernels: dict[str, tuple[Tensor, int, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernels, which a copy makes anew."""
        return {**self.__dict__, "_kernels": {}}

    def attach(self, backbone: Backbone) -> None:
        """Needs projected modalities."""
        projected = backbone.content_channels
        own = list(getattr(backbone, "modalities", projected))
        if not own:
            raise ValueError(
                f"FIB narrows the projections of modalities, and {type(backbone).__name__} has "
                f"none (its 'content_channels' are empty); "
                f"{backbones_with(lambda item: issubclass(item, ContentBackbone))} have some"
            )
        self._names = self.modalities or own
        raw = [name for name in self._names if name not in projected]
        if raw:
            ways = []
            if projected:
                ways.append(f"name those to take part in 'modalities', of {list(projected)}")
            if "projected" in backbone.options() and set(raw) <= set(own):
                widths = {**projected, **dict.fromkeys(raw, 64)}
                ways.append(f"build it with 'projected', such as {widths}")
            raise ValueError(
                f"FIB narrows the projections of modalities, and this {type(backbone).__name__} "
                f"does not project {raw}{': ' if ways else ''}{', or '.join(ways)}; "
                f"{backbones_with(_projects_all)} project all of theirs"
            )

    def terms(
        self,
        backbone: Backbone,
        graph: Graph,
        stages: Stages,
        batch: Triplets,
        clean: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Dependence of each modality's projection on its raw features."""
        if self.weight == 0:
            return {}
        terms = {}
        for name, z in self._content(backbone, graph, stages, batch).items():
            items = batch.items
            if name in graph.mask:
                present = graph.mask[name].index_select(0, items).nonzero().squeeze(1)
                z, items = z.index_select(0, present), items.index_select(0, present)
            terms[name] = self.weight * self.hsic(z, self._features(name, graph, items))
        return terms

    def _content(
        self, backbone: Backbone, graph: Graph, stages: Stages, batch: Triplets
    ) -> dict[str, Tensor]:
        """The projected modalities of the batch's items, made before if they were."""
        made = {**graph.content, **stages.modality}
        if not all(name in made for name in self._names):
            made = backbone.content(graph, batch.rows)
        return {
            name: made[name]
            if made[name].size(0) == batch.items.numel()
            else made[name].index_select(0, batch.items)  # of every item
            for name in self._names
        }

    def _features(self, name: str, graph: Graph, items: Tensor) -> Tensor | KernelRows:
        """Raw features of some items, or where they stand in a kernel of all items."""
        x = graph.x[name]
        if (
            not self.keep_kernels
            or torch.compiler.is_compiling()
            or self.hsic.variance is None  # that of the batch
            or x.device.type != "cpu"
            or x.size(1) < _WIDE
            or x.size(0) ** 2 * x.element_size() > _MOST_BYTES
            or x.requires_grad
            or x.is_inference()
            or torch.is_inference_mode_enabled()
        ):
            return x.index_select(0, items)
        if name not in self._kernels:
            kernel = rbf_kernel(x, self.hsic.variance, self.hsic.normalize)
            self._kernels[name] = x, x._version, kernel
        known, version, kernel = self._kernels[name]
        if not known.is_set_to(x) or x._version != version:  # making it anew would take longer
            return x.index_select(0, items)
        return KernelRows(kernel, items)
