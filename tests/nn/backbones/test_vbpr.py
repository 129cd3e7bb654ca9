import pytest
import torch

from pyg_mmrec.nn.backbones import VBPR


@pytest.mark.parametrize("site", ["content", "item"])
def test_equals_the_formula(tiny, sample, site):
    torch.manual_seed(0)
    backbone = VBPR.from_data(tiny, embedding_dim=8, reg_weight=0.1, site=site)
    backbone.projection.bias.data.normal_()
    stages = backbone(backbone.graph(tiny))
    x = torch.cat([tiny["text"].x, tiny["image"].x], dim=1)  # text before image
    content = x @ backbone.projection.weight.t() + backbone.projection.bias
    item = torch.cat([backbone.item_embedding.weight, content], dim=1)
    user = backbone.user_embedding.weight
    torch.testing.assert_close(stages.output["item"], item)
    assert torch.equal(stages.output["user"], user)
    hidden = {"content": {"item/content": content}, "item": {"item/vector": item}}[site]
    torch.testing.assert_close(dict(stages.hidden), hidden)
    assert backbone.sites == {key: x.size(1) for key, x in hidden.items()}

    batch = sample(tiny)
    rows = user[batch.user], item[batch.positive], item[batch.negative]
    difference = (rows[0] * rows[1]).sum(1) - (rows[0] * rows[2]).sum(1)
    loss = backbone.loss(stages, batch)
    torch.testing.assert_close(loss["bpr"], -(difference.sigmoid() + 1e-10).log().mean())
    norms = sum(x.square().sum().sqrt() for x in rows) / 64
    torch.testing.assert_close(loss["regularization"], 0.1 * norms)


def test_columns_of_a_modality_give_its_projection(tiny):
    torch.manual_seed(0)
    backbone = VBPR.from_data(tiny, embedding_dim=8)
    text, image = backbone.projection.weight.split([16, 24], dim=1)
    projected = backbone.project(backbone.graph(tiny))
    assert list(projected) == ["image", "text"]
    torch.testing.assert_close(projected["image"], tiny["image"].x @ image.t())
    torch.testing.assert_close(projected["text"], tiny["text"].x @ text.t())


def test_order_follows_the_modalities_given(make_data):
    data = make_data(image=3, text=4, audio=5)
    assert VBPR.from_data(data).fused == ["text", "image", "audio"]
    backbone = VBPR.from_data(data, modalities=["audio", "image"])
    assert backbone.fused == ["image", "audio"] and backbone.projection.in_features == 8
    assert list(backbone.project(backbone.graph(data))) == ["audio", "image"]
    one = VBPR.from_data(data, modalities=["audio"])
    torch.testing.assert_close(
        one(one.graph(data)).hidden["item/content"], one.projection(data["audio"].x)
    )


def test_an_item_without_a_modality_has_no_projection_of_it(make_data):
    mask = torch.arange(20) % 4 > 0
    data = make_data(masks={"text": mask}, image=3, text=4)
    data["text"].x = data["text"].x + 1  # what stands in the row of an item without text
    backbone = VBPR.from_data(data)
    projected = backbone.project(backbone.graph(data))
    assert projected["text"][~mask].eq(0).all() and projected["text"][mask].ne(0).any(1).all()
    assert projected["image"].ne(0).any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "user"}, r"'site' needs to be one of \['content', 'item'\] \(got 'user'\)"),
        ({"modalities": ["image", "audio"]}, r"names 'audio', but the data have \['image', 'text'"),
        ({"modalities": []}, r"'modalities' needs one or more different names \(got \[\]\)"),
        ({"modalities": ["text", "text"]}, r"one or more different names \(got \['text', 'text'"),
        ({"reg_weight": -1}, "'reg_weight' needs to be a number of 0 or more"),
        ({"embedding_dim": 0}, "'embedding_dim' needs to be a positive integer"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        VBPR.from_data(tiny, **options)


def test_data_without_features_are_refused(make_data, tiny):
    with pytest.raises(ValueError, match="VBPR reads modalities, but the data have none"):
        VBPR.from_data(make_data())
    data = make_data(image=3)
    data["text"].num_nodes = 20
    data["text", "similar", "text"].edge_index = torch.tensor([[1], [0]])
    with pytest.raises(ValueError, match=r"reads the features of \['text'\], which the data lack"):
        VBPR.from_data(data)
    backbone = VBPR.from_data(make_data(image=3))
    with pytest.raises(ValueError, match=r"features of modality 'image', .* \(they have .*no mod"):
        backbone(backbone.graph(make_data()))
