from functools import partial

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS, SIMILAR
from pyg_mmrec.nn.backbones import (
    FREEDOM,
    VBPR,
    VLATTICE,
    GatheredTriplets,
    ItemKNN,
    LightGCN,
    MostPop,
    Stages,
)
from pyg_mmrec.nn.losses import softmax_twice_divergence
from pyg_mmrec.nn.objectives import DVIBa, DVIBc, Objective

# Relative only: a divergence may be far below the usual absolute tolerance.
assert_close = partial(torch.testing.assert_close, rtol=2e-4, atol=0)

BACKBONES = {
    "LightGCN": (LightGCN, {"reg_weight": 0.1}),
    "VBPR": (VBPR, {"reg_weight": 0.1}),
    "VBPR-item": (VBPR, {"reg_weight": 0.1, "site": "item"}),
    "FREEDOM": (FREEDOM, {"reg_weight": 0.1}),
    "FREEDOM-2": (FREEDOM, {"reg_weight": 0.1, "num_item_layers": 2}),
}


@pytest.fixture(params=BACKBONES)
def backbone(request, tiny):
    cls, options = BACKBONES[request.param]
    torch.manual_seed(0)
    return cls.from_data(tiny, embedding_dim=8, **options)


@pytest.fixture
def lightgcn(tiny):
    torch.manual_seed(0)
    return LightGCN.from_data(tiny, embedding_dim=8)


def js(x, y):
    p, q = Categorical(logits=x.double()), Categorical(logits=y.double())
    m = Categorical(probs=(p.probs + q.probs) / 2)
    return ((kl_divergence(p, m) + kl_divergence(q, m)) / 2).float()


def kl(x, y):
    return kl_divergence(Categorical(logits=x), Categorical(logits=y))


def noisy_output(backbone, graph, clean, delta):
    """The noisy path's output, written down for each backbone (DVIB, Eq. 7)."""
    output = dict(clean.output)
    if isinstance(backbone, LightGCN):
        output["user"], output["item"] = backbone.propagation(
            backbone.user_embedding.weight + delta["user/embedding"],
            backbone.item_embedding.weight + delta["item/embedding"],
            graph.adjacency[INTERACTS],
            graph.adjacency[INTERACTED_BY],
        )
    elif isinstance(backbone, VBPR):
        ((site, x),) = delta.items()
        if site == "item/content":  # the ID half stays
            x = torch.cat([torch.zeros_like(x), x], dim=1)
        output["item"] = clean.output["item"] + x
    else:
        added = delta["item/layer_1"]
        if backbone.num_item_layers == 2:  # layer 2 sees layer 1's noise
            source, target = graph.adjacency[SIMILAR].edge_index
            similar = torch.zeros(90, 90)
            similar[target, source] = graph.adjacency[SIMILAR].weight
            added = similar @ added + delta["item/layer_2"]
        output["item"] = clean.output["item"] + added
    return output


def by_hand(objective, graph, batch, draw, rate):
    """Clean loss, noisy loss, divergence and rate of Eq. 8 without their weights.

    Args:
        draw: From a network or None, and a hidden layer, to delta and strength.
        rate: From a hidden layer's rows and strengths to R.
    """
    backbone, method = objective.backbone, objective.methods[0]
    clean, reader = backbone(graph), batch
    if backbone.rowwise and method.rows == "batch" and method.compare != "scores":
        parts = [
            {key: batch.rows.at(key, x) for key, x in part.items()}
            for part in (clean.hidden, clean.output, clean.compared)
        ]
        clean = Stages({}, parts[0], {}, parts[1], parts[2])
        reader = GatheredTriplets.of(batch)
    delta, total_rate = {}, torch.zeros(())
    for site in backbone.sites:
        network = method.noise[site].net if isinstance(method, DVIBa) else None
        delta[site], strength = draw(network, clean.hidden[site])
        if strength is not None:
            rows = clean.hidden[site], strength
            if method.rows == "batch":
                rows = reader.at(site, rows[0]), reader.at(site, rows[1])
            total_rate = total_rate + rate(*rows)
    output = noisy_output(backbone, graph, clean, delta)
    noisy = Stages({}, {}, {}, output, {})

    def rows(key, x):
        return x if method.rows == "all" else reader.at(key, x)

    pairs = [(rows(key, output[key]), rows(key, x)) for key, x in clean.compared.items()]
    return clean, noisy, pairs, reader, total_rate


def constant(std):
    return lambda network, h: (std * torch.randn(h.shape), None)


def adaptive(network, h):
    phi = torch.sigmoid(network[4](network[2](network[0](h).relu()).relu()))
    return phi * torch.randn(h.shape), phi


def equation_13(h, phi, a=0.5):
    return (h**2).sum(1).mean() + (phi / a - torch.log(phi / a) - 1).mean()


def total(terms):
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("rows", ["batch", "all"])
@pytest.mark.parametrize("form", [DVIBa, DVIBc])
def test_loss_is_equation_8(backbone, tiny, sample, form, rows):
    weights = {"noisy_weight": 0.7, "distillation_weight": 0.3, "rows": rows}
    method = form(std=0.1, **weights) if form is DVIBc else form(rate_weight=0.2, **weights)
    objective = Objective(backbone, method)
    graph, batch = backbone.graph(tiny), sample(tiny)
    torch.manual_seed(5)
    terms = objective(graph, batch)
    torch.manual_seed(5)
    draw = constant(0.1) if form is DVIBc else adaptive
    clean, noisy, pairs, reader, rate = by_hand(objective, graph, batch, draw, equation_13)

    expected = {
        **backbone.loss(clean, reader),
        "dvib/noisy": 0.7 * total(backbone.loss(noisy, reader)),
        "dvib/distillation": 0.3 * torch.stack([js(*pair).mean() for pair in pairs]).mean(),
    }
    if form is DVIBa:
        expected["dvib/rate"] = 0.2 * rate
    assert_close(terms, expected)
    assert len(pairs) == (2 if isinstance(backbone, LightGCN) else 1)
    assert terms["dvib/distillation"] > 0 and expected["bpr"] != expected["dvib/noisy"] / 0.7


@pytest.mark.parametrize("kind", ["js", "kl", "reverse_kl", "softmax_twice"])
def test_divergences_compare_noisy_and_clean(backbone, tiny, sample, kind):
    objective = Objective(
        backbone, DVIBc(std=0.3, divergence=kind, noisy_weight=0, distillation_weight=1)
    )
    graph, batch = backbone.graph(tiny), sample(tiny)
    torch.manual_seed(5)
    found = objective(graph, batch)["dvib/distillation"]
    torch.manual_seed(5)
    *_, pairs, _, _ = by_hand(objective, graph, batch, constant(0.3), None)
    formula = {
        "js": js,
        "kl": lambda noisy, clean: kl(clean, noisy),  # KL(Z || Z_delta)
        "reverse_kl": kl,
        "softmax_twice": softmax_twice_divergence,
    }[kind]
    expected = torch.stack([formula(*pair).mean() for pair in pairs]).mean()
    assert_close(found, expected)


@pytest.mark.parametrize("compare", ["scores", "batch_scores"])
def test_scores_are_compared_over_items(backbone, tiny, sample, compare):
    method = DVIBc(std=0.1, compare=compare, distillation_weight=1)
    objective = Objective(backbone, method)
    graph, batch = backbone.graph(tiny), sample(tiny)
    torch.manual_seed(5)
    found = objective(graph, batch)["dvib/distillation"]
    torch.manual_seed(5)
    clean, noisy, _, reader, _ = by_hand(objective, graph, batch, constant(0.1), None)

    def scores(stages):
        user = reader.at("user", stages.output["user"])
        item = stages.output["item"]
        return user @ (item if compare == "scores" else reader.at("item", item)).t()

    assert scores(clean).shape == (64, 90 if compare == "scores" else 128)
    assert_close(found, js(scores(noisy), scores(clean)).mean())


def test_rate_of_the_published_code(backbone, tiny, sample):
    objective = Objective(backbone, DVIBa(rate="normal_kl", rate_weight=1e-3))
    graph, batch = backbone.graph(tiny), sample(tiny)
    torch.manual_seed(5)
    found = objective(graph, batch)["dvib/rate"]
    torch.manual_seed(5)

    def rate(h, phi):
        noise = torch.distributions.Normal(h, phi.expand_as(h))
        prior = torch.distributions.Normal(torch.zeros_like(h), torch.full_like(h, 0.5))
        return kl_divergence(noise, prior).mean()

    *_, expected = by_hand(objective, graph, batch, adaptive, rate)
    assert_close(found, 1e-3 * expected)


def test_rate_takes_its_options(lightgcn, tiny, sample):
    graph, batch = lightgcn.graph(tiny), sample(tiny)
    method = DVIBa(rate_weight=1.0, prior_scale=0.3, hidden_weight=0.0, scale_weight=2.0)
    objective = Objective(lightgcn, method)
    torch.manual_seed(5)
    found = objective(graph, batch)["dvib/rate"]
    torch.manual_seed(5)

    def rate(h, phi):
        return 2 * (phi / 0.3 - torch.log(phi / 0.3) - 1).mean()

    *_, expected = by_hand(objective, graph, batch, adaptive, rate)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("form", "weight", "gone"),
    [
        (DVIBa, "clean_weight", {"bpr", "regularization"}),
        (DVIBc, "clean_weight", {"bpr", "regularization"}),
        (DVIBa, "noisy_weight", {"dvib/noisy"}),
        (DVIBc, "noisy_weight", {"dvib/noisy"}),
        (DVIBa, "distillation_weight", {"dvib/distillation"}),
        (DVIBc, "distillation_weight", {"dvib/distillation"}),
        (DVIBa, "rate_weight", {"dvib/rate"}),
    ],
)
def test_a_weight_of_0_drops_its_terms_and_no_other(lightgcn, tiny, sample, form, weight, gone):
    graph, batch = lightgcn.graph(tiny), sample(tiny)

    def terms(**options):
        torch.manual_seed(3)
        objective = Objective(lightgcn, form(**options))
        return objective(graph, batch)

    every, fewer = terms(), terms(**{weight: 0})
    assert set(every) - set(fewer) == gone
    assert_close(fewer, {key: x for key, x in every.items() if key not in gone})


def test_clean_weight_scales_each_clean_term(lightgcn, tiny, sample):
    graph, batch = lightgcn.graph(tiny), sample(tiny)
    one = Objective(lightgcn, DVIBc())(graph, batch)
    third = Objective(lightgcn, DVIBc(clean_weight=0.3))(graph, batch)
    for name in ("bpr", "regularization"):
        assert_close(third[name], 0.3 * one[name])


def test_convex_mixing_shares_one_weight(lightgcn, tiny, sample):
    graph, batch = lightgcn.graph(tiny), sample(tiny)

    def terms(mixing, **options):
        torch.manual_seed(3)
        return Objective(lightgcn, DVIBa(mixing=mixing, **options))(graph, batch)

    mixed = terms("convex", distillation_weight=0.2)
    plain = terms("sum", distillation_weight=1)
    share = {"bpr": 0.8, "regularization": 0.8, "dvib/noisy": 0.8, "dvib/distillation": 0.2}
    expected = {name: share.get(name, 1) * value for name, value in plain.items()}
    assert_close(mixed, expected)
    assert "dvib/rate" in mixed
    alone = terms("convex", distillation_weight=1)
    assert set(alone) == {"dvib/distillation", "dvib/rate"}


@pytest.mark.parametrize("form", [DVIBa, DVIBc])
def test_no_noise_means_no_difference(backbone, tiny, sample, form):
    graph, batch = backbone.graph(tiny), sample(tiny)
    method = form(distillation_weight=1, **({"std": 0.0} if form is DVIBc else {}))
    objective = Objective(backbone, method)
    if form is DVIBa:
        for network in method.noise.values():
            network.net[4].bias.data.fill_(-200.0)  # phi rounds to 0
        method.rate_weight = 0
    terms = objective(graph, batch)
    assert terms["dvib/distillation"].item() == pytest.approx(0, abs=1e-9)
    clean = total(Objective(backbone)(graph, batch))
    assert_close(terms["dvib/noisy"], clean)


def test_stop_gradient_keeps_the_distillation_from_the_noisy_path(backbone, tiny, sample):
    graph, batch = backbone.graph(tiny), sample(tiny)
    gradients = {}
    for stop in ("none", "teacher"):
        torch.manual_seed(0)
        method = DVIBa(
            clean_weight=0, noisy_weight=0, rate_weight=0, distillation_weight=1,
            stop_gradient=stop,
        )  # fmt: skip
        objective = Objective(backbone, method)
        objective.zero_grad()
        torch.manual_seed(1)
        (loss,) = objective(graph, batch).values()
        loss.backward()
        networks = [p.grad for p in method.parameters()]
        if stop == "teacher":
            assert all(grad is None for grad in networks)
        else:
            assert any(grad.abs().sum() > 0 for grad in networks)
        gradients[stop] = loss.item(), backbone.item_embedding.weight.grad
    assert gradients["none"][0] == gradients["teacher"][0]
    if not isinstance(backbone, VBPR) or backbone.site == "item":
        assert not torch.allclose(gradients["none"][1], gradients["teacher"][1], atol=0)
        assert gradients["teacher"][1].abs().sum() > 0


@pytest.mark.parametrize("form", [DVIBa, DVIBc])
@pytest.mark.parametrize("name", ["VBPR", "VBPR-item", "FREEDOM", "LightGCN", "VLATTICE"])
def test_rows_of_the_batch_alone_give_what_all_rows_give(tiny, sample, name, form, monkeypatch):
    cls, options = {**BACKBONES, "VLATTICE": (VLATTICE, {})}[name]
    torch.manual_seed(0)
    backbone = cls.from_data(tiny, embedding_dim=8, **options)
    objective = Objective(backbone, form())

    def perturb(site, hidden):  # the same for a row wherever it stands
        strength = hidden.detach()[:, :1].sigmoid()
        return strength * torch.sin(9 * hidden.detach()), None if form is DVIBc else strength

    monkeypatch.setattr(objective.methods[0], "perturb", perturb)
    graph, batch = backbone.graph(tiny), sample(tiny)
    assert backbone.rowwise or backbone.gathers_output

    def run():
        objective.zero_grad()
        assert objective._reads_fewer_rows(batch) == (backbone.rowwise or backbone.gathers_output)
        terms = objective(graph, batch)
        total(terms).backward()
        # FREEDOM compares projections with each other: the gradient of their biases is 0.
        zero = ("projection.image.bias", "projection.text.bias") if name == "FREEDOM" else ()
        return terms, {k: p.grad for k, p in backbone.named_parameters() if k not in zero}

    fast = run()
    monkeypatch.setattr(cls, "rowwise", False)
    monkeypatch.setattr(cls, "gathers_output", False)
    slow = run()
    assert_close(fast[0], slow[0])
    if name != "VLATTICE":
        assert_close(fast[1], slow[1])
    for key, x in slow[1].items():  # single entries may be nearly 0 beside the others
        torch.testing.assert_close(
            fast[1][key], x, rtol=2e-4, atol=1e-6 * float(x.abs().max()), msg=key
        )


def test_first_stage_runs_once_and_the_second_twice(backbone, tiny, sample, monkeypatch):
    calls = []
    for name in ("project", "fuse", "encode"):
        function = getattr(backbone, name)

        def counted(*args, name=name, function=function):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(backbone, name, counted)
    graph, batch = backbone.graph(tiny), sample(tiny)
    Objective(backbone, DVIBa())(graph, batch)
    assert calls == ["project", "fuse", "encode", "encode"]
    calls.clear()
    Objective(backbone, DVIBa(noisy_weight=0, distillation_weight=0))(graph, batch)
    assert calls == ["project", "fuse", "encode"]


def test_both_paths_see_the_same_sampled_graph(tiny, sample):
    torch.manual_seed(0)
    backbone = FREEDOM.from_data(tiny, embedding_dim=8, edge_dropout=0.5)
    graph = backbone.graph(tiny)
    pruned = backbone.sample_graph(graph, 0, torch.Generator().manual_seed(0))
    objective, batch = Objective(backbone, DVIBc(std=0.0)), sample(tiny)
    terms = objective(pruned, batch)
    clean = total(Objective(backbone)(pruned, batch))
    assert_close(terms["dvib/noisy"], clean)
    assert not torch.allclose(clean, total(Objective(backbone)(graph, batch)))


def test_one_network_per_site_of_half_its_width(tiny):
    method = DVIBa()
    backbone = FREEDOM.from_data(tiny, embedding_dim=8, num_item_layers=2)
    Objective(backbone, method)
    assert list(method.noise) == ["item/layer_1", "item/layer_2"]
    shapes = [list(p.shape) for p in method.noise["item/layer_2"].parameters()]
    assert shapes == [[4, 8], [4], [4, 4], [4], [1, 4], [1]]
    method = DVIBa(hidden_channels=(32, 16))
    Objective(VBPR.from_data(tiny, embedding_dim=8, site="item"), method)
    shapes = [list(p.shape) for p in method.noise["item/vector"].parameters()]
    assert shapes == [[32, 16], [32], [16, 32], [16], [1, 16], [1]]


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "dropout"])
@pytest.mark.parametrize("form", [DVIBa, DVIBc])
def test_every_kind_of_noise_trains_everything(backbone, tiny, sample, form, kind):
    options = {"scale": "variance"} if form is DVIBa else {"std": 0.1}
    objective = Objective(backbone, form(kind=kind, **options))
    total(objective(backbone.graph(tiny), sample(tiny))).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("form", [DVIBa, DVIBc])
def test_weights_load_into_the_bare_backbone(backbone, tiny, sample, form):
    keys = list(backbone.state_dict())
    objective = Objective(backbone, form())
    assert list(objective.backbone.state_dict()) == keys
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    graph = backbone.graph(tiny)
    total(objective(graph, sample(tiny))).backward()
    optimizer.step()
    cls = type(backbone)
    options = {
        name: getattr(backbone, name)
        for name in ("site", "num_item_layers")
        if hasattr(backbone, name)
    }
    bare = cls.from_data(tiny, embedding_dim=8, **options)
    bare.load_state_dict(objective.backbone.state_dict())
    users = torch.arange(120)
    assert objective.inference_graph(graph) is graph
    scores = backbone.eval().scores(backbone(graph), graph, users)
    assert torch.equal(bare.eval().scores(bare(graph), graph, users), scores)


@pytest.mark.parametrize("form", [DVIBa, DVIBc])
@pytest.mark.parametrize("cls", [MostPop, ItemKNN])
def test_backbones_without_sites_are_refused(tiny, form, cls):
    with pytest.raises(ValueError) as error:
        Objective(cls.from_data(tiny), form())
    assert str(error.value) == (
        f"DVIB perturbs hidden layers, and {cls.__name__} declares none (its 'sites' are empty); "
        "BM3, BPRMF, FREEDOM, GRCN, LATTICE, LayerGCN, LightGCN, MMGCN, SelfCF, VBPR, VLATTICE, "
        "VLightGCN have some"
    )


def test_two_forms_at_once_are_refused(lightgcn):
    with pytest.raises(ValueError, match=r"each method goes in once \(got \['dvib', 'dvib'\]\)"):
        Objective(lightgcn, DVIBa(), DVIBc())


@pytest.mark.parametrize("form", [DVIBa, DVIBc])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "normal"}, "'kind' needs to be one of"),
        ({"divergence": "jsd"}, "'divergence' needs to be one of"),
        ({"rows": "some"}, r"'rows' needs to be one of \['batch', 'all'\] \(got 'some'\)"),
        ({"compare": "items"}, r"'compare' needs to be one of \['features', 'scores', 'batch_sc"),
        ({"stop_gradient": True}, r"'stop_gradient' needs to be one of \['none', 'teacher'\]"),
        ({"mixing": "mean"}, r"'mixing' needs to be one of \['sum', 'convex'\]"),
        ({"mixing": "convex", "distillation_weight": 1.5}, r"'distillation_weight' .* \[0, 1\]"),
        ({"clean_weight": -1}, "'clean_weight' needs to be a number of 0 or more"),
        ({"noisy_weight": -1}, "'noisy_weight' needs to be a number of 0 or more"),
        ({"distillation_weight": float("nan")}, "'distillation_weight' needs to be a number of 0"),
        (
            {"clean_weight": 0, "noisy_weight": 0, "distillation_weight": 0},
            "one of 'clean_weight', 'noisy_weight' and 'distillation_weight' needs to be positive",
        ),
    ],
)
def test_bad_options_are_refused(form, options, message):
    with pytest.raises(ValueError, match=message):
        form(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DVIBc(std=-1.0), "'std' needs to be a number of 0 or more"),
        (lambda: DVIBc(kind="dropout", dropout_rate=1.0), "'dropout_rate' needs to lie in"),
        (lambda: DVIBa(scale="sigma"), "'scale' needs to be one of"),
        (lambda: DVIBa(rate="kl"), r"'rate' needs to be one of \['paper', 'normal_kl'\]"),
        (lambda: DVIBa(rate_weight=-1.0), "'rate_weight' needs to be a number of 0 or more"),
        (lambda: DVIBa(prior_scale=0.0), "'prior_scale' needs to be positive"),
        (lambda: DVIBa(rate="normal_kl", prior_scale=0.0), "'prior_std' needs to be positive"),
        (lambda: DVIBa(hidden_channels=(4, 0)), "two 'hidden_channels' need to be positive"),
    ],
)
def test_bad_options_of_one_form_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
