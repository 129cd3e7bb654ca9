"""A backbone together with training methods."""

from __future__ import annotations

from typing import Any

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
        ValueError: If the backbone lacks what a method needs or has nothing to train, two methods
            have the same name, or a method is part of another objective.

    Example:
        .. code-block:: python

            objective = Objective(FREEDOM.from_data(data), DVIBa())
            graph = objective.backbone.graph(data)
            loss = sum(objective(graph, batch).values())

        With methods that step otherwise (mirror gradients, a second stage), a training step is

        .. code-block:: python

            for scale in objective.gradient_scales(step):
                (scale * sum(objective(graph, batch).values())).backward()
                optimizer.step()
                optimizer.zero_grad()
            second = objective.second_stage(graph, batch)
            if second:
                sum(second.values()).backward()
                second_optimizer.step()  # of objective.second_parameters()
                optimizer.zero_grad()
    """

    def __init__(self, backbone: Backbone, *methods: Method) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise ValueError(f"'backbone' needs to be a Backbone (got {type(backbone).__name__})")
        for method in methods:
            if not isinstance(method, Method):
                raise ValueError(f"'methods' needs methods, instances of Method (got {method!r})")
            if method.attached:
                raise ValueError(
                    f"this {type(method).__name__} is part of another objective, and what it has "
                    f"learned or built belongs to that backbone: make another one"
                )
        names = [method.name for method in methods]
        if len(set(names)) < len(names):
            raise ValueError(f"each method goes in once (got {names})")
        if sum(type(m).gradient_scales is not Method.gradient_scales for m in methods) > 1:
            raise ValueError(f"only one method can scale the gradient (got {names})")
        for method in methods:
            method.attach(backbone)
        weights = next(backbone.parameters(), None)
        if weights is None and methods:
            raise ValueError(
                f"{type(backbone).__name__} has nothing to train, so no method goes with it"
            )
        for method in methods:
            method.to(weights).attached = True  # where the backbone is, in its floating-point type
        self.backbone = backbone
        self.methods = nn.ModuleList(methods)

    def forward(self, graph: Graph, batch: Triplets) -> dict[str, Tensor]:
        """The weighted terms of the loss, by name; their sum is minimised.

        Args:
            graph (Graph): The training graph.
            batch (Triplets): The batch.

        Raises:
            ValueError: If a term of the backbone or of a method is no scalar.
        """
        methods: list[Method] = list(self.methods)  # type: ignore[arg-type]
        clean_weight = 1.0
        for method in methods:
            graph = method.refine(self.backbone, graph)
            clean_weight *= method.clean_weight
        if self._reads_fewer_rows(batch):
            stages = self.backbone(graph, batch.rows)
            batch = GatheredTriplets.of(batch)
        else:
            stages = self.backbone(graph)
        clean, terms = _scalars(self.backbone.loss(stages, batch), self.backbone), {}
        if clean_weight != 0:
            for name, value in clean.items():
                terms[name] = value if clean_weight == 1 else clean_weight * value
        for method in methods:
            more = method.terms(self.backbone, graph, stages, batch, clean)
            for name, value in _scalars(more, method).items():
                terms[f"{method.name}/{name}"] = value
        return terms

    def _reads_fewer_rows(self, batch: Triplets) -> bool:
        """Whether the batch's rows suffice, and are fewer than all of them."""
        reads_hidden = any(method.reads_hidden for method in self.methods)
        suffice = self.backbone.rowwise or self.backbone.gathers_output and not reads_hidden
        return (
            suffice
            and batch.user.numel() + batch.items.numel()
            < self.backbone.num_users + self.backbone.num_items
            and not any(method.reads_all_rows for method in self.methods)
        )

    def gradient_scales(self, step: int) -> tuple[float, ...]:
        """Factors of the gradient in the optimiser steps on one batch, one after the other; the
        loss is computed anew for each.

        Args:
            step (int): Number of the batch in its epoch, from 0.
        """
        for method in self.methods:
            scales: tuple[float, ...] = method.gradient_scales(step)  # type: ignore[operator]
            if scales != (1.0,):
                return scales
        return (1.0,)

    def second_parameters(self) -> list[nn.Parameter]:
        """Parameters that a second stage trains, with an optimiser of its own; mostly none."""
        found = [
            parameter
            for method in self.methods
            for parameter in method.second_parameters(self.backbone)  # type: ignore[operator]
        ]
        return list(dict.fromkeys(found))

    def second_stage(self, graph: Graph, batch: Triplets) -> dict[str, Tensor]:
        """The weighted terms of a second stage's loss, by name; their sum is minimised in an
        optimiser step of its own, after those on :meth:`forward`.

        Args:
            graph (Graph): The training graph.
            batch (Triplets): The batch.

        Raises:
            ValueError: If a term is no scalar.
        """
        terms = {}
        for method in self.methods:
            found = method.second_terms(self.backbone, graph, batch)  # type: ignore[operator]
            for name, value in _scalars(found, method).items():
                terms[f"{method.name}/{name}"] = value
        return terms

    def inference_graph(self, graph: Graph) -> Graph:
        """The graph on which the bare backbone ranks."""
        for method in self.methods:
            graph = method.inference_graph(self.backbone, graph)  # type: ignore[operator]
        return graph


def _scalars(terms: Any, owner: nn.Module) -> dict[str, Tensor]:
    """The loss terms of a backbone or method as they are, which need to be scalars by name."""
    of = f"of {type(owner).__name__}"
    if not isinstance(terms, dict):
        raise ValueError(f"the loss terms {of} need to be a dict (got {type(terms).__name__})")
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the loss term '{name}' {of} needs to be a scalar tensor (got {got})")
    return terms
