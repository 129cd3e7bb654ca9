"""The stage contract that every backbone, also a user's own, fulfils."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform, Compose
from typing_extensions import Self

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.graph import SIMILAR, check_hetero
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets


class Backbone(nn.Module, ABC):
    r"""A recommender in three stages (DVIB, Eq. 2-3): project the modalities, fuse them into hidden
    layers, encode these into user and item vectors.

    A subclass implements :meth:`fuse`, :meth:`encode` and :meth:`loss`, and :meth:`project` if it
    reads modalities. Methods (noise, bottlenecks, adversaries) only ever call these, so they work
    on any backbone. Check your own with :func:`pyg_mmrec.testing.check_backbone`. A backbone with
    ID embeddings keeps them as ``user_embedding`` and ``item_embedding``.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.

    Raises:
        ValueError: If a number is not positive.
    """

    #: Options that imitate a source other than the paper, by preset name.
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "mmrec": {}}
    #: Training options that its paper trains with, where they are not the defaults.
    training_defaults: ClassVar[dict[str, Any]] = {}
    #: How often :meth:`sample_graph` draws another training graph, "never", "epoch" or "step".
    graph_sampling: ClassVar[str] = "never"
    #: Whether :meth:`fuse` can be asked for some rows, and :meth:`encode` then leaves the others
    #: out of output and compared tensors, though hidden layers have every row; :attr:`rowwise`
    #: backbones leave them out in every stage. A subclass does not inherit it: its stages may not.
    gathers_output: ClassVar[bool] = False
    #: Whether inner products of :meth:`vectors` are the scores.
    has_vectors: ClassVar[bool] = True
    #: Whether there is an :meth:`item_graph`.
    has_item_graph: ClassVar[bool] = False
    #: Whether the loss depends on what :meth:`project` makes of modality features.
    loss_reads_content: ClassVar[bool] = False
    #: Whether users have multimedia vectors, see :meth:`content_vectors`.
    has_user_content: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.gathers_output = cls.__dict__.get("gathers_output", False)

    def __init__(self, num_users: int, num_items: int) -> None:
        super().__init__()
        check_positive("num_users", num_users)
        check_positive("num_items", num_items)
        self.num_users = num_users
        self.num_items = num_items

    @classmethod
    def from_data(cls, data: HeteroData, preset: str = "paper", **options: Any) -> Self:
        r"""Builds the backbone for a data set.

        Args:
            data (HeteroData): The data; sizes are read from it.
            preset (str, optional): :obj:`"paper"` or :obj:`"mmrec"`, what the public toolbox
                trains where it differs. (default: :obj:`"paper"`)
            **options: Options of the class; they win over the preset.

        Raises:
            ValueError: If the preset or an option is unknown; the message lists the right ones. Or
                if an option without a default is missing, or the data lack what backbones need.
        """
        if preset not in cls.presets:
            raise ValueError(f"'preset' needs to be one of {sorted(cls.presets)} (got {preset!r})")
        check_hetero(data)
        allowed = cls.options()
        for name in options:
            if name not in allowed:
                raise ValueError(
                    f"{cls.__name__} has no option '{name}'; its options are {sorted(allowed)}"
                )
        options = {**cls.presets[preset], **options}
        sizes = cls._sizes(data, options.get("modalities"))
        given = {k: x for k, x in sizes.items() if k in cls._arguments()}
        missing = [k for k, x in allowed.items() if x.default is x.empty]
        missing = [k for k in missing if k not in given and k not in options]
        if missing:
            raise ValueError(f"{cls.__name__} needs values for its options {missing}")
        return cls(**given, **options)

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The options of the class, by name: constructor arguments that data do not determine."""
        determined = ("num_users", "num_items", "in_channels", "features")
        return {name: x for name, x in cls._arguments().items() if name not in determined}

    @classmethod
    def _arguments(cls) -> dict[str, inspect.Parameter]:
        """Arguments of the constructor by name, also those that it hands on."""
        found: dict[str, inspect.Parameter] = {}
        for constructor in (
            vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)
        ):
            parameters = list(inspect.signature(constructor).parameters.values())[1:]
            named = [x for x in parameters if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]
            found = {**{x.name: x for x in named}, **found}
            if all(x.kind != x.VAR_KEYWORD for x in parameters):
                break  # else it hands them on
        return found

    @classmethod
    def _sizes(cls, data: HeteroData, names: Sequence[str] | None) -> dict[str, Any]:
        """Constructor arguments that ``data`` determines."""
        return {"num_users": data["user"].num_nodes, "num_items": data["item"].num_nodes}

    # What the backbone computes on ---------------------------------------------------------------

    @property
    def transform(self) -> BaseTransform:
        """The transforms that make the graphs and weights which this backbone reads."""
        return Compose([])

    def graph(self, data: HeteroData) -> Graph:
        """Applies :attr:`transform` and makes the tensors to compute on."""
        check_hetero(data)  # before a transform meets what is wrong
        return Graph.from_hetero(self.transform(data))

    def sample_graph(
        self, graph: Graph, epoch: int, generator: torch.Generator | None = None
    ) -> Graph:
        """The training graph of this epoch (or step, see :attr:`graph_sampling`).

        It may carry gradient; one for a whole epoch does so in the epoch's first step.

        Args:
            graph (Graph): The full graph.
            epoch (int): Epoch, from 0.
            generator (torch.Generator, optional): Source of randomness, on the graph's device.
        """
        return graph

    # Stages --------------------------------------------------------------------------------------

    def project(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Projects the modalities that are fused, :math:`Z^m` ``[num_items, channels]`` each."""
        return {}

    @abstractmethod
    def fuse(
        self, modality: dict[str, Tensor], graph: Graph
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Makes the hidden layers at the first sites, and the context that ``encode`` needs.

        Randomness (dropout masks) is drawn here and handed on in the context.

        Returns:
            tuple[dict, dict]: Hidden layers by site, context.
        """

    @abstractmethod
    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Makes the final vectors from the hidden layers; pure, of its arguments alone.

        Args:
            hidden (dict[str, torch.Tensor]): Hidden layers at the first sites; others are ignored.
            context (dict): From :meth:`fuse`.
            graph (Graph): The graph.
            delta (dict[str, torch.Tensor], optional): Perturbation by site, added where the site
                is reached.

        Returns:
            tuple[dict, dict, dict]: Hidden layers at all sites, output, compared tensors.
        """

    def forward(self, graph: Graph, rows: Rows = EVERY_ROW) -> Stages:
        """Runs all stages.

        Args:
            graph (Graph): The graph.
            rows (Rows, optional): Has a :attr:`rowwise` backbone compute some rows alone, such as
                the :attr:`~pyg_mmrec.nn.backbones.Triplets.rows` of a batch, or one that
                :attr:`gathers_output` return them alone; the stages, or that output, then go with
                :class:`~pyg_mmrec.nn.backbones.GatheredTriplets`. (default: every row)

        Raises:
            ValueError: If only some rows are asked for and the backbone has no way to, or a batch
                is given instead of its rows.
        """
        if isinstance(rows, Triplets):  # its rows repeat, and readers expect each once
            raise ValueError("'rows' needs the rows of a batch, 'batch.rows' (got the batch)")
        if rows is not EVERY_ROW and not (self.rowwise or self.gathers_output):
            raise ValueError(f"{type(self).__name__} is not rowwise: it encodes every row")
        if rows is EVERY_ROW or not self.rowwise:
            return self.forward_from(self.project(graph), graph, rows)
        return self.forward_from(self.project(graph, rows), graph, rows)

    def forward_from(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> Stages:
        """Runs the stages after :meth:`project`, on what it returned for the same arguments."""
        if rows is EVERY_ROW:
            hidden, context = self.fuse(modality, graph)
        else:
            hidden, context = self.fuse(modality, graph, rows)  # type: ignore[call-arg]
        hidden, output, compared = self.encode(hidden, context, graph)
        return Stages(modality, hidden, context, output, compared)

    @abstractmethod
    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """The training loss :math:`L_0`, as named terms to be summed.

        Of the stages it reads ``output`` alone; a :attr:`rowwise` backbone of that only
        ``batch.at(key, stages.output[key])``.
        """

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """The terms of :meth:`loss` that a perturbation of the sites can change. A method that runs
        a perturbed path takes the others from the clean one, instead of computing them twice.
        """
        return self.loss(stages, batch)

    def vectors(self, stages: Stages) -> tuple[Tensor, Tensor]:
        """User ``[num_users, d]`` and item ``[num_items, d]`` vectors whose inner product ranks."""
        return stages.output["user"], stages.output["item"]

    def scores(self, stages: Stages, graph: Graph, users: Tensor) -> Tensor:
        r"""Scores of all items for some users, ``[len(users), num_items]``; :math:`-\infty` of an
        item that is no candidate.
        """
        user, item = self.vectors(stages)
        return user.index_select(0, users) @ item.t()

    # Declared facts, which methods ask for -------------------------------------------------------

    @property
    @abstractmethod
    def sites(self) -> dict[str, int]:
        """Number of channels of each hidden site, in the order in which they are reached."""

    @property
    def rowwise(self) -> bool:
        """Whether ``encode`` treats every row alone, so that it may be given some rows only.

        Then ``project`` and ``fuse`` take one more argument, ``rows=EVERY_ROW``, and return
        ``rows.at(key, tensor)`` of whatever they compute, gathered as early as they can.
        """
        return False

    @property
    def content_channels(self) -> dict[str, int]:
        """Number of channels of each modality's :math:`Z^m`, for those that parameters project;
        raw features that are passed on as they are do not count.
        """
        return {}

    def content(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """The projected modalities :math:`Z^m` of some items, also where the loss does not read
        them: of all modalities in :attr:`content_channels`, maybe of others.
        """
        return {name: rows.at("item", z) for name, z in self.project(graph).items()}

    def content_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the modality projections."""
        return iter(())

    def item_graph(self, graph: Graph) -> Adjacency:
        """The item-item graph that items are propagated over: the graph's, if it has one as
        ``('item', 'similar', 'item')``, else made from it and the present weights.

        Raises:
            NotImplementedError: If :attr:`has_item_graph` is false.
        """
        raise NotImplementedError(f"{type(self).__name__} has no item-item graph")

    def item_vectors_on(
        self, similar: Adjacency, stages: Stages, graph: Graph, rows: Rows = EVERY_ROW
    ) -> Tensor:
        """Final item vectors on another item-item graph, all else as in ``stages``.

        Args:
            similar (Adjacency): The other graph.
            stages (Stages): What the backbone computed on ``graph``.
            graph (Graph): The graph.
            rows (Rows, optional): What ``stages`` were computed for. (default: every row)
        """
        other = graph.replace(adjacency={**graph.adjacency, SIMILAR: similar})
        return self.vectors(self(other, rows))[1]

    def content_vectors(self, graph: Graph, rows: Rows = EVERY_ROW) -> tuple[Tensor, Tensor]:
        """Multimedia vectors of some users and items before any propagation, of the same width.

        Raises:
            NotImplementedError: If :attr:`has_user_content` is false.
        """
        raise NotImplementedError(f"{type(self).__name__} has no multimedia vectors of users")

    def user_content_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that hold the users' multimedia vectors."""
        return iter(())

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"num_users={self.num_users}, num_items={self.num_items}"
