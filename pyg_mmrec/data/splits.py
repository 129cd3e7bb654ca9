from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .interaction_file import Interactions

#: How a data set may be split; "label" is as its file says.
SPLITS = ("label", "random", "temporal", "global_temporal", "item_cold_start")
_RATIOS = (0.8, 0.1, 0.1)


def random_split(user: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Splits every user's interactions at random.

    A user with :math:`n \geq 10` interactions has :math:`h = \lfloor 0.2\,n \rfloor` of them held
    out, :math:`\lfloor h/2 \rfloor` for validation, the rest for test; with
    :math:`3 \leq n < 10`, one for validation and one for test; with fewer, none.

    Args:
        user (Tensor): User id of every interaction.
        generator (torch.Generator, optional): Source of the permutation. (default: :obj:`None`)

    Shapes:
        - **user:** :math:`(E,)`
        - **output:** :math:`(E,)`, int64; 0, 1, 2 for training, validation, test

    Raises:
        ValueError: If :obj:`user` is not one-dimensional.
    """
    _check_columns(user=user)
    order = _permutation(user, generator)
    return _hold_out_last(user, order)


def temporal_split(user: Tensor, time: Tensor) -> Tensor:
    r"""Holds out every user's latest interactions: the last for test, those before for validation.

    The numbers are those of :func:`random_split`. Of equal times, the earlier position counts as
    earlier.

    Args:
        user (Tensor): User id of every interaction.
        time (Tensor): Time of every interaction, any unit.

    Shapes:
        - **user**, **time:** :math:`(E,)`
        - **output:** :math:`(E,)`, int64; 0, 1, 2 for training, validation, test

    Raises:
        ValueError: If :obj:`user` and :obj:`time` differ in shape.
    """
    _check_columns(user=user, time=time)
    return _hold_out_last(user, time.argsort(stable=True))


def global_temporal_split(time: Tensor, ratios: Sequence[float] = _RATIOS) -> Tensor:
    r"""Splits all interactions at two points in time.

    The latest :math:`\lfloor r_2 E \rfloor` interactions are the test split, the
    :math:`\lfloor r_1 E \rfloor` before them the validation split. Of equal times, the earlier
    position counts as earlier.

    Args:
        time (Tensor): Time of every interaction, any unit.
        ratios (Sequence[float]): Parts :math:`r_0, r_1, r_2` of training, validation and test,
            summing to one. (default: :obj:`(0.8, 0.1, 0.1)`)

    Shapes:
        - **time:** :math:`(E,)`
        - **output:** :math:`(E,)`, int64; 0, 1, 2 for training, validation, test

    Raises:
        ValueError: If :obj:`ratios` are not three non-negative numbers that sum to one.
    """
    _check_columns(time=time)
    label = _labels_in_order(time.numel(), ratios, time.device)
    return torch.empty_like(label).scatter_(0, time.argsort(stable=True), label)


def item_cold_start_split(
    item: Tensor,
    ratios: Sequence[float] = _RATIOS,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Splits the items at random: held-out items have no training interaction.

    Args:
        item (Tensor): Item id of every interaction.
        ratios (Sequence[float]): Parts of the items that occur for training, validation and test,
            summing to one; the last two are rounded down. (default: :obj:`(0.8, 0.1, 0.1)`)
        generator (torch.Generator, optional): Source of the permutation. (default: :obj:`None`)

    Shapes:
        - **item:** :math:`(E,)`
        - **output:** :math:`(E,)`, int64; 0, 1, 2 for training, validation, test

    Raises:
        ValueError: If :obj:`ratios` are not three non-negative numbers that sum to one.
    """
    _check_columns(item=item)
    unique, inverse = item.unique(return_inverse=True)
    label = _labels_in_order(unique.numel(), ratios, item.device)
    return label[_permutation(unique, generator)][inverse]


def split_labels(interactions: Interactions, split: str, seed: int) -> Tensor:
    """0, 1, 2 for training, validation, test, by the name of a split that the columns allow."""
    generator = torch.Generator().manual_seed(seed)
    user, item, time = interactions.user, interactions.item, interactions.time
    if split == "label":
        assert interactions.label is not None, "the callers look for the column"
        return interactions.label
    if split in ("temporal", "global_temporal"):
        assert time is not None, "the callers look for the column"
        return temporal_split(user, time) if split == "temporal" else global_temporal_split(time)
    if split == "item_cold_start":
        return item_cold_start_split(item, generator=generator)
    return random_split(user, generator)


def has_training(user: Tensor, label: Tensor) -> Tensor:
    r"""Tells of every interaction whether its user has a training interaction.

    Held-out interactions of other users cannot be predicted; datasets drop and count them.

    Args:
        user (Tensor): User id of every interaction.
        label (Tensor): 0, 1, 2 for training, validation, test.

    Shapes:
        - **user**, **label:** :math:`(E,)`
        - **output:** :math:`(E,)`, boolean

    Raises:
        ValueError: If :obj:`user` and :obj:`label` differ in shape.
    """
    _check_columns(user=user, label=label)
    return torch.isin(user, user[label == 0].unique())


def _hold_out_last(user: Tensor, order: Tensor) -> Tensor:
    """Labels by each interaction's rank among its user's, in the given order."""
    _, inverse, count = user.unique(return_inverse=True, return_counts=True)
    order = order[inverse[order].argsort(stable=True)]
    end = count.cumsum(0)
    held_out = torch.where(count >= 10, count // 5, torch.where(count >= 3, 2, 0))
    test = held_out - held_out // 2
    group = inverse[order]
    from_end = end[group] - torch.arange(user.numel(), device=user.device)  # 1 = the last
    sorted_label = (from_end <= held_out[group]).long() + (from_end <= test[group]).long()
    return torch.empty_like(sorted_label).scatter_(0, order, sorted_label)


def _labels_in_order(count: int, ratios: Sequence[float], device: torch.device) -> Tensor:
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6:
        raise ValueError(
            f"'ratios' needs to be three non-negative numbers that sum to one (got {tuple(ratios)})"
        )
    validation, test = (int(ratio * count + 1e-9) for ratio in ratios[1:])
    label = torch.zeros(count, dtype=torch.long, device=device)
    label[count - test - validation :] = 1
    label[count - test :] = 2
    return label


def _permutation(values: Tensor, generator: torch.Generator | None) -> Tensor:
    device = values.device if generator is None else generator.device
    order = torch.randperm(values.numel(), generator=generator, device=device)
    return order.to(values.device)


def _check_columns(**columns: Tensor) -> None:
    shape = next(iter(columns.values())).shape
    for name, column in columns.items():
        if column.dim() != 1 or column.shape != shape:
            raise ValueError(
                f"'{name}' needs to be one-dimensional, one entry per interaction "
                f"(got shape {tuple(column.shape)}, expected {tuple(shape[:1])})"
            )
