import pytest
import torch

from pyg_mmrec.argument_checks import check_positive, check_weight
from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.nn.backbones import (
    FREEDOM,
    MMGCN,
    VBPR,
    Backbone,
    ContentBackbone,
    LightGCN,
    MostPop,
    Triplets,
)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_counts_need_to_be_positive_integers(value):
    with pytest.raises(ValueError, match=r"'k' needs to be a positive integer \(got"):
        check_positive("k", value)


@pytest.mark.parametrize("value", [-0.1, float("nan"), True, "1", None])
def test_weights_need_to_be_0_or_more(value):
    with pytest.raises(ValueError, match=r"'w' needs to be a number of 0 or more \(got"):
        check_weight("w", value)
    check_weight("w", 0)
    check_weight("w", 1.5)


def test_from_data_reads_sizes_and_takes_options(tiny):
    backbone = LightGCN.from_data(tiny, embedding_dim=5, num_layers=3)
    assert (backbone.num_users, backbone.num_items) == (120, 90)
    assert backbone.item_embedding.weight.shape == (90, 5) and backbone.propagation.num_layers == 3


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LightGCN, "['embedding_dim', 'num_layers', 'reg_weight']"),
        (VBPR, "['embedding_dim', 'modalities', 'reg_weight', 'site', 'train_features']"),
        (
            FREEDOM,
            "['edge_dropout', 'embedding_dim', 'faiss_options', 'k', 'knn_index', 'modalities', "
            "'modality_weights', 'num_item_layers', 'num_layers', 'reg_weight', 'train_features']",
        ),
        (MostPop, "[]"),
    ],
)
def test_an_unknown_option_is_refused_with_the_right_ones(tiny, cls, options):
    for name in ("n_layers", "num_users", "features", "in_channels"):
        with pytest.raises(ValueError) as error:
            cls.from_data(tiny, **{name: 3})
        assert str(error.value) == (
            f"{cls.__name__} has no option '{name}'; its options are {options}"
        )


def test_a_constructor_that_hands_options_on_has_them(tiny):
    class Own(LightGCN):
        def __init__(self, *args, scale=1.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.scale = scale

    backbone = Own.from_data(tiny, num_layers=3, scale=2.0)
    assert (backbone.propagation.num_layers, backbone.scale) == (3, 2.0)
    assert set(Own.options()) == {"scale", "embedding_dim", "num_layers", "reg_weight"}


def test_an_option_without_a_default_needs_a_value(tiny):
    class Own(ContentBackbone):
        fuse = encode = loss = sites = None

        def __init__(self, num_users, num_items, in_channels, width):
            super().__init__(num_users, num_items, in_channels)
            self.width = width

    with pytest.raises(ValueError, match=r"Own needs values for its options \['width'\]"):
        Own.from_data(tiny)
    assert Own.from_data(tiny, width=3).width == 3


@pytest.mark.parametrize("cls", [LightGCN, FREEDOM, MostPop])
def test_data_sets_and_lists_are_no_data(cls, tiny):
    with pytest.raises(ValueError, match=r"of a data set its \[0\] \(got PlantedDataset\)"):
        cls.from_data(PlantedDataset("tiny"))
    with pytest.raises(ValueError, match=r"'data' needs to be a HeteroData.*\(got list\)"):
        cls.from_data([tiny])


def test_an_unknown_preset_is_refused_and_options_win_over_presets(tiny):
    with pytest.raises(ValueError, match=r"'preset' needs to be one of \['mmrec', 'paper'\]"):
        LightGCN.from_data(tiny, preset="original")
    assert FREEDOM.from_data(tiny).features is None
    assert set(FREEDOM.from_data(tiny, preset="mmrec").features) == {"image", "text"}
    assert FREEDOM.from_data(tiny, preset="mmrec", train_features=False).features is None


def test_what_is_not_rowwise_refuses_some_rows(tiny, sample):
    for backbone in (MMGCN.from_data(tiny), FREEDOM.from_data(tiny, num_item_layers=2)):
        with pytest.raises(ValueError, match=f"{type(backbone).__name__} is not rowwise"):
            backbone(backbone.graph(tiny), sample(tiny).rows)


def test_the_base_class_cannot_be_built(tiny):
    with pytest.raises(TypeError, match="abstract"):
        Backbone(3, 3)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3)])
def test_sizes_need_to_be_positive(sizes):
    with pytest.raises(ValueError, match="needs to be a positive integer"):
        LightGCN(*sizes)


def test_the_given_graph_decides(tiny, sample):
    """Nothing of a graph is kept from one call to the next."""
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    graph = backbone.graph(tiny)
    before = backbone(graph).output["user"]
    to_item = graph.adjacency["user", "interacts", "item"]
    other = graph.with_interactions(to_item.with_weight(torch.zeros_like(to_item.weight)))
    alone = backbone(other).output["user"]
    torch.testing.assert_close(alone, backbone.user_embedding.weight / 3)
    assert torch.equal(backbone(graph).output["user"], before)


def test_scores_are_of_the_users_asked_for(tiny):
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    graph = backbone.graph(tiny)
    stages = backbone(graph)
    user, item = backbone.vectors(stages)
    users = torch.tensor([7, 3, 7])
    torch.testing.assert_close(backbone.scores(stages, graph, users), user[users] @ item.t())


def test_repr_names_the_sizes(tiny):
    assert "num_users=120, num_items=90" in repr(LightGCN.from_data(tiny))
    assert "modalities=['image', 'text']" in repr(VBPR.from_data(tiny))


def test_a_batch_is_what_the_loss_reads(tiny):
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    stages = backbone(backbone.graph(tiny))
    ids = torch.tensor([1, 2])
    loss = backbone.loss(stages, Triplets(ids, ids, ids))
    assert loss["bpr"].item() == pytest.approx(0.6931472, rel=1e-6)  # an item against itself


def test_a_subclass_says_again_that_it_gathers_its_output(tiny, sample):
    class Plain(LightGCN):
        pass

    class Again(LightGCN):
        gathers_output = True

    batch = sample(tiny)
    found = [cls.from_data(tiny).gathers_output for cls in (LightGCN, Plain, Again)]
    assert found == [True, False, True]
    with pytest.raises(ValueError, match="Plain is not rowwise"):
        Plain.from_data(tiny)(LightGCN.from_data(tiny).graph(tiny), batch.rows)
