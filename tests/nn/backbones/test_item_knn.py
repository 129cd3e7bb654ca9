import pytest
import torch

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import ItemKNN
from pyg_mmrec.retrieval import top_k


def slow_scores(edge_index, num_users, num_items, k):
    users_of = [set() for _ in range(num_items)]
    items_of = [set() for _ in range(num_users)]
    for user, item in edge_index.t().tolist():
        users_of[item].add(user)
        items_of[user].add(item)

    def cosine(i, j):
        common = len(users_of[i] & users_of[j])
        return common / (len(users_of[i]) * len(users_of[j])) ** 0.5 if common else 0.0

    scores, clear = torch.zeros(num_users, num_items), []
    for i in range(num_items):
        similar = sorted(((cosine(i, j), -j) for j in range(num_items) if j != i), reverse=True)
        # A tie between the last neighbour and the next leaves the choice open.
        if k >= len(similar) or similar[k - 1][0] != similar[k][0] or similar[k][0] == 0:
            clear.append(i)
        for value, j in similar[:k]:
            for user in range(num_users):
                scores[user, i] += value * (-j in items_of[user])
    return scores.masked_fill(scores == 0, -torch.inf), clear


@pytest.mark.parametrize("k", [3, 19, 100])
def test_equals_slow_reference(make_data, k):
    data = make_data(num_users=60)
    edge_index = data["user", "interacts", "item"].edge_index
    expected, clear = slow_scores(edge_index, 60, 20, k)
    assert len(clear) >= 12
    backbone = ItemKNN.from_data(data, k=k)
    graph = backbone.graph(data)
    users = torch.tensor([4, 0, 59, 4])
    scores = backbone.scores(backbone(graph), graph, users)
    torch.testing.assert_close(scores[:, clear], expected[users][:, clear])


def test_a_user_or_item_without_interactions_is_no_candidate(make_data):
    data = make_data()
    user, item = data["user", "interacts", "item"].edge_index
    kept = (user != 3) & (item != 7)
    data["user", "interacts", "item"].edge_index = torch.stack([user, item])[:, kept]
    backbone = ItemKNN.from_data(data)
    graph = backbone.graph(data)
    scores = backbone.scores(backbone(graph), graph, torch.arange(12))
    assert scores[3].isneginf().all() and scores[:, 7].isneginf().all() and scores.max() > 0


def test_the_order_of_ids_does_not_rank(make_data):
    # Nobody has interacted with an item of these beside another: nothing speaks for any.
    data = make_data()
    data["user", "interacts", "item"].edge_index = torch.arange(12).expand(2, 12).contiguous()
    backbone = ItemKNN.from_data(data)
    graph = backbone.graph(data)
    _, items = top_k(
        lambda users: backbone.scores(backbone(graph), graph, users), torch.arange(12), 5
    )
    assert items.eq(-1).all()


def test_vectors_are_refused_and_so_is_a_graph_without_similarities(make_data):
    data = make_data()
    backbone = ItemKNN.from_data(data)
    graph = backbone.graph(data)
    with pytest.raises(ValueError, match="no user and item vectors; use 'scores'"):
        backbone.vectors(backbone(graph))
    with pytest.raises(ValueError, match="apply 'ItemCosineGraph'"):
        backbone.scores(backbone(graph), Graph.from_hetero(data), torch.arange(2))
    with pytest.raises(ValueError, match=r"'k' needs to be a positive integer \(got 0\)"):
        ItemKNN.from_data(data, k=0)
