"""The shipped check names what is wrong with a backbone's stages."""

from dataclasses import replace

from torch import nn

from pyg_mmrec.nn.backbones import EVERY_ROW, VBPR
from pyg_mmrec.nn.backbones.stages import add_delta
from pyg_mmrec.testing import check_backbone
from tests.testing.sound import DATA, Rowwise, Sound, refused


def test_keys_name_the_rows():
    def attention(base):
        class Named(base):
            def fuse(self, *args):
                hidden, context = super().fuse(*args)
                return hidden, {**context, "attention": args[1].x["image"]}

        return Named

    refused(attention(Rowwise), "a key of 'context' is wrong: .*'user' or 'item'.*'attention'")
    backbone = attention(Sound).from_data(DATA)  # nobody takes rows of its context
    check_backbone(backbone, backbone.graph(DATA))

    class Short(Rowwise):
        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            return hidden, {**output, "item/few": output["item"][:3]}, compared

    refused(Short, r"output 'item/few' is named for items and needs 90 rows \(got shape \[3, 4\]")

    class Modality(Sound):
        def project(self, graph):
            return {"image": graph.x["image"][:3]}

    refused(Modality, "'project' needs to return one row per item for 'image'")


def test_forward_is_the_three_stages():
    class Own(Sound):
        def forward(self, graph, rows=EVERY_ROW):
            stages = super().forward(graph, rows)
            output = {**stages.output, "item": 2 * stages.output["item"]}
            return replace(stages, output=output)

    refused(Own, r"'forward' differs from 'project', 'fuse' and 'encode' in output \['item'\]")


def test_stages_return_dicts():
    class OneTensor(Sound):
        def project(self, graph):
            return graph.x["image"]

    refused(OneTensor, r"'project' needs to return one dict, by modality \(got Tensor\)")

    class NoContext(Sound):
        def fuse(self, *args):
            return super().fuse(*args)[0]

    refused(NoContext, r"'fuse' needs to return two dicts, hidden layers and context \(got dict\)")

    class NoCompared(Sound):
        def encode(self, *args):
            return super().encode(*args)[:2]

    refused(NoCompared, r"'encode' needs to return three dicts, .* \(got dict, dict\)")


def test_sites_are_a_property():
    class Listed(Sound):
        sites = ["item/first", "item/second"]

    refused(Listed, "'sites' needs to be a property that gives numbers of channels by site")


def test_encode_is_pure():
    class Random(Sound):
        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            output["user/dropped"] = nn.functional.dropout(output["user"], 0.5, self.training)
            return hidden, output, compared

    refused(Random, r"'encode' is not pure: output \['user/dropped'\] differ between two calls")

    class Writing(Sound):
        def encode(self, hidden, context, graph, delta=None):
            for site in delta or {}:
                hidden[site].add_(delta[site])
            return super().encode(hidden, context, graph)

    refused(Writing, "'encode' writes into its arguments")


def test_encode_only_adds_its_delta():
    class Scaled(Sound):
        def encode(self, hidden, context, graph, delta=None):
            if delta is not None:
                hidden = {key: 1.1 * x for key, x in hidden.items()}
            return super().encode(hidden, context, graph, delta)

    refused(Scaled, "'encode' with an empty delta differs")

    class Stale(Sound):
        def encode(self, hidden, context, graph, delta=None):
            reached, output, compared = super().encode(hidden, context, graph, delta)
            if "item/second" in hidden:
                second = add_delta(hidden["item/second"], delta, "item/second")
                item = reached["item/first"] + second
                reached = {**reached, "item/second": second}
                output, compared = {**output, "item": item}, {"item": item}
            return reached, output, compared

    refused(Stale, "reads hidden layers that 'fuse' does not make.*so that noise adds up")

    class Halved(Sound):
        def encode(self, hidden, context, graph, delta=None):
            delta = {key: x / 2 for key, x in (delta or {}).items()}
            return super().encode(hidden, context, graph, delta)

    refused(Halved, "a delta at 'item/first' is not added there; return hidden")


def test_encode_reads_the_hidden_layers_that_it_gets():
    class Remade(Sound):
        def encode(self, hidden, context, graph, delta=None):
            return super().encode({"item/first": self.item_embedding.weight}, context, graph, delta)

    refused(Remade, "'encode' does not read the hidden layers that it gets: hidden")


def test_sites_are_the_hidden_layers():
    class Missing(Sound):
        sites = {"item/first": 4}

    refused(Missing, r"'sites' declares \['item/first'\], but 'encode' returns .*'item/second'")

    class Forgetful(Sound):
        def encode(self, hidden, context, graph, delta=None):
            return {}, *super().encode(hidden, context, graph, delta)[1:]

    refused(Forgetful, r"but 'encode' returns the hidden layers \[\]")

    class Wide(Sound):
        sites = {"item/first": 4, "item/second": 8}

    refused(Wide, "'sites' declares 8 channels for 'item/second'")

    class Reversed(Sound):
        sites = {"item/second": 4, "item/first": 4}

    refused(Reversed, r"changes the hidden layers \['item/second'\], which 'sites' declares before")


def test_compared_tensors_change():
    class Nothing(Sound):
        def encode(self, *args):
            hidden, output, _ = super().encode(*args)
            return hidden, output, {}

    refused(Nothing, "returns nothing in 'compared', though there are sites")

    class Constant(Sound):
        def encode(self, *args):
            hidden, output, compared = super().encode(*args)
            return hidden, output, {**compared, "user": output["user"]}

    refused(Constant, r"'compared' names \['user'\], which no delta changes")

    class Blind(Sound):
        def encode(self, *args):
            hidden, output, _ = super().encode(*args)
            return hidden, output, {"item": self.item_embedding.weight}

    refused(Blind, "a delta at 'item/first' changes none of the compared tensors")


def test_unknown_sites_do_nothing_or_are_refused():
    class Greedy(Sound):
        def encode(self, hidden, context, graph, delta=None):
            reached, output, compared = super().encode(hidden, context, graph, delta)
            known = set(self.sites)
            for site, x in (delta or {}).items():
                if site not in known:
                    output = {**output, "item": output["item"] + x}
            return reached, output, compared

    refused(Greedy, "a delta at a site that was never declared changes the output")

    class Strict(Sound):
        def encode(self, hidden, context, graph, delta=None):
            for site in delta or {}:
                if site not in self.sites:
                    raise ValueError(f"no site {site}")
            return super().encode(hidden, context, graph, delta)

    backbone = Strict.from_data(DATA)
    check_backbone(backbone, backbone.graph(DATA))


def test_rowwise_is_true_or_not_declared():
    class Mixing(Rowwise):
        def encode(self, hidden, context, graph, delta=None):
            reached, output, compared = super().encode(hidden, context, graph, delta)
            item = output["item"] + reached["item/first"].mean(0)
            return reached, {**output, "item": item}, {"item": item}

    refused(Mixing, r"'rowwise' is declared, but output \['item'\] of the batch's rows alone")


def test_stages_of_a_rowwise_backbone_take_rows():
    class Without(VBPR):
        def fuse(self, modality, graph):
            return super().fuse(modality, graph)

    refused(Without, "'rowwise' is declared, but the stages fail with TypeError.*'rows=EVERY_ROW'")
