"""What a training method over a backbone is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import (
    BACKBONES,
    EVERY_ROW,
    Backbone,
    GatheredTriplets,
    Rows,
    Stages,
    Triplets,
)


class Method(nn.Module):
    r"""A training method that works on any backbone, through its stages alone.

    A subclass overrides what it needs: :meth:`attach` to ask for declared facts of the backbone
    and build what depends on them, :meth:`refine` to change the graph, :meth:`terms` to add to the
    loss, :meth:`second_terms` for a loss of its own after it, :meth:`gradient_scales` to step
    otherwise. It never edits the backbone and adds nothing to the backbone's state.
    """

    #: Prefix of the method's loss terms.
    name: str = "method"
    #: Whether :meth:`terms` reads hidden layers by ``batch.at``, which fails where a backbone that
    #: :attr:`~pyg_mmrec.nn.backbones.Backbone.gathers_output` has every row of them.
    reads_hidden: bool = True
    #: Whether an objective has it, to whose backbone belongs what :meth:`attach` built.
    attached: bool = False

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

    def gradient_scales(self, step: int) -> tuple[float, ...]:
        """Factors of the gradient in the optimiser steps on one batch, one after the other.

        Args:
            step (int): Number of the batch in its epoch, from 0.
        """
        return (1.0,)

    def second_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """Parameters that the second stage trains, with an optimiser of its own."""
        return iter(())

    def second_terms(self, backbone: Backbone, graph: Graph, batch: Triplets) -> dict[str, Tensor]:
        """Loss terms of the second stage, an optimiser step of its own on the same batch."""
        return {}

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        options = {
            name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters
        }
        kept = {name: x for name, x in options.items() if not isinstance(x, nn.Module)}
        return ", ".join(f"{name}={x!r}" for name, x in kept.items() if hasattr(self, name))

    @staticmethod
    def computed_rows(batch: Triplets) -> Rows:
        """The rows that the clean path was run on."""
        return batch.rows if isinstance(batch, GatheredTriplets) else EVERY_ROW


def backbones_with(fact: Callable[[type[Backbone]], bool]) -> str:
    """Names of the library's backbones that declare a fact, for error messages."""
    return ", ".join(name for name, item in sorted(BACKBONES.items()) if fact(item))
