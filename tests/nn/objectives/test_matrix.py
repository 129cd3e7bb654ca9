"""Every backbone with every training method: what has to hold for all of them."""

import pytest
import torch
from torch.utils import _pytree as pytree
from torch_geometric import seed_everything

from pyg_mmrec.experiment import BACKBONES, METHODS
from pyg_mmrec.nn.objectives import FIB, Objective, ibmrec
from pyg_mmrec.training import Trainer, TrainingOptions

TRAINED = sorted(set(BACKBONES) - {"MostPop", "ItemKNN"})
OPTIONS = {"MMGCN": {"projected": {"image": 12}}}
# What the loss does not depend on, though it reads it: of both items of a pair, the bias cancels.
WITHOUT_EFFECT = {"FREEDOM": {"projection.image.bias", "projection.text.bias"}}
READ_CONTENT = {"BM3", "FREEDOM", "GRCN", "LATTICE", "MMGCN", "VBPR", "VLATTICE", "VLightGCN"}
# Which backbones have what a method needs; the others are for all.
TAKEN_BY = {
    "amr": READ_CONTENT - {"LATTICE"},  # whose loss reads only the graph learned from features
    "fib": READ_CONTENT,
    "gib": {"FREEDOM", "LATTICE", "VLATTICE"},
    "second-stage": {"VBPR", "VLATTICE", "VLightGCN"},
}
COMBINED = [
    ("VBPR", "ibmrec"), ("LATTICE", "ibmrec"), ("VLATTICE", "ibmrec"), ("VBPR", "amr+dvib-a"),
    ("VBPR", "amr+dvib-c"), ("MMGCN", "mg+dvib-a"), ("MMGCN", "mg+dvib-c"), ("VBPR", "ibmrec+amr"),
    ("VBPR", "ibmrec+mg"), ("VLightGCN", "fib+second-stage"), ("VLATTICE", "ibmrec+amr+dvib-a+mg"),
    ("LATTICE", "ibmrec+mg"), ("LATTICE", "ibmrec+dvib-a"), ("FREEDOM", "gib+dvib-c"),
]  # fmt: skip
EVERY_PAIR = [
    pytest.param(model, method, id=f"{model}-{method}")
    for model, method in [
        *(
            (m, name)
            for m in TRAINED
            for name in ["none", *METHODS]
            if m in TAKEN_BY.get(name, [m])
        ),
        *COMBINED,
    ]
]
# Mirror gradients change the steps, and no term: alone they are as no method where none is made.
EVERY_LOSS = [pair for pair in EVERY_PAIR if pair.values[1] != "mg"]


def build(model, method, data, seed=0):
    seed_everything(seed)
    options = {"embedding_dim": 8, **OPTIONS.get(model, {})}
    backbone = BACKBONES[model].from_data(data, **options)
    methods = []
    for name in [] if method == "none" else method.split("+"):
        raw = (name, model) == ("fib", "MMGCN")  # of text, which FIB does not take
        one = FIB(modalities=["image"]) if raw else METHODS[name]() if name in METHODS else None
        methods += ibmrec(backbone) if one is None else [one]
    return Objective(backbone, *methods)


def training_graph(objective, graph):
    generator = torch.Generator().manual_seed(0)
    return objective.backbone.sample_graph(graph, 0, generator)


def total(objective, graph, batch):
    terms = {**objective(graph, batch), **objective.second_stage(graph, batch)}
    return torch.stack(list(terms.values())).sum()


def gradients(objective, full, batch, function=total):
    """The loss and every parameter's gradient, with the graph and the noise of a fixed seed."""
    objective.zero_grad()
    graph = training_graph(objective, full)  # outside of what is compiled, as in training
    torch.manual_seed(1)
    loss = function(objective, graph, batch)
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in objective.named_parameters()}


def copied(module):
    return {key: x.clone() for key, x in module.state_dict().items()}


def fit(objective, data, epochs, folder=None, seed=0, resume=False):
    options = TrainingOptions(
        learning_rate=0.01, batch_size=512, epochs=epochs, seed=seed, checkpoint_epochs=1
    )
    trainer = Trainer(objective, data, options, folder, progress=False)
    trainer.fit(resume)
    return trainer


@pytest.mark.parametrize(("model", "method"), EVERY_PAIR)
def test_training_lowers_the_loss(model, method, tiny, sample):
    objective = build(model, method, tiny)
    full, batch = objective.backbone.graph(tiny), sample(tiny, 256)
    parameters = list(objective.parameters()), objective.second_parameters()
    optimizers = [torch.optim.Adam(x, lr=0.05) if x else None for x in parameters]

    def step(terms, optimizer, scale=1.0):
        objective.zero_grad()
        loss = torch.stack(list(terms.values())).sum()
        (scale * loss).backward()
        optimizer.step()
        return loss.item()

    losses = []
    for i in range(20):
        torch.manual_seed(0)  # the same noise: what falls is the loss
        values = []
        for scale in objective.gradient_scales(i):
            graph = training_graph(objective, full)
            values.append(step(objective(graph, batch), optimizers[0], scale))
        losses.append(values[0])
        if optimizers[1] is not None:
            losses[-1] += step(objective.second_stage(graph, batch), optimizers[1])
        assert len(values) == (2 if "mg" in method and i % 3 == 0 else 1)
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])


@pytest.mark.parametrize(("model", "method"), EVERY_LOSS)
def test_a_step_stays_on_its_device_and_never_waits_for_it(model, method, tiny, sample):
    objective = build(model, method, tiny)
    backbone = objective.backbone
    graph = training_graph(objective, backbone.graph(tiny)).detach().to("meta")
    objective.to("meta")  # refuses tensors of a CPU beside its own, and has no values to read
    for size in (16, 512):  # the batch's rows, and all of them
        batch = pytree.tree_map(lambda x: x.to("meta"), sample(tiny, size))
        torch.stack(list(objective(graph, batch).values())).sum().backward()
    assert {x.grad.device.type for x in objective.parameters() if x.grad is not None} == {"meta"}
    scores = backbone.eval().scores(backbone(graph), graph, batch.user)
    assert scores.shape == (512, backbone.num_items) and scores.is_meta


@pytest.mark.parametrize(("model", "method"), EVERY_LOSS)
def test_every_parameter_gets_a_gradient(model, method, tiny, sample):
    objective = build(model, method, tiny)
    graph = training_graph(objective, objective.backbone.graph(tiny))
    total(objective, graph, sample(tiny)).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    narrowed = {"fib", "gib"} & set(method.split("+"))  # they read projections, bias and all
    for part, left_out in (
        (objective.backbone, set() if narrowed else WITHOUT_EFFECT.get(model, set())),
        (objective.methods, set()),
    ):
        size = {name: x.grad.abs().max() for name, x in part.named_parameters()}
        assert {name for name, x in size.items() if x < 1e-6 * max(size.values())} == left_out


TABLES = {"user_embedding.weight", "item_embedding.weight"}
PROJECTIONS = {f"projection.{m}.{part}" for m in ("image", "text") for part in ("weight", "bias")}
FEATURES = {"features.image", "features.text"}
LEFT_OUT = [
    ("MMGCN", {"preset": "mmrec"}, {*TABLES, "preference.image", "preference.text"}),
    ("MMGCN", {"train_id_embedding": False}, TABLES),
    ("MMGCN", {"reg_weight": 0}, set()),
    ("GRCN", {"preset": "mmrec"}, set()),
    ("FREEDOM", {"preset": "mmrec"}, set()),
    ("FREEDOM", {"reg_weight": 0}, PROJECTIONS),
    ("FREEDOM", {"preset": "mmrec", "reg_weight": 0}, PROJECTIONS | FEATURES),
    ("BM3", {"preset": "mmrec"}, set()),
    ("BM3", {"preset": "mmrec", "contrastive_weight": 0}, PROJECTIONS | FEATURES),
    ("LATTICE", {"preset": "mmrec"}, set()),
    ("LATTICE", {"original_weight": 0.0}, set()),
]


@pytest.mark.parametrize(("model", "options", "left_out"), LEFT_OUT)
def test_what_a_preset_or_a_zero_weight_leaves_out(model, options, left_out, tiny, sample):
    options = {"embedding_dim": 8, **OPTIONS.get(model, {}), **options}
    objective = Objective(BACKBONES[model].from_data(tiny, **options))
    graph = training_graph(objective, objective.backbone.graph(tiny))
    total(objective, graph, sample(tiny)).backward()
    parameters = objective.backbone.named_parameters()
    assert {name for name, x in parameters if x.grad is None} == left_out


def test_a_learned_graph_is_a_constant_after_the_first_step(tiny, sample):
    objective = build("LATTICE", "none", tiny)
    graph = training_graph(objective, objective.backbone.graph(tiny)).detach()
    total(objective, graph, sample(tiny)).backward()
    without = {name for name, x in objective.backbone.named_parameters() if x.grad is None}
    assert without == PROJECTIONS | {"modality_logits"}


@pytest.mark.parametrize(("model", "method"), EVERY_LOSS)
def test_methods_leave_the_backbone_as_it_is(model, method, tiny, sample):
    bare = build(model, "none", tiny).backbone
    objective = build(model, method, tiny)
    graph = objective.backbone.graph(tiny)
    total(objective, training_graph(objective, graph), sample(tiny)).backward()
    ours, theirs = objective.backbone.state_dict(), bare.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    bare.load_state_dict(ours)
    users = torch.arange(bare.num_users)
    objective.eval(), bare.eval()
    ranked_on = objective.inference_graph(graph)
    scores = objective.backbone.scores(objective.backbone(ranked_on), ranked_on, users)
    assert torch.equal(bare.scores(bare(ranked_on), ranked_on, users), scores)


@pytest.mark.parametrize(("model", "method"), EVERY_PAIR)
def test_runs_repeat_resume_and_depend_on_the_seed(model, method, tiny, tmp_path):
    whole = build(model, method, tiny)
    trainer = fit(whole, tiny, 3)
    fit(build(model, method, tiny), tiny, 1, tmp_path)
    resumed = build(model, method, tiny, seed=5)  # of other weights, which the checkpoint replaces
    again = fit(resumed, tiny, 3, tmp_path, resume=True)
    assert [e["loss"] for e in again.history.epochs] == [e["loss"] for e in trainer.history.epochs]
    other = build(model, method, tiny, seed=1)
    fit(other, tiny, 3, seed=1)
    for key, x in whole.state_dict().items():
        assert torch.equal(x, resumed.state_dict()[key]), key
    assert any(not torch.equal(x, other.state_dict()[key]) for key, x in whole.state_dict().items())
    loaded = build(model, method, tiny, seed=2)
    loaded.load_state_dict(whole.state_dict())
    users = torch.arange(whole.backbone.num_users)
    scores = trainer.scorer()(users)
    assert torch.equal(Trainer(loaded, tiny, progress=False).scorer()(users), scores)


@pytest.mark.parametrize("model", ["BM3", "FREEDOM", "LATTICE", "MMGCN"])
def test_runs_of_the_other_preset_resume_too_but_not_as_this_one(model, tiny, tmp_path):
    def build_other(seed=0, **options):
        seed_everything(seed)
        options = {"embedding_dim": 8, "preset": "mmrec", **OPTIONS.get(model, {}), **options}
        return Objective(BACKBONES[model].from_data(tiny, **options))

    whole = fit(build_other(), tiny, 4)
    fit(build_other(), tiny, 2, tmp_path)
    resumed = fit(build_other(seed=5), tiny, 4, tmp_path, resume=True)
    assert resumed.history.epochs[-1]["loss"] == whole.history.epochs[-1]["loss"]
    for key, x in whole.objective.state_dict().items():
        assert torch.equal(x, resumed.objective.state_dict()[key]), key
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(build_other(preset="paper"), tiny, 4, tmp_path, resume=True)


@pytest.mark.parametrize(
    "model", sorted(set(TRAINED) - {"BPRMF", "LayerGCN", "LightGCN", "SelfCF"})
)
def test_what_stands_in_the_row_of_an_item_without_the_modality_does_not_matter(
    model, make_data, sample
):
    mask = torch.arange(20) % 3 > 0
    data = make_data(masks={"text": mask}, image=6, text=5)
    other = make_data(masks={"text": mask}, image=6, text=5)
    other["text"].x = other["text"].x.masked_fill(~mask[:, None], torch.nan)
    terms, rows = [], []
    for one in (data, other):
        objective = build(model, "dvib-a", one)
        graph = training_graph(objective, objective.backbone.graph(one))
        torch.manual_seed(0)
        loss = total(objective, graph, sample(data, 16))
        loss.backward()
        assert all(x.grad.isfinite().all() for x in objective.parameters())
        terms.append(loss)
        rows.append(objective.backbone.project(objective.backbone.graph(one))["text"])
    assert torch.equal(*terms) and torch.equal(*rows)
    if model != "VBPR":  # its bias is that of all modalities together
        assert rows[0][~mask].eq(0).all()


@pytest.mark.parametrize(("model", "method"), EVERY_PAIR)
def test_ranking_does_not_depend_on_the_batch(model, method, tiny):
    trainer = fit(build(model, method, tiny), tiny, 1)
    scorer, users = trainer.scorer(), torch.arange(trainer.backbone.num_users)
    order = torch.randperm(users.numel(), generator=torch.Generator().manual_seed(1))
    scores = scorer(users)
    torch.testing.assert_close(scorer(users[order]), scores[order])
    alone = torch.cat([scorer(user) for user in users.split(1)])
    torch.testing.assert_close(alone, scores)
    assert torch.equal(alone.argmax(1), scores.argmax(1))


@pytest.mark.parametrize(("model", "method"), EVERY_PAIR)
def test_relabelled_items_give_relabelled_rankings(model, method, tiny, relabelled):
    num_items = tiny["item"].num_nodes
    order = torch.randperm(num_items, generator=torch.Generator().manual_seed(3))
    one, data = fit(build(model, method, tiny), tiny, 1), relabelled(tiny, order)
    objective = build(model, method, data)
    state = copied(one.objective)
    for key, x in state.items():  # no other size is that of the items
        if x.dim() > 0 and x.size(0) == num_items:
            state[key] = x[order]
    objective.load_state_dict(state)
    users = torch.arange(one.backbone.num_users)
    scores = one.scorer()(users)[:, order]
    objective.eval()
    graph = objective.inference_graph(objective.backbone.graph(data))
    other = objective.backbone.scores(objective.backbone(graph), graph, users)
    torch.testing.assert_close(other, scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))


# Compiling takes seconds: every backbone is compiled with DVIB_a, which holds the bare one and all
# that DVIB_c has; of the other methods and of their combinations, a few pairs show what all do.
FEW = {
    "amr": {"VBPR"}, "dvib-c": {"FREEDOM"}, "fib": {"LATTICE", "MMGCN", "VBPR"},
    "ibmrec+amr+dvib-a+mg": {"VLATTICE"}, "none": {"LightGCN"},
    **dict.fromkeys(["dvib-a", "gib", "second-stage"], TRAINED),
}  # fmt: skip
COMPILED = [pair for pair in EVERY_PAIR if pair.values[0] in FEW.get(pair.values[1], [])]


@pytest.mark.parametrize(("model", "method"), COMPILED)
def test_the_training_step_compiles_without_graph_break(model, method, tiny, sample):
    objective = build(model, method, tiny)
    full, batch = objective.backbone.graph(tiny), sample(tiny)
    torch._dynamo.reset()
    # Not with AMR: within its step it asks autograd for the gradient of the features.
    compiled = torch.compile(total, backend="aot_eager", fullgraph="amr" not in method)
    found = gradients(objective, full, batch, compiled)
    torch.testing.assert_close(found, gradients(objective, full, batch))


def total_in_bfloat16(objective, graph, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return total(objective, graph, batch)


@pytest.mark.parametrize(("model", "method"), EVERY_LOSS)
def test_bfloat16_products_hardly_turn_the_gradient(model, method, tiny, sample):
    objective = build(model, method, tiny)
    full, batch = objective.backbone.graph(tiny), sample(tiny)
    loss, exact = gradients(objective, full, batch)
    reduced_loss, reduced = gradients(objective, full, batch, total_in_bfloat16)
    assert {x.dtype for x in reduced.values()} == {torch.float32}
    torch.testing.assert_close(reduced_loss.float(), loss, rtol=0.01, atol=0)
    both = [torch.cat([x.flatten() for x in each.values()]) for each in (reduced, exact)]
    assert torch.cosine_similarity(*both, 0) > 0.98


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (model, name)
        for model in ("LightGCN", "SelfCF", "VLightGCN", "VLATTICE")
        for name in ["none", *METHODS]
        if name != "mg" and model in TAKEN_BY.get(name, [model])
    ],
)
def test_output_of_the_batch_alone_gives_what_all_rows_give(
    model, method, tiny, sample, monkeypatch
):
    objective = build(model, method, tiny)
    backbone, batch = objective.backbone, sample(tiny, 16)
    graph = backbone.graph(tiny)
    for module in (backbone, *objective.methods):  # no noise or dropout, drawn by position
        for name in ("dropout", "edge_dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
        if method.startswith("dvib"):
            monkeypatch.setattr(module, "perturb", lambda site, h: (0.1 * h.detach(), None), False)

    def run(gathers):
        monkeypatch.setattr(type(backbone), "gathers_output", gathers)
        assert objective._reads_fewer_rows(batch) == gathers
        torch.manual_seed(0)
        objective.zero_grad()
        terms = objective(graph, batch)
        torch.stack(list(terms.values())).sum().backward()
        return terms, {k: p.grad for k, p in objective.named_parameters() if p.grad is not None}

    (terms, gradients), (all_terms, all_gradients) = run(True), run(False)
    torch.testing.assert_close(terms, all_terms)
    assert gradients.keys() == all_gradients.keys()
    for key, x in all_gradients.items():
        scale = float(x.abs().max())
        torch.testing.assert_close(gradients[key], x, rtol=1e-4, atol=1e-5 * scale, msg=key)
