from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData, InMemoryDataset

from .feature_file import (
    ModalityFeatures,
    NeighborGraph,
    find_features,
    find_graphs,
    find_misnamed,
    load_features,
    load_graph,
    read_num_rows,
)
from .interaction_file import Interactions, read_header, read_interactions, resolve_columns
from .modality import feature_fingerprint, modality_order
from .splits import SPLITS, has_training, split_labels
from .statistics import statistics

#: What to do about missing features.
FEATURE_FILES = (
    "files '<modality>_feat.npy', row = item id; Amazon data in this format: "
    "https://github.com/enoche/MMRec/tree/master/data"
)
_SPLIT_NAMES = ("training", "validation", "test")


class MultimodalDataset(InMemoryDataset):
    r"""A recommendation dataset with item modalities, read from a folder in the format of the
    `MMRec toolbox <https://arxiv.org/abs/2302.03497>`_.

    The folder :obj:`<root>/<name>` holds the interactions :obj:`<name>.inter` and, for any
    modalities, features :obj:`<modality>_feat.npy` (row = item id) and item graphs
    :obj:`<modality>_knn<k>.npz`. Nothing is written: the folder may be read-only. Item 0 of the
    dataset is the graph:

    * node types :obj:`"user"`, :obj:`"item"` and one per modality with :obj:`x` and, if an item
      lacks it, a boolean :obj:`mask`;
    * :obj:`("user", "interacts", "item")`: the training interactions as :obj:`edge_index`, with
      :obj:`time` and :obj:`rating` if given; :obj:`val_label_index` and :obj:`test_label_index`;
    * :obj:`(modality, "describes", "item")` for the items that have it;
    * :obj:`(modality, "similar", modality)`: a stored item graph, :obj:`edge_weight` = cosine.

    Duplicate pairs, and held-out interactions of users without a training interaction, are left
    out; :obj:`data.dropped` counts them.

    Args:
        root (str): The folder that holds the datasets.
        name (str): The dataset's name.
        modalities (Sequence[str], optional): Which modalities to read; an empty list for none.
            (default: all)
        split (str, optional): :obj:`"label"` (the file's own), :obj:`"random"` per user,
            :obj:`"temporal"` per user, :obj:`"global_temporal"` or :obj:`"item_cold_start"`.
            (default: :obj:`"label"` if the file has that column, else :obj:`"random"`)
        seed (int): Seed of a random split. (default: :obj:`0`)
        on_invalid (str): :obj:`"error"` or :obj:`"mask"`, what a feature row with NaN or infinite
            values does: raise, or count as an item that lacks the modality.
            (default: :obj:`"error"`)
        columns (Mapping[str, str], optional): Column names, see :func:`read_interactions`.
            (default: :obj:`None`)
        num_users (int, optional): Number of users. (default: largest id plus one)
        num_items (int, optional): Number of items. (default: the rows of the feature or graph
            files; without any, largest id plus one)
        transform (Callable, optional): Applied at every access. (default: :obj:`None`)
        pre_transform (Callable, optional): Applied once, when read. (default: :obj:`None`)

    Raises:
        FileNotFoundError: If the folder or the interaction file does not exist.
        ValueError: If an argument or a file is not as described, or if a split is empty.

    Note:
        A stored graph carries the fingerprint of the features beside it. If it has edges to items
        that :obj:`on_invalid="mask"` takes away, it is left out with a warning.
    """

    split: str

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        *,
        modalities: Sequence[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        on_invalid: str = "error",
        columns: Mapping[str, str | None] | None = None,
        num_users: int | None = None,
        num_items: int | None = None,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        if split is not None and split not in SPLITS:
            raise ValueError(f"'split' needs to be one of {list(SPLITS)} (got '{split}')")
        if on_invalid not in ("error", "mask"):
            raise ValueError(f"'on_invalid' needs to be 'error' or 'mask' (got '{on_invalid}')")
        if isinstance(modalities, str):
            raise ValueError(f"'modalities' needs to be a list of names (got '{modalities}')")
        folder = Path(root).expanduser() / name
        if not folder.is_dir():
            raise FileNotFoundError(
                f"'{folder}' is not a folder (datasets in '{root}': {_datasets(folder.parent)}); "
                f"it needs '{name}.inter' and {FEATURE_FILES}"
            )
        path = folder / f"{name}.inter"
        header, _ = read_header(path)
        columns = dict(columns or {})
        names = resolve_columns(columns)
        split = split or ("label" if names["label"] in header else "random")
        _require_column(path, header, names, split)
        if split != "label":
            columns["label"] = None  # Not read, so that nothing in it can be wrong.

        feature_files, graph_files = find_features(folder), find_graphs(folder)
        misnamed = find_misnamed(folder)
        if misnamed:
            warnings.warn(
                f"'{folder}': {misnamed} are not read; features are called '<modality>_feat.npy', "
                f"item graphs '<modality>_knn<k>.npz'",
                stacklevel=2,
            )
        selected = _select(modalities, {*feature_files, *graph_files}, folder)
        num_items, source = _count_items(
            num_items, [*feature_files.values(), *graph_files.values()]
        )
        interactions = read_interactions(
            path, columns, num_users=num_users, num_items=num_items, num_items_source=source
        )
        _tell_unseen(interactions, path, source)
        label = split_labels(interactions, split, seed)
        features = {
            m: load_features(feature_files[m], on_invalid) for m in selected if m in feature_files
        }
        graphs = {m: load_graph(graph_files[m])[0] for m in selected if m in graph_files}
        data = to_hetero_data(interactions, label, features, graphs, source=str(path))

        super().__init__(None, transform, pre_transform)
        self.root = str(root)
        self.name = name
        self.split = split
        if pre_transform is not None:
            data = pre_transform(data)
        self.data, self.slices = self.collate([data])

    @property
    def statistics(self) -> dict[str, Any]:
        r"""The counts of :func:`~pyg_mmrec.data.statistics`, before :obj:`transform`."""
        return statistics(self.get(0))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name})"


def to_hetero_data(
    interactions: Interactions,
    label: Tensor,
    features: Mapping[str, ModalityFeatures] | None = None,
    graphs: Mapping[str, NeighborGraph] | None = None,
    source: str = "'label'",
) -> HeteroData:
    r"""Puts interactions, features and item graphs together as one graph.

    Held-out interactions of users without a training interaction are left out and counted.

    Args:
        interactions (Interactions): Unique pairs, sorted by user, then item.
        label (Tensor): 0, 1, 2 for training, validation, test.
        features (Mapping[str, ModalityFeatures], optional): By modality. (default: :obj:`None`)
        graphs (Mapping[str, NeighborGraph], optional): By modality. (default: :obj:`None`)
        source (str): Where the interactions come from, for error messages.

    Shapes:
        - **label:** :math:`(E,)`

    Raises:
        ValueError: If a split is empty, or if :obj:`label`, features or a graph do not fit the
            interactions.
    """
    features, graphs = features or {}, graphs or {}
    if label.shape != interactions.user.shape:
        raise ValueError(
            f"'label' needs one entry for each of {len(interactions)} interactions "
            f"(got shape {tuple(label.shape)})"
        )
    for m, feature in features.items():
        if feature.x.dim() != 2 or feature.x.size(0) != interactions.num_items:
            raise ValueError(
                f"'{m}' features need {interactions.num_items} rows, one per item "
                f"(got shape {tuple(feature.x.shape)})"
            )
    for m, graph in graphs.items():
        if graph.edge_index.numel() > 0 and int(graph.edge_index.max()) >= interactions.num_items:
            raise ValueError(
                f"the item graph of '{m}' needs ids below {interactions.num_items}, the number of "
                f"items (got {int(graph.edge_index.max())})"
            )
    keep = has_training(interactions.user, label)
    dropped = dict(interactions.dropped)
    for value, name in ((1, "validation"), (2, "test")):
        out = ~keep & (label == value)
        dropped[f"{name}_users"] = interactions.user[out].unique().numel()
        dropped[f"{name}_interactions"] = int(out.sum())
    rows = [(keep & (label == value)).nonzero().view(-1) for value in range(3)]
    for row, name in zip(rows, _SPLIT_NAMES, strict=True):
        if row.numel() == 0:
            raise ValueError(
                f"{source}: the {name} split is empty (of {len(interactions)} interactions, "
                f"{int((~keep).sum())} belong to users without a training interaction)"
            )

    data = HeteroData()
    data.dropped = dropped
    data["user"].num_nodes = interactions.num_users
    data["item"].num_nodes = num_items = interactions.num_items
    store = data["user", "interacts", "item"]
    pairs = [torch.stack([interactions.user[row], interactions.item[row]]) for row in rows]
    store.edge_index, store.val_label_index, store.test_label_index = pairs
    if interactions.time is not None:
        store.time = interactions.time[rows[0]]
    if interactions.rating is not None:
        store.rating = interactions.rating[rows[0]]

    for m in modality_order({*features, *graphs}):
        mask, fingerprint = None, ""
        data[m].num_nodes = num_items
        if m in features:
            x, mask = features[m].x, features[m].mask
            data[m].x = x
            if mask is not None:
                data[m].mask = mask
            if m in graphs:
                fingerprint = feature_fingerprint(x, mask)
        present = torch.arange(num_items) if mask is None else mask.nonzero().view(-1)
        data[m, "describes", "item"].edge_index = torch.stack([present, present])
        if m not in graphs:
            continue
        graph = graphs[m]
        if mask is not None and not bool(mask[graph.edge_index].all()):
            warnings.warn(
                f"The stored item graph of '{m}' is not used: it has edges to items whose "
                f"features are invalid",
                stacklevel=3,
            )
            continue
        similar = data[m, "similar", m]
        similar.edge_index, similar.edge_weight = graph.edge_index, graph.cosine
        similar.k, similar.fingerprint = graph.k, fingerprint
    return data


def _require_column(
    path: Path, header: list[str], names: Mapping[str, str | None], split: str
) -> None:
    role = {"label": "label", "temporal": "time", "global_temporal": "time"}.get(split)
    if role is not None and names[role] is None:
        raise ValueError(f"split='{split}' needs a column name for '{role}' (got None)")
    if role is not None and names[role] not in header:
        raise ValueError(
            f"'{path}', line 1: split='{split}' needs the column '{names[role]}' (found {header})"
        )


def _select(modalities: Sequence[str] | None, present: set[str], folder: Path) -> list[str]:
    for m in modalities or ():
        if m not in present:
            raise ValueError(
                f"'{folder}' has no modality '{m}' (present: {modality_order(present)})"
            )
    return modality_order(present if modalities is None else modalities)


def _count_items(num_items: int | None, files: Sequence[Path]) -> tuple[int | None, str]:
    """The number of items and where it comes from; all files have to agree on it."""
    source = "'num_items'"
    for file in files:
        rows = read_num_rows(file)
        if num_items is None:
            num_items, source = rows, f"'{file.name}'"
        elif rows != num_items:
            raise ValueError(
                f"'{file}': expected {num_items} rows, one per item, as in {source} (got {rows})"
            )
    return num_items, source


def _tell_unseen(interactions: Interactions, path: Path, source: str) -> None:
    """Warns if a file's number of items is more than occur, which may be a mistake."""
    if source == "'num_items'":
        return  # asked for, or the interactions' own number
    occurs = torch.zeros(interactions.num_items, dtype=torch.bool).index_fill_(
        0, interactions.item, True
    )
    unseen = (~occurs).nonzero().view(-1)
    if unseen.numel() > 0:
        warnings.warn(
            f"{source} has rows of {interactions.num_items} items, of which {unseen.numel()} "
            f"never occur in '{path}', the first is {int(unseen[0])}, and yet are items of the "
            f"data; say that they are meant by num_items={interactions.num_items}",
            stacklevel=3,
        )


def _datasets(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if (path / f"{path.name}.inter").is_file())
