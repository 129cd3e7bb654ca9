"""Backbones against reference tensors that an independent implementation computed.

Every ``*.npz`` of the folder named by ``PYG_MMREC_GOLDENS`` (default ``tests/goldens``) is checked;
several may share a backbone, with other sizes, hyper-parameters and modalities.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from pyg_mmrec.data import modality_order
from pyg_mmrec.data.graph import SIMILAR
from pyg_mmrec.nn import backbones
from pyg_mmrec.nn.backbones import Triplets
from pyg_mmrec.transforms import degree_sensitive_weight

FOLDER = Path(os.environ.get("PYG_MMREC_GOLDENS", Path(__file__).parent / "goldens"))
FILES = sorted(FOLDER.glob("*.npz"))

# Ours by golden option, and ours by golden weight. {m} is a modality; a pair are the tables of
# users and of items, which are one table there; what ends in ".T" is transposed there.
OPTIONS = {
    "GRCN": {"n_layers": "num_routings"},
    "LightGCN": {"n_layers": "num_layers"},
    "MMGCN": {},
    "VBPR": {},
    "BPRMF": {},
    "LayerGCN": {"n_layers": "num_layers", "dropout": "edge_dropout"},
    "BM3": {
        "n_layers": "num_layers",
        "dropout": "dropout",
        "cl_weight": "contrastive_weight",
    },
    "LATTICE": {
        "n_layers": "num_item_layers",
        "knn_k": "k",
        "lambda_coeff": "original_weight",
        "cf_model": "cf_model",
        "batch_size": "batch_size",
    },
    "SelfCF": {"n_layers": "num_layers", "dropout": "dropout"},
    "FREEDOM": {
        "n_mm_layers": "num_item_layers",
        "n_ui_layers": "num_layers",
        "knn_k": "k",
        "dropout": "edge_dropout",
    },
}
TABLES = {"P": "user_embedding.weight", "Q": "item_embedding.weight"}
PREDICTOR = {f"predictor.{part}": f"predictor.{part}" for part in ("weight", "bias")}
WEIGHTS = {
    "GRCN": {
        "ID": ("user_embedding.weight", "item_embedding.weight"),
        "conf": ("user_confidence", "item_confidence"),
        "{m}.preference": "preference.{m}",
        "{m}.mlp.weight": "projection.{m}.weight",
        "{m}.mlp.bias": "projection.{m}.bias",
    },
    "BPRMF": TABLES,
    "LayerGCN": TABLES,
    "LightGCN": TABLES,
    "BM3": {
        **TABLES,
        **PREDICTOR,
        "{m}.weight": "projection.{m}.weight",
        "{m}.bias": "projection.{m}.bias",
        "{m}.features": "features.{m}",
    },
    "LATTICE": {
        **TABLES,
        "modality_logits": "modality_logits",
        "{m}.weight": "projection.{m}.weight",
        "{m}.bias": "projection.{m}.bias",
        "{m}.features": "features.{m}",
    },
    "MMGCN": {
        "ID": ("user_embedding.weight", "item_embedding.weight"),
        "{m}.preference": "preference.{m}",
        "{m}.mlp.weight": "projection.{m}.weight",
        "{m}.mlp.bias": "projection.{m}.bias",
        **{
            f"{{m}}.{theirs}": f"convs.{{m}}.{layer}.{ours}"
            for layer in range(3)
            for theirs, ours in {
                f"W{layer + 1}": "lin_neighbor.weight.T",
                f"V{layer + 1}.weight": "lin_self.weight",
                f"V{layer + 1}.bias": "lin_self.bias",
                f"G{layer + 1}.weight": "lin_combined.weight",
                f"G{layer + 1}.bias": "lin_combined.bias",
            }.items()
        },
    },
    "SelfCF": {**TABLES, **PREDICTOR},
    "VBPR": {**TABLES, "W": "projection.weight", "b": "projection.bias"},
    "FREEDOM": {
        **TABLES,
        "{m}.weight": "projection.{m}.weight",
        "{m}.bias": "projection.{m}.bias",
        "{m}.features": "features.{m}",
    },
}


class Golden:
    def __init__(self, path: Path):
        with np.load(path) as file:
            self.tensors = {
                key: torch.from_numpy(file[key]) for key in file.files if key != "config"
            }
            self.config = json.loads(str(file["config"]))
        names = [name for name in WEIGHTS if name in path.stem]
        assert names, f"'{path.name}' names no backbone; there are {sorted(WEIGHTS)}"
        self.name = max(names, key=len)
        self.modalities = modality_order(
            key.removeprefix("x_") for key in self.tensors if key.startswith("x_")
        )

    def data(self) -> HeteroData:
        data = HeteroData()
        data["user"].num_nodes = int(self.tensors["num_users"])
        data["item"].num_nodes = int(self.tensors["num_items"])
        data["user", "interacts", "item"].edge_index = self.tensors["interactions"].long()
        for name in self.modalities:
            data[name].x = self.tensors[f"x_{name}"].float()
            data[name].num_nodes = data["item"].num_nodes
        return data

    def weight_names(self) -> dict[str, str | tuple[str, str]]:
        names = {}
        for theirs, ours in WEIGHTS[self.name].items():
            for modality in self.modalities if "{m}" in theirs else [""]:
                names[theirs.format(m=modality)] = (
                    ours.format(m=modality) if isinstance(ours, str) else ours
                )
        return {theirs: ours for theirs, ours in names.items() if f"w/{theirs}" in self.tensors}

    def ours(self, kind: str) -> dict[str, torch.Tensor]:
        """Weights ("w") or gradients ("g") by our names."""
        found = {}
        for theirs, ours in self.weight_names().items():
            tensor = self.tensors.get(f"{kind}/{theirs}")
            if tensor is None:
                continue
            if isinstance(ours, str):
                found[ours.removesuffix(".T")] = tensor.t() if ours.endswith(".T") else tensor
            else:
                sizes = [int(self.tensors["num_users"]), int(self.tensors["num_items"])]
                found.update(zip(ours, tensor.split(sizes), strict=True))
        return found

    def backbone(self, data: HeteroData) -> backbones.Backbone:
        options = {
            ours: self.config[theirs]
            for theirs, ours in OPTIONS[self.name].items()
            if theirs in self.config
        }
        options["reg_weight"] = self.config["reg_weight"]
        options["embedding_dim"] = self.tensors["w/Q" if "w/Q" in self.tensors else "w/ID"].size(1)
        if self.name == "LATTICE" and "weight_size" in self.config:
            options["num_layers"] = len(self.config["weight_size"])
        if self.name == "FREEDOM" and len(self.modalities) == 2:
            share = self.config["mm_image_weight"]
            options["modality_weights"] = dict(
                zip(self.modalities, (share, 1 - share), strict=True)
            )
        if self.name == "MMGCN":
            options["projected"] = {
                name: self.tensors[f"w/{name}.mlp.weight"].size(0)
                for name in self.modalities
                if f"w/{name}.mlp.weight" in self.tensors
            }
            first = self.modalities[0]  # concatenated, the last matrix of a layer is wider
            widths = [self.tensors[f"w/{first}.{x}"].size(1) for x in ("G1.weight", "W1")]
            options["concat"] = widths[0] > widths[1]
        backbone = getattr(backbones, self.name).from_data(data, preset="mmrec", **options)
        unknown = [
            k for k in self.tensors if k.startswith("w/") and k[2:] not in self.weight_names()
        ]
        assert not unknown, f"{self.name}: no place for the weights {unknown}"
        weights = self.ours("w")
        if len(self.modalities) == 1:  # a single modality's share is 1, whatever stands there
            weights = {**weights, **lone_logits(backbone)}
        backbone.load_state_dict(weights)
        backbone.requires_grad_(True)  # the goldens have gradients also of what is not trained
        return backbone


def lone_logits(backbone):
    return {k: x for k, x in backbone.state_dict().items() if k == "modality_logits"}


def assert_close(actual, expected, relative, what, floor=1e-30):
    error = (actual - expected).norm() / expected.norm().clamp(min=floor)
    assert error <= relative, f"{what}: relative error {error:.2e} > {relative:.0e}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_backbone_agrees(path):
    golden = Golden(path)
    tensors = golden.tensors
    data = golden.data()
    backbone = golden.backbone(data)
    backbone.eval()  # the goldens have no dropout
    graph = backbone.graph(data)
    stages = backbone(graph)
    assert_close(stages.output["user"], tensors["y/user"], 1e-5, "user vectors")
    assert_close(stages.output["item"], tensors["y/item"], 1e-5, "item vectors")
    users = torch.arange(backbone.num_users)
    assert_close(backbone.scores(stages, graph, users), tensors["y/scores"], 1e-5, "scores")

    loss = sum(backbone.loss(stages, Triplets(*tensors["batch"].long())).values())
    assert_close(loss, tensors["y/loss"], 1e-4, "loss")
    loss.backward()
    parameters = dict(backbone.named_parameters())
    gradients = golden.ours("g")
    # Where terms cancel, rounding is as large as theirs: 1e-7 of the largest gradient.
    floor = 1e-3 * max(float(x.norm()) for x in gradients.values()) + 1e-30
    for name, expected in gradients.items():
        if name == "modality_logits" and len(golden.modalities) == 1:
            continue
        grad = parameters[name].grad
        grad = torch.zeros_like(expected) if grad is None else grad
        assert_close(grad, expected, 1e-4, f"gradient of {name}", floor)
    if "x/item_graph_dense" in tensors:
        learned = hasattr(backbone, "item_graph")
        similar = backbone.item_graph(graph) if learned else graph.adjacency[SIMILAR]
        dense = torch.zeros(backbone.num_items, backbone.num_items)
        source, target = similar.edge_index
        dense[target, source] = similar.weight
        assert_close(dense, tensors["x/item_graph_dense"], 1e-5, "item graph")
    if "x/edge_keep_weight" in tensors:
        keep = degree_sensitive_weight(
            tensors["interactions"].long(), backbone.num_users, backbone.num_items
        )
        expected = tensors["x/edge_keep_weight"]
        assert_close(keep / keep.sum(), expected / expected.sum(), 1e-5, "keep weights")


def test_there_are_goldens():
    assert FILES, f"no golden tensors in {FOLDER}"
