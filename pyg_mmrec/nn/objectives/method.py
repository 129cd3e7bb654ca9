"""What a training method over a backbone is."""

from __future__ import annotations

from torch import Tensor, nn

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, Stages, Triplets


class Method(nn.Module):
    r"""A training method that works on any backbone, through its stages alone.

    A subclass overrides what it needs: :meth:`attach` to ask for declared facts of the backbone
    and build what depends on them, :meth:`refine` to change the graph, :meth:`terms` to add to the
    loss. It never edits the backbone and adds nothing to the backbone's state.
    """

    #: Prefix of the method's loss terms.
    name: str = "method"

    @property
    def reads_all_rows(self) -> bool:
        """Whether :meth:`terms` reads stage tensors beyond the batch's rows."""
        return False

    @property
    def clean_weight(self) -> float:
        """Weight of the backbone's own loss."""
        return 1.0

    def attach(self, backbone: Backbone) -> None:
        """Checks that the backbone has what the method needs, and builds on it.

        Raises:
            ValueError: If a declared fact is missing; the message names it.
        """

    def refine(self, backbone: Backbone, graph: Graph) -> Graph:
        """The graph to train on, instead of ``graph``."""
        return graph

    def inference_graph(self, backbone: Backbone, graph: Graph) -> Graph:
        """The graph to rank on, instead of ``graph``."""
        return graph

    def terms(
        self,
        backbone: Backbone,
        graph: Graph,
        stages: Stages,
        batch: Triplets,
        clean: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Loss terms to add, weighted, from the clean path's stages and loss terms.

        Rows of the batch are ``batch.at(key, tensor)``; a rowwise backbone may have been run on
        these alone, unless :attr:`reads_all_rows`.
        """
        return {}
