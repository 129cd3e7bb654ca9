from __future__ import annotations

from typing import Any

import torch
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage

from .modality import feature_fingerprint, modalities


def statistics(data: HeteroData) -> dict[str, Any]:
    r"""Counts what a user/item/modality graph holds; the result can be written as JSON.

    .. math::
        \mathrm{density} = \frac{\text{interactions of all splits}}
        {\text{users} \times \text{items}}

    Keys: :obj:`users`, :obj:`items`; :obj:`interactions` and its parts :obj:`training`,
    :obj:`validation`, :obj:`test`; :obj:`density`; :obj:`users_without_training`,
    :obj:`items_without_training`; :obj:`cold_items`, the held-out items without a training
    interaction; :obj:`modalities`, by name with :obj:`dim` (:obj:`None` without features),
    :obj:`missing` items and :obj:`neighbors`, the :obj:`k` of its item graph (:obj:`None` if that
    is absent or does not tell); :obj:`dropped`, what the reader left out, by reason.

    Args:
        data (HeteroData): The graph, as a dataset of this package gives it.

    Raises:
        ValueError: If :obj:`data` has no :obj:`("user", "interacts", "item")` edges, or these lack
            training, validation or test pairs.
    """
    store = _interactions(data)
    needed = ("edge_index", "val_label_index", "test_label_index")
    lacking = [name for name in needed if name not in store]
    if lacking:
        raise ValueError(f"the data needs '{lacking[0]}' on its ('user', 'interacts', 'item')")
    num_users, num_items = int(data["user"].num_nodes), int(data["item"].num_nodes)
    user, item = store.edge_index
    held_out = [store[f"{split}_label_index"] for split in ("val", "test")]
    total = user.numel() + sum(index.size(1) for index in held_out)

    trained = torch.zeros(num_items, dtype=torch.bool, device=item.device)
    trained[item] = True
    held_out_items = torch.cat([index[1] for index in held_out]).unique()

    described: dict[str, dict[str, int | None]] = {}
    for name in modalities(data):
        node, similar = data[name], (name, "similar", name)
        neighbors = data[similar].get("k") if similar in data.edge_types else None
        described[name] = {
            "dim": int(node.x.size(1)) if "x" in node else None,
            "missing": int((~node.mask).sum()) if "mask" in node else 0,
            "neighbors": None if neighbors is None else int(neighbors),
        }
    return {
        "users": num_users,
        "items": num_items,
        "interactions": total,
        "training": user.numel(),
        "validation": held_out[0].size(1),
        "test": held_out[1].size(1),
        "density": total / (num_users * num_items),
        "users_without_training": num_users - user.unique().numel(),
        "items_without_training": num_items - int(trained.sum()),
        "cold_items": int((~trained[held_out_items]).sum()),
        "modalities": described,
        "dropped": dict(data.dropped) if "dropped" in data else {},
    }


def fingerprints(data: HeteroData) -> dict[str, str]:
    """Returns what tells data apart: hashes of the pairs of every split, of every modality's
    features and of the edges that came with them, by name.

    Args:
        data (HeteroData): The graph, as a dataset of this package gives it.

    Raises:
        ValueError: If :obj:`data` has no :obj:`("user", "interacts", "item")` edges.
    """
    interactions = _interactions(data)
    names = {"edge_index": "training", "val_label_index": "validation", "test_label_index": "test"}
    found = {
        f"{split} pairs": feature_fingerprint(interactions[name])
        for name, split in names.items()
        if name in interactions
    }
    for name in modalities(data):
        if "x" in data[name]:
            mask = data[name].mask if "mask" in data[name] else None
            found[f"features of {name}"] = feature_fingerprint(data[name].x, mask)
    for edge_type in data.edge_types:
        source, relation, target = edge_type
        if source != "user" and target != "user" and relation != "describes":
            for name, x in data[edge_type].items():
                if name in ("edge_index", "edge_weight"):
                    found[f"{name} of {edge_type}"] = feature_fingerprint(x)
    return found


def _interactions(data: HeteroData) -> EdgeStorage:
    if ("user", "interacts", "item") not in data.edge_types:
        raise ValueError(
            f"'data' needs ('user', 'interacts', 'item') edges (found {data.edge_types})"
        )
    return data["user", "interacts", "item"]
