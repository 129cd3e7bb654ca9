"""What holds for every backbone."""

import pytest
import torch

from pyg_mmrec.nn.backbones import (
    BM3,
    BPRMF,
    FREEDOM,
    GRCN,
    LATTICE,
    MMGCN,
    VBPR,
    VLATTICE,
    ItemKNN,
    LayerGCN,
    LightGCN,
    MostPop,
    SelfCF,
    VLightGCN,
)
from pyg_mmrec.testing import check_backbone

BACKBONES = {
    "MostPop": (MostPop, {}),
    "ItemKNN": (ItemKNN, {}),
    "LightGCN": (LightGCN, {"embedding_dim": 8}),
    "LightGCN-deep": (LightGCN, {"embedding_dim": 8, "num_layers": 4, "reg_weight": 0}),
    "VBPR": (VBPR, {"embedding_dim": 8}),
    "VBPR-item": (VBPR, {"embedding_dim": 8, "site": "item"}),
    "FREEDOM": (FREEDOM, {"embedding_dim": 8}),
    "FREEDOM-2": (FREEDOM, {"embedding_dim": 8, "num_item_layers": 2}),
    "FREEDOM-mmrec": (FREEDOM, {"embedding_dim": 8, "preset": "mmrec"}),
    "BPRMF": (BPRMF, {"embedding_dim": 8}),
    "LayerGCN": (LayerGCN, {"embedding_dim": 8, "num_layers": 3}),
    "SelfCF": (SelfCF, {"embedding_dim": 8}),
    "SelfCF-fixed": (SelfCF, {"embedding_dim": 8, "edge_dropout": 0.2}),
    "SelfCF-full": (SelfCF, {"embedding_dim": 8, "edge_dropout": None, "dropout": 0.0}),
    "VLightGCN": (VLightGCN, {"embedding_dim": 8}),
    "VLATTICE": (VLATTICE, {"embedding_dim": 8}),
    "VLATTICE-2": (VLATTICE, {"embedding_dim": 8, "num_item_layers": 2}),
    "BM3": (BM3, {"embedding_dim": 8}),
    "BM3-mmrec": (BM3, {"embedding_dim": 8, "preset": "mmrec"}),
    "LATTICE": (LATTICE, {"embedding_dim": 8}),
    "LATTICE-2": (LATTICE, {"embedding_dim": 8, "num_item_layers": 2}),
    "LATTICE-mf": (LATTICE, {"embedding_dim": 8, "cf_model": "mf"}),
    "LATTICE-mmrec": (LATTICE, {"embedding_dim": 8, "preset": "mmrec"}),
    "GRCN": (GRCN, {"embedding_dim": 8}),
    "GRCN-mmrec": (GRCN, {"embedding_dim": 8, "preset": "mmrec"}),
    "MMGCN": (MMGCN, {"embedding_dim": 8}),
    "MMGCN-add": (MMGCN, {"embedding_dim": 8, "concat": False, "projected": {"text": 7}}),
    "MMGCN-mmrec": (MMGCN, {"embedding_dim": 8, "preset": "mmrec"}),
}
TRAINED = [name for name in BACKBONES if name not in ("MostPop", "ItemKNN")]


def build(name, data):
    cls, options = BACKBONES[name]
    return cls.from_data(data, **options)


@pytest.mark.parametrize("name", BACKBONES)
def test_fulfils_the_contract(name, tiny):
    torch.manual_seed(0)
    backbone = build(name, tiny)
    check_backbone(backbone, backbone.graph(tiny))


@pytest.mark.parametrize("name", BACKBONES)
def test_fulfils_the_contract_where_items_lack_a_modality(name, make_data):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask}, image=6, text=5)
    torch.manual_seed(0)
    backbone = build(name, data)
    check_backbone(backbone, backbone.graph(data))


@pytest.mark.parametrize("cls", [BM3, FREEDOM, GRCN, LATTICE, MMGCN, VBPR, VLATTICE, VLightGCN])
def test_raw_features_train_on_request(cls, tiny, sample):
    backbone = cls.from_data(tiny, embedding_dim=8, train_features=True)
    graph = backbone.graph(tiny)
    sum(backbone.loss(backbone(graph), sample(tiny)).values()).backward()
    for name in ("image", "text"):
        assert torch.equal(backbone.features[name], tiny[name].x)
        assert backbone.features[name].grad.abs().max() > 0
    assert not hasattr(cls.from_data(tiny).features, "image")


@pytest.mark.parametrize("cls", [GRCN, MMGCN])
@pytest.mark.parametrize(("name", "other"), [("image", {}), ("text", {"image": 6})])
def test_rows_of_zeros_give_finite_gradients(cls, name, other, make_data, sample):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    data = make_data(**other, **{name: x * (torch.arange(20) % 3 > 0)[:, None]})
    backbone = cls.from_data(data, embedding_dim=8)
    torch.nn.init.zeros_(backbone.preference["image"])
    sum(backbone.loss(backbone(backbone.graph(data)), sample(data, 30)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.abs().max() < 10, name


@pytest.mark.parametrize("cls", [GRCN, LATTICE, MMGCN])
def test_weights_of_the_interactions_are_not_read(cls, tiny):
    backbone = cls.from_data(tiny, embedding_dim=8)
    plain = backbone(backbone.graph(tiny)).output["item"]
    interacts = tiny["user", "interacts", "item"]
    interacts.edge_weight = torch.rand(interacts.edge_index.size(1))
    assert torch.equal(backbone(backbone.graph(tiny)).output["item"], plain)


@pytest.mark.parametrize("cls", [BPRMF, GRCN, LATTICE, LayerGCN, MMGCN, VBPR, VLATTICE, VLightGCN])
def test_without_weight_there_is_no_penalty(cls, tiny, sample):
    backbone = cls.from_data(tiny, reg_weight=0)
    assert list(backbone.loss(backbone(backbone.graph(tiny)), sample(tiny))) == ["bpr"]


@pytest.mark.parametrize("name", TRAINED)
def test_relabelled_items_give_relabelled_scores(name, tiny, relabelled):
    torch.manual_seed(0)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    one, two = build(name, tiny), build(name, relabelled(tiny, order))
    state = dict(one.state_dict())
    for key in state:
        if key.startswith(("item_embedding.", "item_confidence", "features.")):
            state[key] = state[key][order]
    two.load_state_dict(state)
    users = torch.arange(120)
    graph, other = one.graph(tiny), two.graph(relabelled(tiny, order))
    scores = one.scores(one(graph), graph, users)
    torch.testing.assert_close(two.scores(two(other), other, users), scores[:, order])


@pytest.mark.parametrize("name", TRAINED)
def test_the_order_of_the_batch_does_not_matter(name, tiny, sample):
    backbone = build(name, tiny)
    stages, batch = backbone(backbone.graph(tiny)), sample(tiny)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = type(batch)(batch.user[order], batch.positive[order], batch.negative[order])
    torch.testing.assert_close(backbone.loss(stages, shuffled), backbone.loss(stages, batch))


@pytest.mark.parametrize("name", TRAINED)
def test_reset_parameters_draws_all_but_features_and_biases(name, tiny):
    backbone = build(name, tiny)
    torch.manual_seed(1)
    backbone.reset_parameters()
    first = {key: x.clone() for key, x in backbone.state_dict().items()}
    torch.manual_seed(2)
    backbone.reset_parameters()
    for key, x in backbone.state_dict().items():
        fixed = key.startswith("features.") or key.endswith(("bias", "modality_logits"))
        fixed = fixed and not (key.endswith("bias") and name.startswith(("BM3", "MMGCN", "SelfCF")))
        assert torch.equal(x, first[key]) == fixed, key
