import math

import pytest
import torch

from pyg_mmrec.nn.backbones import (
    BPRMF,
    FREEDOM,
    LATTICE,
    VBPR,
    VLATTICE,
    SomeRows,
    Triplets,
    VLightGCN,
)
from pyg_mmrec.nn.objectives import FIB, DVIBa, Objective, SecondStage
from pyg_mmrec.training import Trainer, TrainingOptions

BACKBONES = {"VBPR": VBPR, "VLightGCN": VLightGCN, "VLATTICE": VLATTICE}
OWN = {
    "VBPR": {"user_embedding.weight", "projection.weight", "projection.bias"},
    "VLightGCN": {
        "user_content.weight", "projection.image.weight", "projection.image.bias",
        "projection.text.weight", "projection.text.bias",
    },
}  # fmt: skip
OWN["VLATTICE"] = OWN["VLightGCN"]


def build(name, data, *methods, seed=0, **options):
    torch.manual_seed(seed)
    backbone = BACKBONES[name].from_data(data, embedding_dim=8, **options)
    objective = Objective(backbone, *methods)
    return objective, backbone.graph(data)


def multimedia_vectors(backbone, graph):
    """c and z of every user and item, written down for each backbone."""
    if isinstance(backbone, VBPR):
        x = torch.cat([graph.x["text"], graph.x["image"]], 1)
        return backbone.user_embedding.weight[:, 8:], backbone.projection(x)
    z = [backbone.projection[name](graph.x[name]) for name in ("image", "text")]
    return backbone.user_content.weight, torch.cat(z, 1)


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def by_loops(user, item, batch, temperature):
    """Eq. 20 over the batch's interactions, with its positive items, each once."""
    c, z, total = user.tolist(), item.tolist(), 0.0
    positives = set(batch.positive.tolist())
    for a, i in zip(batch.user.tolist(), batch.positive.tolist(), strict=True):
        below = sum(math.exp(cosine(c[a], z[j]) / temperature) for j in positives)
        total -= math.log(math.exp(cosine(c[a], z[i]) / temperature) / below)
    return total / batch.user.numel()


def copied(module):
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("temperature", [0.2, 1.5])
@pytest.mark.parametrize("name", BACKBONES)
def test_is_the_contrast_of_users_and_their_items(name, temperature, tiny, sample):
    objective, graph = build(name, tiny, SecondStage(temperature))
    batch = sample(tiny, 40)
    assert batch.positive.unique().numel() < 40  # some items stand there twice
    terms = objective.second_stage(graph, batch)
    assert list(terms) == ["second_stage/contrast"]
    vectors = multimedia_vectors(objective.backbone, graph)
    expected = by_loops(*vectors, batch, temperature)
    assert terms["second_stage/contrast"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_missing_modality_adds_nothing_to_an_items_vector(name, make_data):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask}, image=6, text=5)
    objective, graph = build(name, data, SecondStage())
    for layer in objective.backbone.projection.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.bias)
    users = torch.tensor([0, 1, 2, 3])
    batch = Triplets(users, torch.tensor([0, 3, 4, 3]), users)  # 0 and 3 lack text
    user, item = multimedia_vectors(objective.backbone, graph)
    if name != "VBPR":  # whose features are 0 there and whose bias is that of all modalities
        item = torch.cat([item[:, :8], item[:, 8:] * mask[:, None]], 1)
    found = objective.second_stage(graph, batch)["second_stage/contrast"].item()
    assert found == pytest.approx(by_loops(user, item, batch, 0.2), rel=1e-5)


def test_one_positive_item_is_no_contrast(tiny):
    objective, graph = build("VBPR", tiny, SecondStage())
    batch = Triplets(torch.tensor([0, 1]), torch.tensor([5, 5]), torch.tensor([1, 2]))
    assert objective.second_stage(graph, batch)["second_stage/contrast"].item() == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_trains_the_users_multimedia_vectors_and_the_projections(name, tiny):
    objective, _ = build(name, tiny, SecondStage(), train_features=True)
    parameters = dict(objective.backbone.named_parameters())
    found = objective.second_parameters()
    assert {n for n, x in parameters.items() if any(x is y for y in found)} == OWN[name]
    assert len(found) == len(OWN[name])
    assert Objective(objective.backbone, FIB()).second_parameters() == []


@pytest.mark.parametrize("name", BACKBONES)
def test_several_steps_leave_all_else_bit_identical(name, tiny, sample):
    objective, graph = build(name, tiny, SecondStage(), train_features=True)
    backbone, before = objective.backbone, copied(objective.backbone)
    adam = torch.optim.Adam(objective.second_parameters(), lr=0.01)
    losses = []
    for seed in range(4):
        (loss,) = objective.second_stage(graph, sample(tiny, 200, seed)).values()
        loss.backward()
        adam.step()
        objective.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = copied(backbone)
    if name == "VBPR":  # of one table, the half that meets the IDs stays
        for state in (before, after):
            table = state.pop("user_embedding.weight")
            state["user_embedding.weight"], state["id half"] = table[:, 8:], table[:, :8]
    changed = {key for key, x in after.items() if not torch.equal(x, before[key])}
    assert changed == OWN[name]
    half = after["user_embedding.weight" if name == "VBPR" else "user_content.weight"]
    moved = half != before["user_embedding.weight" if name == "VBPR" else "user_content.weight"]
    users = torch.cat([sample(tiny, 200, seed).user for seed in range(4)]).unique()
    assert moved[users].any(1).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_first_stage_is_as_without_it(name, tiny, sample):
    batch, terms, gradients = sample(tiny), [], []
    for methods in ([DVIBa()], [DVIBa(), SecondStage()]):
        objective, graph = build(name, tiny, *methods)
        torch.manual_seed(3)
        terms.append(objective(graph, batch))
        sum(terms[-1].values()).backward()
        gradients.append({key: x.grad for key, x in objective.named_parameters()})
    assert list(terms[0]) == list(terms[1])
    for one, other in (terms, gradients):
        assert all(torch.equal(x, other[key]) for key, x in one.items())
    assert Objective(objective.backbone).second_stage(graph, batch) == {}


@pytest.mark.parametrize("cls", [BPRMF, FREEDOM, LATTICE])
def test_backbones_whose_users_have_no_multimedia_vectors_are_refused(cls, tiny):
    backbone = cls.from_data(tiny, embedding_dim=8)
    with pytest.raises(ValueError) as error:
        Objective(backbone, SecondStage())
    assert str(error.value) == (
        f"the second stage contrasts the multimedia vectors of users and items, and users of "
        f"{cls.__name__} have none (its 'has_user_content' is false); those of VBPR, VLATTICE, "
        f"VLightGCN have some"
    )
    rows = SomeRows(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(NotImplementedError, match=f"{cls.__name__} has no multimedia vectors"):
        backbone.content_vectors(backbone.graph(tiny), rows)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match=r"'temperature' needs to be positive \(got -?\d.0\)"):
        SecondStage(temperature)


# In training -------------------------------------------------------------------------------------


def train(objective, data, epochs, batch_size, folder=None, resume=False):
    options = TrainingOptions(
        learning_rate=0.01, batch_size=batch_size, epochs=epochs, checkpoint_epochs=1
    )
    trainer = Trainer(objective, data, options, folder, progress=False)
    trainer.fit(resume)
    return trainer


@pytest.mark.parametrize("name", BACKBONES)
def test_the_trainer_takes_both_steps_on_each_batch(name, tiny):
    objective, graph = build(name, tiny, FIB(), SecondStage())
    options = TrainingOptions(learning_rate=0.01, batch_size=500, epochs=1)
    trainer = Trainer(objective, tiny, options, progress=False)
    generator = torch.Generator()
    generator.set_state(trainer.generators["sampler"].get_state())
    batches = list(trainer.sampler.epoch(500, generator))
    trainer.fit()

    other, graph = build(name, tiny, FIB(), SecondStage())
    first = torch.optim.Adam(other.parameters(), lr=0.01, fused=True)
    own = [dict(other.backbone.named_parameters())[key] for key in OWN[name]]
    second = torch.optim.Adam(own, lr=0.01, fused=True)
    losses = []
    for batch in batches:
        terms = other(graph, batch)
        torch.stack(list(terms.values())).sum().backward()
        first.step()
        other.zero_grad()
        contrast = other.second_stage(graph, batch)
        contrast["second_stage/contrast"].backward()
        second.step()
        other.zero_grad()
        losses.append([x.item() for x in (*terms.values(), *contrast.values())])
    assert len(losses) >= 3
    for key, x in objective.state_dict().items():
        assert torch.equal(x, other.state_dict()[key]), key
    record = trainer.history.epochs[0]["loss"]
    assert list(record) == [*terms, "second_stage/contrast"]
    assert list(record.values()) == torch.tensor(losses).double().mean(0).tolist()


def test_a_run_with_two_optimisers_resumes_bit_identical(tiny, tmp_path):
    whole = train(build("VBPR", tiny, SecondStage())[0], tiny, 4, 600)
    train(build("VBPR", tiny, SecondStage())[0], tiny, 2, 600, tmp_path)
    again = build("VBPR", tiny, SecondStage(), seed=9)[0]
    resumed = train(again, tiny, 4, 600, tmp_path, resume=True)
    assert list(resumed.optimizers) == ["adam", "second_adam"]
    for name, optimizer in whole.optimizers.items():
        slots, others = (o.state_dict()["state"] for o in (optimizer, resumed.optimizers[name]))
        assert slots.keys() == others.keys() and len(slots) >= 3
        for index, slot in slots.items():
            for key, x in slot.items():
                assert torch.equal(x, others[index][key]), (name, index, key)
    for key, x in whole.objective.state_dict().items():
        assert torch.equal(x, resumed.objective.state_dict()[key]), key
    losses = [[epoch["loss"] for epoch in t.history.epochs] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
