"""What a backbone computed, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import register_dataclass


def node_type(key: str) -> str:
    """Node type whose ids index the rows of a stage tensor: ``"item/layer_1"`` has item rows.

    Raises:
        ValueError: If the key does not begin with ``user`` or ``item``.
    """
    kind = key.split("/")[0]
    if kind not in ("user", "item"):
        raise ValueError(
            f"a stage tensor is named for its rows, 'user' or 'item', optionally with '/' and "
            f"words of its own (got {key!r})"
        )
    return kind


@dataclass(frozen=True)
class Rows:
    """Which rows of the stage tensors are computed: here, every one."""

    @property
    def ids(self) -> tuple[Tensor, Tensor] | None:
        """Ids of the users and of the items, or none for every one."""
        return None

    def at(self, key: str, tensor: Tensor) -> Tensor:
        """The wanted rows of a stage tensor."""
        return tensor

    def map(self, key: str, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The wanted rows of a function that treats every row alone."""
        return function(*tensors)


EVERY_ROW = Rows()


@dataclass(frozen=True)
class SomeRows(Rows):
    r"""Rows of some users and of some items.

    Args:
        user (torch.Tensor): User ids, ``[num_user_rows]``.
        item (torch.Tensor): Item ids, ``[num_item_rows]``.
    """

    user: Tensor
    item: Tensor

    @property
    def ids(self) -> tuple[Tensor, Tensor]:
        """Ids of the users and of the items."""
        return self.user, self.item

    def at(self, key: str, tensor: Tensor) -> Tensor:
        """Rows of these users, or of these items. A scalar has no rows and stays as it is."""
        if tensor.dim() == 0:
            return tensor
        return tensor.index_select(0, self.user if node_type(key) == "user" else self.item)

    def map(self, key: str, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The function of these rows."""
        return function(*(self.at(key, tensor) for tensor in tensors))


@dataclass(frozen=True)
class Triplets(Rows):
    r"""A batch of users, each with an item it interacted with and one it did not.

    Args:
        user (torch.Tensor): User ids, ``[batch_size]``.
        positive (torch.Tensor): Items that the users interacted with, ``[batch_size]``.
        negative (torch.Tensor): Sampled other items, ``[batch_size]``.
        items (torch.Tensor, optional): The batch's items, each once, ascending, ``[num_items]``.
            (default: found here)
        places (torch.Tensor, optional): Where each positive, then negative item stands in
            ``items``, ``[2 * batch_size]``. (default: found here)

    Raises:
        ValueError: If only one of ``items`` and ``places`` is given.
    """

    user: Tensor
    positive: Tensor
    negative: Tensor
    items: Tensor = None  # type: ignore[assignment]
    places: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if (self.items is None) != (self.places is None):
            raise ValueError("'items' and 'places' go together, or neither is given")
        if self.items is None and isinstance(self.positive, Tensor):  # else a tree of other things
            occurring = torch.cat([self.positive, self.negative])
            items, places = occurring.unique(return_inverse=True)
            object.__setattr__(self, "items", items)
            object.__setattr__(self, "places", places)

    def at(self, key: str, tensor: Tensor) -> Tensor:
        """Rows of a stage tensor that the batch reads: those of its users ``[batch_size, *]``, or
        of its positive, then negative items ``[2 * batch_size, *]``. An id that occurs twice
        stands there twice. A scalar has no rows and stays as it is.
        """
        if tensor.dim() == 0:
            return tensor
        if node_type(key) == "user":
            return tensor.index_select(0, self.user)
        return tensor.index_select(0, torch.cat([self.positive, self.negative]))

    def map(self, key: str, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The batch's rows of a function that treats every row alone; it is computed once for each
        item, and on the users of the batch or on all of them, whichever are fewer.
        """
        if node_type(key) == "item":
            rows = function(*(tensor.index_select(0, self.items) for tensor in tensors))
            return rows.index_select(0, self.places)
        if self.user.numel() < tensors[0].size(0):
            return function(*(self.at(key, tensor) for tensor in tensors))
        return self.at(key, function(*tensors))

    @property
    def rows(self) -> SomeRows:
        """The rows that suffice for the batch, of its users and, each once, of its items."""
        return SomeRows(self.user, self.items)

    @property
    def item_rows(self) -> Tensor:
        """Where each of ``items`` stands in the stage tensors of items."""
        return self.items


@dataclass(frozen=True)
class GatheredTriplets(Triplets):
    """A batch to go with stage tensors that hold its :attr:`rows` alone."""

    def at(self, key: str, tensor: Tensor) -> Tensor:
        """Rows that the batch reads, as of :class:`Triplets`."""
        if tensor.dim() == 0 or node_type(key) == "user":
            return tensor
        return tensor.index_select(0, self.places)

    def map(self, key: str, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The batch's rows of the function of the tensors as they are."""
        return self.at(key, function(*tensors))

    @property
    def item_rows(self) -> Tensor:
        """Where each of ``items`` stands in the stage tensors of items."""
        return torch.arange(self.items.numel(), device=self.items.device)

    @property
    def of_all(self) -> Triplets:
        """The same triplets, to go with stage tensors that hold every row."""
        return Triplets(self.user, self.positive, self.negative, self.items, self.places)

    @classmethod
    def of(cls, batch: Triplets) -> GatheredTriplets:
        """The same triplets."""
        return cls(batch.user, batch.positive, batch.negative, batch.items, batch.places)


@dataclass(frozen=True)
class Stages:
    r"""The stages of a backbone, as in DVIB's Eq. 2 and 3.

    Keys of ``hidden`` and ``compared``, and of whatever else is read by rows, begin with the node
    type of the tensor's rows, ``user`` or ``item``; scalars may have any name.

    Args:
        modality (dict[str, torch.Tensor]): Projected modalities :math:`Z^m` that were fused.
        hidden (dict[str, torch.Tensor]): :math:`H` at every site that a method may perturb.
        context (dict): What ``encode`` needs beside it and no method perturbs: tensors, or pytrees
            of tensors such as an :class:`~pyg_mmrec.data.Adjacency`.
        output (dict[str, torch.Tensor]): ``user`` and ``item``, the final vectors :math:`Z`, and
            whatever else the loss reads.
        compared (dict[str, torch.Tensor]): Tensors that distillation compares between the noisy
            and the clean path.
    """

    modality: dict[str, Tensor]
    hidden: dict[str, Tensor]
    context: dict[str, Any]
    output: dict[str, Tensor]
    compared: dict[str, Tensor]


def add_delta(hidden: Tensor, delta: dict[str, Tensor] | None, site: str) -> Tensor:
    """Adds the perturbation of a site to its hidden layer, if there is one."""
    return hidden if delta is None or site not in delta else hidden + delta[site]


register_dataclass(SomeRows)
register_dataclass(Triplets)
register_dataclass(GatheredTriplets)
register_dataclass(Stages)
