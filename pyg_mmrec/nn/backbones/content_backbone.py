"""What backbones that read modality features share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.data import Graph, modalities, modality_order
from pyg_mmrec.data.multimodal_dataset import FEATURE_FILES
from pyg_mmrec.nn.backbones.backbone import Backbone
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows


def draw_linear_layers(
    module: nn.Module, draw: Callable[[Tensor], Tensor], zero_bias: bool = True
) -> None:
    """Draws the weights of the linear layers in ``module`` anew; their biases start at 0, or as
    :class:`torch.nn.Linear` draws them.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if not zero_bias:
                layer.reset_parameters()
            elif layer.bias is not None:
                nn.init.zeros_(layer.bias)
            draw(layer.weight)


def draw_as_one_table(user: Tensor, item: Tensor) -> None:
    """Draws the tables of users and of items anew, Xavier normal as if they were one table."""
    std = (2 / (user.size(0) + item.size(0) + user.size(1))) ** 0.5
    nn.init.normal_(user, std=std)
    nn.init.normal_(item, std=std)


class ContentBackbone(Backbone):
    r"""A backbone that reads the raw features of one or more modalities.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality that has features.
        modalities (list[str], optional): Modalities to use, in this order: where a formula says
            image and text, the first plays image and the second text. (default: those of
            ``in_channels`` as image, text, then others by name)
        train_features (bool, optional): Whether the raw features are trained along.
            (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features ``[num_items, F]`` to start
            from, if they are trained.

    Raises:
        ValueError: If a size is out of range, a modality is unknown or named twice, or features
            to be trained are missing.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(num_users, num_items)
        for name, channels in in_channels.items():
            check_positive(f"in_channels[{name!r}]", channels)
        self.modalities = modality_order(in_channels) if modalities is None else list(modalities)
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(
                f"'modalities' needs one or more different names (got {self.modalities})"
            )
        self.in_channels = {
            name: in_channels[name] for name in self.modalities if name in in_channels
        }
        self.features: nn.ParameterDict | None = None
        if train_features:
            missing = [name for name in self.in_channels if name not in (features or {})]
            if missing or features is None:
                raise ValueError(f"'train_features' needs 'features' of the modalities {missing}")
            self.features = nn.ParameterDict(
                {
                    name: features[name].float().clone(memory_format=torch.contiguous_format)
                    for name in self.in_channels
                }
            )

    @classmethod
    def _sizes(cls, data: HeteroData, names: Sequence[str] | None) -> dict[str, Any]:
        present = modalities(data)
        for name in names or ():
            if name not in present:
                raise ValueError(
                    f"'modalities' names '{name}', but the data have {present or 'none'}"
                )
        if not present:
            raise ValueError(
                f"{cls.__name__} reads modalities, but the data have none (in a folder they are "
                f"{FEATURE_FILES})"
            )
        chosen = present if names is None else list(names)
        features = {name: data[name].x for name in chosen if "x" in data[name]}
        in_channels = {name: x.size(1) for name, x in features.items()}
        sizes = super()._sizes(data, names)
        sizes.update(in_channels=in_channels, features=features)
        if names is None:  # names also those that only have an item graph
            sizes["modalities"] = chosen
        return sizes

    loss_reads_content = True
    #: What maps raw features, by modality.
    projection: nn.ModuleDict

    def linear_projections(self, out_channels: int) -> nn.ModuleDict:
        """One linear layer for each modality that has features."""
        return nn.ModuleDict(
            {name: nn.Linear(size, out_channels) for name, size in self.in_channels.items()}
        )

    def content_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the projections."""
        return self.projection.parameters()

    @property
    def content_channels(self) -> dict[str, int]:
        """Size of each projection, that of the last linear layer in it."""
        sizes = {}
        for name, projection in self.projection.items():
            for layer in projection.modules():
                if isinstance(layer, nn.Linear):
                    sizes[name] = layer.out_features
        return sizes

    def project(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Projects each modality, see :meth:`content`, or takes what the graph holds."""
        if graph.content:
            return {name: rows.at("item", z) for name, z in graph.content.items()}
        return self.content(graph, rows)

    def content(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Projects each modality linearly."""
        return {
            name: self.masked(
                rows.map("item", self.projection[name], self.raw_features(name, graph)),
                name,
                graph,
                rows,
            )
            for name in self.modalities
            if name in self.projection
        }

    def require_features(self) -> None:
        """Raises a :class:`ValueError` if the data lack the features of a modality in use."""
        missing = [name for name in self.modalities if name not in self.in_channels]
        if missing:
            raise ValueError(
                f"{type(self).__name__} reads the features of {missing}, which the data lack (in a "
                f"folder they are {FEATURE_FILES})"
            )

    def raw_features(self, modality: str, graph: Graph) -> Tensor:
        """Raw features ``[num_items, F]`` of a modality: the trained ones, or the graph's.

        Raises:
            ValueError: If the graph has none.
        """
        if self.features is not None:
            return self.features[modality]
        if modality not in graph.x or modality not in self.in_channels:
            raise ValueError(
                f"{type(self).__name__} reads the features of modality '{modality}', which the "
                f"data lack (they have features of {sorted(graph.x) or 'no modality'})"
            )
        return graph.x[modality]

    @staticmethod
    def masked(z: Tensor, modality: str, graph: Graph, rows: Rows = EVERY_ROW) -> Tensor:
        """Zeroes the rows of items that lack the modality."""
        if modality not in graph.mask:
            return z
        return z * rows.at("item", graph.mask[modality])[:, None]

    def extra_repr(self) -> str:
        """Sizes and modalities, for ``repr``."""
        return f"{super().extra_repr()}, modalities={self.modalities}"
