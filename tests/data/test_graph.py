from dataclasses import FrozenInstanceError

import pytest
import torch
from torch.utils import _pytree as pytree
from torch_geometric.data import HeteroData

from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS


@pytest.fixture
def data():
    data = HeteroData()
    data["user"].num_nodes = 4  # the last user and the last item are isolated
    data["item"].num_nodes = 5
    data["image"].x = torch.arange(10).view(5, 2)  # not floating point
    data["image"].mask = torch.tensor([True, True, False, True, True])
    data["image", "describes", "item"].edge_index = torch.tensor([[0, 1, 3, 4], [0, 1, 3, 4]])
    data["text"].num_nodes = 5  # a graph, no features
    data["text", "similar", "text"].edge_index = torch.tensor([[1, 2], [0, 0]])
    data["text", "similar", "text"].edge_weight = torch.tensor([0.9, 0.8])
    interacts = data["user", "interacts", "item"]
    interacts.edge_index = torch.tensor([[0, 0, 1, 2], [0, 3, 3, 1]])
    interacts.val_label_index = torch.tensor([[0], [4]])
    return data


def test_holds_what_backbones_read(data):
    graph = Graph.from_hetero(data)
    assert (graph.num_users, graph.num_items) == (4, 5)
    assert list(graph.x) == ["image"] and graph.x["image"].dtype == torch.float32
    assert list(graph.mask) == ["image"]
    assert graph.x["image"].tolist() == [[0, 1], [2, 3], [0, 0], [6, 7], [8, 9]]
    assert set(graph.adjacency) == {INTERACTS, INTERACTED_BY, ("text", "similar", "text")}
    to_item = graph.adjacency[INTERACTS]
    assert to_item.size == (4, 5) and graph.adjacency[INTERACTED_BY].size == (5, 4)
    assert to_item.edge_index.t().tolist() == [[0, 0], [2, 1], [0, 3], [1, 3]]
    assert to_item.weight.eq(1).all()
    back = graph.adjacency[INTERACTED_BY].edge_index.t().tolist()
    assert back == [[0, 0], [3, 0], [3, 1], [1, 2]]


def test_held_out_interactions_do_not_enter(data):
    pairs = Graph.from_hetero(data).adjacency[INTERACTS].edge_index.t().tolist()
    assert [0, 4] not in pairs and len(pairs) == 4


def test_edge_order_does_not_matter(data):
    shuffled = data.clone()
    store = shuffled["user", "interacts", "item"]
    store.edge_index = store.edge_index[:, [2, 0, 3, 1]]
    one, other = (pytree.tree_leaves(Graph.from_hetero(d).adjacency[INTERACTS])
                  for d in (data, shuffled))  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(one[:3], other[:3], strict=True))


def test_weights_have_to_be_set_by_a_transform(data):
    graph = Graph.from_hetero(data)
    assert ("text", "similar", "text") in graph.weighted and INTERACTS not in graph.weighted
    assert graph.weighted_adjacency(("text", "similar", "text"), "X").weight.tolist() == [
        pytest.approx(0.9), pytest.approx(0.8)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no weighted edges .*'interacts'.*apply 'Normalize'"):
        graph.weighted_adjacency(INTERACTS, "Normalize")
    with pytest.raises(ValueError, match="no weighted edges"):
        graph.weighted_adjacency(("item", "similar", "item"), "Fuse")
    data["user", "interacts", "item"].edge_weight = torch.arange(4.0)
    weighted = Graph.from_hetero(data)
    adjacency = weighted.weighted_adjacency(INTERACTS, "Normalize")
    assert adjacency.weight.tolist() == [0.0, 3.0, 1.0, 2.0]  # by item, then by user
    assert torch.equal(adjacency.t().weight, weighted.adjacency[INTERACTED_BY].weight)


def test_other_interactions_stand_in_both_directions(data):
    graph = Graph.from_hetero(data)
    other = Adjacency.from_edge_index(torch.tensor([[3], [4]]), size=(4, 5))
    changed = graph.with_interactions(other)
    assert changed.adjacency[INTERACTS] is other
    assert changed.adjacency[INTERACTED_BY].edge_index.tolist() == [[4], [3]]
    assert (
        changed.adjacency["text", "similar", "text"] is graph.adjacency["text", "similar", "text"]
    )
    assert graph.adjacency[INTERACTS].num_edges == 4


def test_replace_and_move_leave_the_graph_alone(data):
    graph = Graph.from_hetero(data)
    x = {"image": torch.zeros(5, 2)}
    assert graph.replace(x=x).x["image"].eq(0).all() and graph.x["image"].sum() == 36
    moved = graph.to("meta")
    tensors = [leaf for leaf in pytree.tree_leaves(moved) if isinstance(leaf, torch.Tensor)]
    assert len(tensors) == 2 + 8 * 3 and all(x.device.type == "meta" for x in tensors)
    assert moved.num_users == 4 and graph.x["image"].device.type == "cpu"
    with pytest.raises(FrozenInstanceError):
        graph.num_users = 3


@pytest.mark.parametrize("missing", ["user", "item"])
def test_missing_nodes_are_refused(data, missing):
    bare = HeteroData()
    for kind in {"user", "item"} - {missing}:
        bare[kind].num_nodes = 3
    with pytest.raises(ValueError, match=f"nodes of type '{missing}' with 'num_nodes'"):
        Graph.from_hetero(bare)


def test_missing_interactions_are_refused():
    data = HeteroData()
    data["user"].num_nodes = data["item"].num_nodes = 3
    with pytest.raises(ValueError, match=r"needs edges of type \('user', 'interacts', 'item'\)"):
        Graph.from_hetero(data)


def test_ids_out_of_range_are_refused(data):
    data["user", "interacts", "item"].edge_index[1, 0] = 5
    with pytest.raises(ValueError, match="of .*'interacts'.* needs ids of 'item' from 0 to 4"):
        Graph.from_hetero(data)


@pytest.mark.parametrize(
    ("modality", "name", "value", "message"),
    [
        ("image", "x", torch.zeros(4, 2), r"'x' of 'image' needs shape \[5, channels\]"),
        ("image", "x", torch.zeros(5), r"'x' of 'image' needs shape \[5, channels\]"),
        ("image", "mask", torch.ones(5, dtype=torch.uint8), "'mask' of 'image' needs to be bool"),
        ("image", "mask", torch.ones(4, dtype=torch.bool), r"shape \[5\], one value per item"),
    ],
)
def test_features_that_do_not_fit_the_items_are_refused(data, modality, name, value, message):
    data[modality][name] = value
    with pytest.raises(ValueError, match=message):
        Graph.from_hetero(data)


def test_features_that_are_no_numbers_are_refused_where_an_item_has_them(data):
    data["image"].x = torch.arange(10.0).view(5, 2)
    data["image"].x[3, 1] = float("nan")
    data["image"].mask = torch.tensor([True, True, True, False, True])
    assert Graph.from_hetero(data).x["image"][3].tolist() == [0, 0]
    data["image"].mask[3] = True
    with pytest.raises(
        ValueError, match="'x' of 'image' holds NaN or .* in 1 rows, the first of item 3"
    ):
        Graph.from_hetero(data)


def test_weights_of_the_interactions_count_for_both_directions(data):
    interacts = data[INTERACTS]
    data[INTERACTED_BY].edge_index = torch.tensor([[1], [1]])  # not what stands there in the end
    data[INTERACTED_BY].edge_weight = torch.tensor([7.0])
    assert INTERACTED_BY not in Graph.from_hetero(data).weighted
    interacts.edge_weight = torch.arange(1.0, 5.0)
    graph = Graph.from_hetero(data)
    back = graph.weighted_adjacency(INTERACTED_BY, "NormalizeInteractions")
    assert back.edge_index.t().tolist() == [[0, 0], [3, 0], [3, 1], [1, 2]]
    assert back.weight.tolist() == [1, 2, 3, 4]
