from dataclasses import FrozenInstanceError

import pytest
import torch
from torch.utils import _pytree as pytree

from pyg_mmrec.nn.backbones import (
    BM3,
    BPRMF,
    FREEDOM,
    GRCN,
    LATTICE,
    MMGCN,
    VBPR,
    VLATTICE,
    GatheredTriplets,
    SomeRows,
    Stages,
    Triplets,
    VLightGCN,
)
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, add_delta, node_type

READ_CONTENT = {
    "BM3": (BM3, {}),
    "FREEDOM": (FREEDOM, {}),
    "FREEDOM-unread": (FREEDOM, {"reg_weight": 0}),
    "GRCN": (GRCN, {}),
    "LATTICE": (LATTICE, {}),
    "MMGCN": (MMGCN, {"projected": {"image": 7}}),
    "VBPR": (VBPR, {}),
    "VLATTICE": (VLATTICE, {}),
    "VLightGCN": (VLightGCN, {}),
}


@pytest.fixture
def ids():
    return torch.tensor([2, 0]), torch.tensor([1, 1]), torch.tensor([3, 0])


def test_keys_name_their_rows():
    assert node_type("user") == "user" and node_type("item/layer_1/x") == "item"
    for key in ("items", "image", "", "image/item"):
        with pytest.raises(ValueError, match="named for its rows, 'user' or 'item'"):
            node_type(key)


def test_triplets_read_rows_of_users_or_of_positive_then_negative_items(ids):
    x = torch.arange(8.0).view(4, 2)
    batch = Triplets(*ids)
    assert batch.at("user/embedding", x)[:, 0].tolist() == [4, 0]
    assert batch.at("item", x)[:, 0].tolist() == [2, 2, 6, 0]
    assert batch.at("item/mask", x[:, 0])[0].item() == 2  # vectors too
    with pytest.raises(ValueError, match="named for its rows"):
        batch.at("image", x)
    gathered = GatheredTriplets.of(batch)
    rows = {key: batch.rows.at(key, x) for key in ("user", "item")}
    assert rows["item"][:, 0].tolist() == [0, 2, 6]
    assert gathered.at("user", rows["user"])[:, 0].tolist() == [4, 0]
    assert gathered.at("item", rows["item"])[:, 0].tolist() == [2, 2, 6, 0]
    scalar = torch.tensor(5.0)
    assert gathered.at("loss", scalar) is scalar and batch.at("loss", scalar) is scalar


def test_some_rows_are_those_of_the_ids():
    x = torch.arange(8.0).view(4, 2)
    rows = SomeRows(torch.tensor([3, 3]), torch.tensor([2, 0, 1]))
    assert rows.at("user/content", x)[:, 0].tolist() == [6, 6]
    assert rows.at("item", x)[:, 0].tolist() == [4, 0, 2]
    assert rows.at("item/mask/text", x[:, 1] > 2).tolist() == [True, False, True]
    scalar = torch.tensor(5.0)
    assert rows.at("loss", scalar) is scalar
    with pytest.raises(ValueError, match="named for its rows"):
        rows.at("image", x)


def test_functions_of_rows_are_computed_on_the_rows_wanted():
    x = torch.randn(4, 2)
    ids = torch.tensor([2, 0]), torch.tensor([1, 1]), torch.tensor([3, 0])
    sizes = []

    def doubled(x, y):
        sizes.append(x.size(0))
        return 2 * x + y

    assert torch.equal(EVERY_ROW.map("item", doubled, x, x), 3 * x)
    rows = SomeRows(ids[0], torch.tensor([1, 1, 2, 3, 0]))  # more than there are
    assert torch.equal(rows.map("item", doubled, x, x), 3 * x[rows.item])
    assert torch.equal(rows.map("user", doubled, x, x), 3 * x[rows.user])
    batch = Triplets(*ids)
    assert torch.equal(batch.map("user", doubled, x, x), 3 * x[ids[0]])
    assert torch.equal(batch.map("item", doubled, x, x), 3 * x[[1, 1, 3, 0]])
    gathered, y = GatheredTriplets.of(batch), x[[0, 1, 3]]
    assert torch.equal(gathered.map("item", doubled, y, y), 3 * x[[1, 1, 3, 0]])
    users = torch.tensor([2, 0, 2, 3, 1])
    assert torch.equal(Triplets(users, *ids[1:]).map("user", doubled, x, x), 3 * x[users])
    assert sizes == [4, 5, 2, 2, 3, 3, 4]  # each item once; the table, where users are more


def test_the_items_of_a_batch_each_once():
    user = torch.zeros(5, dtype=torch.long)
    positive, negative = torch.tensor([7, 2, 7, 9, 2]), torch.tensor([2, 4, 4, 0, 3])
    table = torch.randn(11, 3)
    for batch in (Triplets(user, positive, negative), Triplets(user, negative, positive)):
        assert batch.items.tolist() == batch.rows.item.tolist() == [0, 2, 3, 4, 7, 9]
        assert torch.equal(batch.items[batch.places], torch.cat([batch.positive, batch.negative]))
        wanted = table[[0, 2, 3, 4, 7, 9]]
        assert torch.equal(table[batch.item_rows], wanted)
        gathered = GatheredTriplets.of(batch)
        assert gathered.items is batch.items and gathered.places is batch.places
        assert torch.equal(batch.rows.at("item", table)[gathered.item_rows], wanted)
    one = torch.tensor([3])
    assert Triplets(one, one, one).items.tolist() == [3]
    assert GatheredTriplets(one, one, one).item_rows.numel() == 1


@pytest.mark.parametrize("size", [3, 90, 200])
def test_rows_of_a_sampled_batch_agree_gathered_or_not(size, tiny, sample):
    batch, table = sample(tiny, size), torch.randn(120, 2)
    gathered = GatheredTriplets.of(batch)
    for key in ("user", "item"):
        found = gathered.at(key, batch.rows.at(key, table))
        assert torch.equal(found, batch.at(key, table))
    expected = sorted({*batch.positive.tolist(), *batch.negative.tolist()})
    assert batch.items.tolist() == expected


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("name", READ_CONTENT)
def test_content_of_some_items_is_that_of_all(name, lacking, make_data):
    cls, options = READ_CONTENT[name]
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask} if lacking else None, image=6, text=5)
    torch.manual_seed(0)
    backbone = cls.from_data(data, embedding_dim=8, **options)
    for layer in backbone.projection.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.bias)
    graph = backbone.graph(data)
    every = backbone.content(graph)
    assert list(every) == ["image", "text"]
    widths = {m: z.size(1) for m, z in every.items() if m in backbone.content_channels}
    assert backbone.content_channels == widths
    assert set(widths) == ({"image"} if name == "MMGCN" else {"image", "text"})
    assert all(z.shape[0] == 20 and z.abs().max() > 0 for z in every.values())
    if lacking:
        assert every["text"][~mask].eq(0).all() and every["text"][mask].ne(0).any(1).all()
    user = torch.tensor([0])
    for items in ([4], [3, 11, 3, 0], list(range(20)) + [5, 5], []):
        rows = SomeRows(user, torch.tensor(items, dtype=torch.long))
        for modality, z in backbone.content(graph, rows).items():
            torch.testing.assert_close(z, every[modality][rows.item])


@pytest.mark.parametrize("name", READ_CONTENT)
def test_content_parameters_are_what_content_depends_on(name, tiny):
    cls, options = READ_CONTENT[name]
    backbone = cls.from_data(tiny, embedding_dim=8, **options)
    z = backbone.content(backbone.graph(tiny))
    sum(x.square().sum() for x in z.values() if x.requires_grad).backward()
    reached = {n for n, x in backbone.named_parameters() if x.grad is not None}
    if name == "VBPR":  # the bias of all modalities together is in none of them
        reached.add("projection.bias")
    declared = [id(x) for x in backbone.content_parameters()]
    assert {n for n, x in backbone.named_parameters() if id(x) in declared} == reached


@pytest.mark.parametrize("cls", [VBPR, VLATTICE, VLightGCN])
def test_multimedia_vectors_of_users_and_items_are_of_one_width(cls, tiny):
    torch.manual_seed(0)
    backbone = cls.from_data(tiny, embedding_dim=8)
    graph = backbone.graph(tiny)
    user, item = backbone.content_vectors(graph)
    width = 8 if cls is VBPR else 16
    assert user.shape == (120, width) and item.shape == (90, width)
    rows = SomeRows(torch.tensor([5, 5, 119]), torch.tensor([89, 2]))
    some_users, some_items = backbone.content_vectors(graph, rows)
    torch.testing.assert_close(some_users, user[rows.user])
    torch.testing.assert_close(some_items, item[rows.item])
    user.square().sum().backward()
    reached = [x for x in backbone.parameters() if x.grad is not None]
    assert [id(x) for x in reached] == [id(x) for x in backbone.user_content_parameters()]


@pytest.mark.parametrize("cls", [BPRMF, FREEDOM, LATTICE, VBPR, VLATTICE])
def test_declared_facts_hold(cls, tiny):
    backbone = cls.from_data(tiny, embedding_dim=8)
    graph = backbone.graph(tiny)
    if cls.has_item_graph:
        similar = backbone.item_graph(graph)
        assert similar.size == (90, 90) and similar.weight.isfinite().all()
        given = graph.replace(adjacency={**graph.adjacency, ("item", "similar", "item"): similar})
        assert backbone.item_graph(given) is similar
        stages = [backbone(one).output["item"] for one in (graph, given)]
        torch.testing.assert_close(*stages)
    else:
        with pytest.raises(NotImplementedError, match=f"{cls.__name__} has no item-item graph"):
            backbone.item_graph(graph)
    if not cls.has_user_content:
        with pytest.raises(NotImplementedError, match="has no multimedia vectors of users"):
            backbone.content_vectors(graph)
        assert list(backbone.user_content_parameters()) == []
    if cls is BPRMF:
        assert backbone.content(graph) == {} == backbone.content_channels


def test_a_delta_is_added_where_there_is_one():
    x = torch.ones(2, 3)
    assert add_delta(x, None, "item") is x and add_delta(x, {"user": x}, "item") is x
    assert add_delta(x, {"item": x}, "item").eq(2).all() and x.eq(1).all()


def test_some_rows_are_a_tree_of_tensors():
    rows = pytree.tree_map(lambda x: x + 1, SomeRows(torch.tensor([0]), torch.tensor([1, 2])))
    assert type(rows) is SomeRows and rows.item.tolist() == [2, 3] and rows.user.tolist() == [1]


@pytest.mark.parametrize("kind", [Triplets, GatheredTriplets])
def test_batches_and_stages_are_trees_of_tensors(kind, ids):
    batch = pytree.tree_map(lambda x: x + 1, kind(*ids))
    assert type(batch) is kind and batch.user.tolist() == [3, 1]
    stages = Stages({}, {"item": torch.ones(1)}, {}, {}, {})
    assert pytree.tree_map(lambda x: x + 1, stages).hidden["item"].item() == 2
    with pytest.raises(FrozenInstanceError):
        batch.user = ids[0]


def test_a_batch_knows_both_its_items_and_their_places_or_neither(ids):
    batch = Triplets(*ids)
    same = Triplets(*ids, items=batch.items, places=batch.places)
    assert same.items is batch.items and same.places is batch.places
    with pytest.raises(ValueError, match="'items' and 'places' go together"):
        Triplets(*ids, items=batch.items)
    assert pytree.tree_map(lambda x: None, batch).items is None


def test_a_backbone_takes_the_rows_of_a_batch_not_the_batch(tiny, sample):
    backbone, batch = VBPR.from_data(tiny, embedding_dim=8), sample(tiny)
    with pytest.raises(ValueError, match="needs the rows of a batch, 'batch.rows'"):
        backbone(backbone.graph(tiny), batch)
