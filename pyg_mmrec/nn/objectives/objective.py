"""A backbone together with training methods."""

from __future__ import annotations

from torch import Tensor, nn

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, GatheredTriplets, Triplets
from pyg_mmrec.nn.objectives.method import Method


class Objective(nn.Module):
    r"""What is minimised: the loss of a backbone, and what methods add to it.

    Methods wrap the backbone and never edit it: its ``state_dict()`` is the same with and without
    them, and ranking uses the bare backbone on :meth:`inference_graph`.

    Args:
        backbone (Backbone): The recommender.
        *methods (Method): Training methods; they compose.

    Raises:
        ValueError: If the backbone lacks what a method needs, or two methods have the same name.

    Example:
        .. code-block:: python

            objective = Objective(FREEDOM.from_data(data), DVIBa())
            graph = objective.backbone.graph(data)
            loss = sum(objective(graph, batch).values())
    """

    def __init__(self, backbone: Backbone, *methods: Method) -> None:
        super().__init__()
        names = [method.name for method in methods]
        if len(set(names)) < len(names):
            raise ValueError(f"each method goes in once (got {names})")
        for method in methods:
            method.attach(backbone)
        self.backbone = backbone
        self.methods = nn.ModuleList(methods)

    def forward(self, graph: Graph, batch: Triplets) -> dict[str, Tensor]:
        """The weighted terms of the loss, by name; their sum is minimised.

        Args:
            graph (Graph): The training graph.
            batch (Triplets): The batch.
        """
        methods: list[Method] = list(self.methods)  # type: ignore[arg-type]
        clean_weight = 1.0
        for method in methods:
            graph = method.refine(self.backbone, graph)
            clean_weight *= method.clean_weight
        if self._reads_fewer_rows(batch):
            stages = self.backbone(graph, batch)
            batch = GatheredTriplets.of(batch)
        else:
            stages = self.backbone(graph)
        clean, terms = self.backbone.loss(stages, batch), {}
        if clean_weight != 0:
            for name, value in clean.items():
                terms[name] = value if clean_weight == 1 else clean_weight * value
        for method in methods:
            for name, value in method.terms(self.backbone, graph, stages, batch, clean).items():
                terms[f"{method.name}/{name}"] = value
        return terms

    def _reads_fewer_rows(self, batch: Triplets) -> bool:
        """Whether the batch's rows suffice, and are fewer than all of them."""
        rows = batch.num_rows("user") + batch.num_rows("item")
        return (
            self.backbone.rowwise
            and rows < self.backbone.num_users + self.backbone.num_items
            and not any(method.reads_all_rows for method in self.methods)
        )

    def inference_graph(self, graph: Graph) -> Graph:
        """The graph on which the bare backbone ranks."""
        for method in self.methods:
            graph = method.inference_graph(self.backbone, graph)  # type: ignore[operator]
        return graph
