import pytest
import torch

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import LightGCN


def dense_propagation(data, user, item, num_layers):
    """Mean of the layers under the square matrix over users and items, with dense tensors."""
    num_users, num_items = user.size(0), item.size(0)
    liked = torch.zeros(num_users, num_items, dtype=user.dtype)
    liked[tuple(data["user", "interacts", "item"].edge_index)] = 1
    degrees = liked.sum(1).clamp(min=1e-7), liked.sum(0).clamp(min=1e-7)
    a = liked / degrees[0].sqrt()[:, None] / degrees[1].sqrt()
    square = torch.zeros(num_users + num_items, num_users + num_items, dtype=user.dtype)
    square[:num_users, num_users:], square[num_users:, :num_users] = a, a.t()
    layers = [torch.cat([user, item])]
    for _ in range(num_layers):
        layers.append(square @ layers[-1])
    return torch.stack(layers).mean(0).split([num_users, num_items])


@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_dense_propagation_and_loss_by_hand(tiny, sample, num_layers):
    torch.manual_seed(0)
    backbone = LightGCN.from_data(tiny, embedding_dim=8, num_layers=num_layers, reg_weight=0.1)
    stages = backbone(backbone.graph(tiny))
    tables = backbone.user_embedding.weight, backbone.item_embedding.weight
    user, item = dense_propagation(tiny, *tables, num_layers)
    torch.testing.assert_close(stages.output["user"], user)
    torch.testing.assert_close(stages.output["item"], item)

    batch, bpr = sample(tiny), 0.0
    ids = list(zip(batch.user, batch.positive, batch.negative, strict=True))
    for u, i, j in ids:
        bpr -= ((user[u] * (item[i] - item[j])).sum().sigmoid() + 1e-10).log() / len(ids)
    rows = tables[0][batch.user], tables[1][batch.positive], tables[1][batch.negative]
    norms = sum(x.square().sum().sqrt() for x in rows) / len(ids)
    loss = backbone.loss(stages, batch)
    torch.testing.assert_close(loss["bpr"], bpr)
    torch.testing.assert_close(loss["regularization"], 0.1 * norms)


def test_isolated_nodes_keep_their_share_of_layer_0(make_data):
    data = make_data()
    user, item = data["user", "interacts", "item"].edge_index
    data["user", "interacts", "item"].edge_index = torch.stack([user, item])[:, item != 4]
    backbone = LightGCN.from_data(data, num_layers=3)
    stages = backbone(backbone.graph(data))
    torch.testing.assert_close(stages.output["item"][4], backbone.item_embedding.weight[4] / 4)


def test_without_weight_there_is_no_penalty(tiny, sample):
    backbone = LightGCN.from_data(tiny, reg_weight=0)
    assert list(backbone.loss(backbone(backbone.graph(tiny)), sample(tiny))) == ["bpr"]


def test_a_graph_without_normalised_weights_is_refused(tiny):
    backbone = LightGCN.from_data(tiny)
    with pytest.raises(ValueError, match=r"backbone's 'graph\(data\)', or apply 'Normalize"):
        backbone(Graph.from_hetero(tiny))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, r"'embedding_dim' needs to be a positive integer \(got 0\)"),
        ({"num_layers": -1}, "'num_layers' needs to be an integer of 0 or more"),
        ({"reg_weight": -1.0}, r"'reg_weight' needs to be a number of 0 or more \(got -1.0\)"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        LightGCN.from_data(tiny, **options)
