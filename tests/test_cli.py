import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyg_mmrec.cli import describe, main
from pyg_mmrec.experiment import BACKBONES, METHODS, Experiment, load_run
from pyg_mmrec.table import mean_and_std
from pyg_mmrec.training import Trainer

TINY = ["train", "--dataset", "planted-tiny", "--quiet"]
SHORT = ["--set", "train.epochs=3", "train.patience=2"]


@pytest.fixture(autouse=True)
def leave_the_process_alone(monkeypatch):
    monkeypatch.setattr("pyg_mmrec.cli.tune_process", lambda: None)


def test_train_writes_what_it_says(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--model", "FREEDOM", "--method", "dvib-a", "--out", str(out)]
    assert main([*TINY, *arguments, *SHORT, "model.k=4", "method.rate_weight=0.01"]) == 0
    printed = capsys.readouterr().out
    assert "recall" in printed and "seconds per epoch" in printed

    result = json.loads((out / "result.json").read_text())
    assert set(result) == {
        "config", "versions", "data", "history", "best_epoch", "seconds_per_epoch", "metrics"
    }  # fmt: skip
    assert result["config"]["options"]["method.rate_weight"] == "0.01"
    assert {"train", "validation"} == set(result["seconds_per_epoch"])
    for split in ("validation", "test"):
        for name in ("recall", "ndcg", "precision", "map", "hit_ratio"):
            assert {f"{name}@{k}" for k in (5, 10, 20, 50)} <= set(result["metrics"][split])
    assert 0 < len(result["history"]) <= 3
    first = result["history"][0]
    assert {"bpr", "dvib/noisy", "dvib/distillation", "dvib/rate"} <= set(first["loss"])
    assert "recall@20" in first["validation"]
    assert f"{result['metrics']['test']['recall@20']:.4f}" in printed
    # The best epoch's validation metrics are those of the kept weights.
    best = result["history"][result["best_epoch"]]["validation"]
    kept = result["metrics"]["validation"]
    assert "recall@50" in kept and "recall@50" not in best
    assert best == pytest.approx({name: kept[name] for name in best})

    of_users = load_file(out / "users.safetensors")
    for name in ("recall@20", "ndcg@5"):
        mean = of_users[name].double().mean().item()
        assert mean == pytest.approx(result["metrics"]["test"][name])
    assert of_users["user"].shape == of_users["recall@20"].shape
    vectors = load_file(out / "vectors.safetensors")
    weights = load_file(out / "weights.safetensors")
    experiment = Experiment("FREEDOM", "planted-tiny", options={"model.k": "4"})
    data = experiment.load()
    backbone = experiment.objective(data).backbone
    backbone.load_state_dict(weights)
    user, item = backbone.vectors(backbone(backbone.graph(data)))
    torch.testing.assert_close(vectors["user"], user.detach())
    torch.testing.assert_close(vectors["item"], item.detach())


def check_loaded(folder, model):
    """A run's folder gives the model with the metrics that it had."""
    result = json.loads((folder / "result.json").read_text())
    trainer = load_run(folder)
    assert type(trainer.backbone).__name__ == model
    assert trainer.evaluate() == result["metrics"]["test"]
    assert trainer.evaluate("val") == result["metrics"]["validation"]
    vectors = folder / "vectors.safetensors"
    assert vectors.exists() == trainer.backbone.has_vectors
    if vectors.exists():
        user, item = trainer.vectors()
        torch.testing.assert_close({"user": user, "item": item}, load_file(vectors), rtol=0, atol=0)


@pytest.mark.parametrize("model", sorted(BACKBONES))
def test_every_model_trains_and_is_loaded_as_it_ended(model, tmp_path, capsys):
    assert main([*TINY, "--model", model, "--out", str(tmp_path), *SHORT]) == 0
    assert f"{model}, method none" in capsys.readouterr().out
    check_loaded(tmp_path, model)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains(method):
    assert main([*TINY, "--model", "VLATTICE", "--method", method, *SHORT]) == 0


def test_a_combination_is_what_goes_with_the_backbone(tmp_path):
    terms = {}
    for model in ("VBPR", "VLightGCN", "LATTICE", "VLATTICE"):
        arguments = ["--model", model, "--method", "ibmrec+mg", "--out", str(tmp_path / model)]
        assert main([*TINY, *arguments, *SHORT]) == 0
        result = json.loads((tmp_path / model / "result.json").read_text())
        terms[model] = {name.split("/")[0] for name in result["history"][0]["loss"]}
    backbone = {"bpr", "regularization"}
    assert terms == {
        "VBPR": backbone | {"fib", "second_stage"},
        "VLightGCN": backbone | {"fib", "second_stage"},
        "LATTICE": backbone | {"gib"},
        "VLATTICE": backbone | {"fib", "gib", "second_stage"},
    }


def test_a_model_and_a_method_of_ones_own_train_and_are_loaded(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_models.py").write_text(
        "from pyg_mmrec.nn.backbones import FREEDOM\n"
        "from pyg_mmrec.nn.objectives import DVIBc\n"
        "class Mine(FREEDOM):\n"
        "    def __init__(self, *args, scale=1.0, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        self.scale = scale\n"
        "class Noise(DVIBc):\n"
        "    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    own = ["--model", "my_models:Mine", "--method", "my_models:Noise+mg", "--out", "run"]
    options = ["model.scale=2", "model.reg_weight=0", "method.std=0.1"]
    assert main([*TINY, *own, *SHORT, *options]) == 0
    trainer = load_run("run")
    assert (trainer.backbone.scale, trainer.backbone.reg_weight) == (2.0, 0.0)
    assert trainer.objective.methods[0].noise.std == 0.1
    capsys.readouterr()
    check_loaded(Path("run"), "Mine")
    for wrong, message in (
        (["--model", "my_models:Other"], "there is no model 'my_models:Other' (module 'my_models'"),
        (["--model", "my_models:Other"], "; there are my_models:Mine\n"),
        (["--model", "my_models:DVIBc"], "'my_models:DVIBc' needs to name a Backbone (got <class"),
        (["--model", "no_models:Mine"], "No module named 'no_models'"),
        (["--model", "pyg_mmrec.nn.backbones:ContentBackbone"], "is abstract"),
        (["--model", "VBPR", "--method", ":"], "there is no"),
        (["--model", "VBPR", "--method", "pyg_mmrec.nn.objectives:Method"], "to name a Method"),
        (["--model", "my_models:Mine", "--set", "model.size=1"], "there are model.edge_dropout"),
    ):
        assert main([*TINY, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_a_class_that_has_changed_since_is_found_out(tmp_path, monkeypatch, capsys):
    text = (
        "from pyg_mmrec.nn.backbones import BPRMF\n"
        "class Changing(BPRMF):\n"
        "    factor = 1\n"
        "    def encode(self, hidden, context, graph, delta=None):\n"
        "        hidden, output, compared = super().encode(hidden, context, graph, delta)\n"
        "        output = {name: self.factor * x for name, x in output.items()}\n"
        "        return hidden, output, compared\n"
    )
    (tmp_path / "my_changing.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    own = ["--model", "my_changing:Changing", "--out", "run"]
    assert main([*TINY, *own, *SHORT]) == 0
    assert load_run("run").backbone.factor == 1
    monkeypatch.setattr(sys.modules["my_changing"].Changing, "factor", 2)
    with pytest.raises(ValueError, match="other user vectors than it ended with: my_changing:Ch"):
        load_run("run")
    (tmp_path / "my_failing.py").write_text(text.replace("output = {", "a, b = [1]; output = {"))
    capsys.readouterr()
    assert main([*TINY, "--model", "my_failing:Changing"]) == 2
    error = capsys.readouterr().err
    assert (
        "Traceback" in error
        and "my_failing.py" in error
        and "error: not enough values to unpack" in error
    )


def test_a_run_starts_from_the_weights_of_another(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    common = [*TINY, "--model", "VBPR"]
    assert main([*common, "--out", str(first), *SHORT]) == 0
    start = ["--method", "amr", "--start-from", str(first), "--seed", "1", "--out", str(second)]
    frozen = [*SHORT, "train.learning_rate=1e-12"]
    assert main([*common, *start, *frozen]) == 0
    one, other = (load_file(folder / "weights.safetensors") for folder in (first, second))
    for name, weights in one.items():
        torch.testing.assert_close(other[name], weights)
    assert json.loads((second / "result.json").read_text())["config"]["start_from"] == str(first)
    capsys.readouterr()
    for wrong, message in (
        (["VBPR", "--start-from", str(tmp_path)], "there are no weights"),
        (["LightGCN", "--start-from", str(first)], "holds the weights of VBPR, not of LightGCN"),
        (
            ["VBPR", "--start-from", str(first), *SHORT, "model.embedding_dim=8"],
            "holds other weights than those of VBPR: user_embedding.weight [120, 128] there",
        ),
    ):
        assert main([*TINY, "--model", *wrong, *SHORT]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("model", "method"), [("VLATTICE", "gib+dvib-a"), ("GRCN", "ibmrec+mg")])
def test_a_run_is_loaded_with_options_and_what_methods_learned(tmp_path, model, method):
    options = ["data.scale_features=max_abs", "model.embedding_dim=8"]
    arguments = ["--model", model, "--method", method, "--out", str(tmp_path)]
    assert main([*TINY, *arguments, *SHORT, *options]) == 0
    check_loaded(tmp_path, model)


def test_a_run_is_not_loaded_with_other_data_or_unfinished(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        load_run(tmp_path)
    assert main([*TINY, "--model", "LightGCN", "--out", str(tmp_path), *SHORT]) == 0
    file = tmp_path / "result.json"
    result = json.loads(file.read_text())
    name, value = next(iter(result["data"]["fingerprints"].items()))
    file.write_text(file.read_text().replace(value, "other"))
    with pytest.raises(ValueError, match=f"is the result of another run .*{name}"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'.*' itself \(in its folders \['seed-0'\]"):
        (tmp_path / "many" / "seed-0").mkdir(parents=True)
        (tmp_path / "many" / "seed-0" / "result.json").touch()
        load_run(tmp_path / "many")
    file.write_text("{}")
    with pytest.raises(ValueError, match="is not the result of a run"):
        load_run(tmp_path)
    file.write_text(json.dumps({**result, "config": {**result["config"], "colour": "red"}}))
    with pytest.raises(ValueError, match=r"result.json' is not of this version: unknown .'colour'"):
        load_run(tmp_path)


def test_the_result_says_what_a_combination_was(tmp_path):
    arguments = ["--model", "GRCN", "--method", "ibmrec+mg", "--out", str(tmp_path)]
    assert main([*TINY, *arguments, *SHORT]) == 0
    config = json.loads((tmp_path / "result.json").read_text())["config"]
    assert (config["method"], config["methods"]) == ("ibmrec+mg", ["fib", "mg"])


def test_several_seeds_print_mean_and_deviation(tmp_path, capsys):
    arguments = ["--model", "LightGCN", "--seeds", "2", "--out", str(tmp_path)]
    assert main([*TINY, *arguments, *SHORT]) == 0
    values = [
        json.loads((tmp_path / f"seed-{seed}/result.json").read_text())["metrics"]["test"]
        for seed in range(2)
    ]
    mean, std = mean_and_std([value["recall@20"] for value in values])
    assert std > 0
    assert f"{mean:.4f} ± {std:.4f}" in capsys.readouterr().out


def test_finished_runs_are_kept_and_resumed(tmp_path, capsys):
    arguments = [*TINY, "--model", "LightGCN", "--out", str(tmp_path)]
    assert main([*arguments, *SHORT]) == 0
    first = capsys.readouterr().out
    written = (tmp_path / "result.json").read_bytes()
    assert main([*arguments, *SHORT]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*arguments, *SHORT, "--resume"]) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "result.json").read_bytes() == written
    assert main([*arguments, "--resume", "--seed", "7"]) == 2
    error = capsys.readouterr().err
    assert "result of another run" in error and "seed: 0 there, 7 here" in error
    assert "train.epochs: 3 there, absent here" in error


def test_it_says_what_it_trains_on_and_that_nothing_was_there_to_resume(tmp_path, capsys):
    arguments = ["train", "--dataset", "planted-tiny", "--model", "GRCN", "--method", "ibmrec"]
    assert main([*arguments, "--out", str(tmp_path / "new"), "--resume", *SHORT]) == 0
    out, error = capsys.readouterr()
    first = "planted-tiny: 120 users, 90 items, "
    assert error.startswith(first) and "; image 24, text 16\n" in error
    assert f"nothing to go on with in '{tmp_path / 'new'}': a new run\n" in error
    assert out.startswith("GRCN, method ibmrec (fib), preset paper, on planted-tiny: ")


def test_an_interrupt_says_whether_something_was_kept(tmp_path, capsys, monkeypatch):
    def interrupted(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return before(self, epoch)

    before = Trainer._epoch
    monkeypatch.setattr(Trainer, "_epoch", interrupted)
    arguments = [*TINY, "--model", "LightGCN", "--out"]
    assert main([*arguments, str(tmp_path / "a")]) == 130
    assert "interrupted; nothing was kept yet" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "b"), "--set", "train.checkpoint_epochs=1"]) == 130
    assert "interrupted; '--resume' goes on from the last checkpoint" in capsys.readouterr().err


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    def run(folder, *more):
        common = ["--model", "FREEDOM", "--method", "dvib-a", "--out", str(tmp_path / folder)]
        options = ["train.patience=50", "train.checkpoint_epochs=2"]
        return main([*TINY, *common, "--set", *options, *more])

    assert run("whole", "train.epochs=6") == 0
    assert run("parts", "train.epochs=3") == 0
    (tmp_path / "parts/result.json").unlink()  # as if it had been killed after a checkpoint
    assert run("parts", "train.epochs=6", "--resume") == 0
    results = [
        json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("whole", "parts")
    ]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert [e["loss"] for e in results[0]["history"]] == [e["loss"] for e in results[1]["history"]]
    one, other = (
        load_file(tmp_path / f"{name}/weights.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "NGCF"], "there is no model 'NGCF'; there are BM3, BPRMF, FREEDOM"),
        (["--model", "VBPR", "--method", "amp"], "there is no method 'amp'; there are amr, dvib-a"),
        (["--model", "VBPR", "--preset", "x"], "there is no preset 'x'; there are mmrec, paper"),
        (
            ["--model", "LightGCN", "--set", "model.layers=3"],
            "there is no option 'model.layers'; there are model.embedding_dim, model.num_layers",
        ),
        (["--model", "LightGCN", "--set", "method.std=1"], "'method.std' without a method"),
        (
            ["--model", "VBPR", "--method", "dvib-c", "--set", "method.sd=1"],
            "there is no option 'method.sd'; there are method.clean_weight, method.compare",
        ),
        (
            ["--model", "VLATTICE", "--method", "ibmrec", "--set", "method.weight=1"],
            "several methods have an option 'method.weight': say method.fib.weight, "
            "method.gib.weight",
        ),
        (
            ["--model", "VBPR", "--method", "ibmrec", "--set", "method.gib.weight=1"],
            "there is no option 'method.gib.weight'; there are method.keep_kernels, method.mod",
        ),
        (["--model", "VBPR", "--method", "fib+ibmrec"], "each method goes in once"),
        (["--model", "VBPR", "--method", "dvib-a+dvib-c"], "in one form (got dvib-a+dvib-c)"),
        (["--model", "VBPR", "--method", "none+fib"], "method 'none' stands alone"),
        (["--model", "MostPop", "--method", "mg"], "MostPop has nothing to train"),
        (["--model", "LightGCN", "--method", "gib"], "FREEDOM, LATTICE, VLATTICE have one"),
        (
            ["--model", "LightGCN", "--set", "layers=3"],
            "there is no option 'layers'; there are data",
        ),
        (["--model", "LightGCN", "--set", "epochs=3"], "'epochs'; did you mean train.epochs?"),
        (["--model", "LightGCN", "--set", "train.seed=3"], "the seed is an argument, '--seed'"),
        (["--model", "LightGCN", "--set", "train.epochs"], "takes SECTION.OPTION=VALUE"),
        (["--model", "LightGCN", "--set", "train.epochs=many"], "'train.epochs' needs an integer"),
        (["--model", "LightGCN", "--set", "train.metric=auc@20"], "'metric' needs to be one of"),
        (["--model", "LightGCN", "--set", "train.epochs=0"], "'epochs' needs to be a positive"),
        (["--model", "LightGCN", "--dataset", "nowhere"], "nowhere"),
        (["--model", "LightGCN", "--resume"], "'--resume' needs '--out'"),
        (["--model", "LightGCN", "--seeds", "0"], "'--seeds' needs to be a positive integer"),
        (["--model", "FREEDOM", "--set", "model.modalities=smell"], "smell"),
        (["--model", "MostPop", "--method", "dvib-c"], "MostPop declares none"),
        (["--model", "LightGCN", "--device", "gpu"], "'device' is 'gpu', which is not here"),
        (["--model", "MostPop", "--out", __file__], "is a file, but a run needs a folder"),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(arguments, message, capsys):
    assert main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyg-mmrec: error: ") and error.count("\n") == 1
    assert message in error


def test_a_mistake_leaves_no_folder(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*TINY, "--model", "BPRMF", "--out", str(out), "--seed", "-1"]) == 2
    assert "'seed' needs to be an integer from 0 to 2^32 - 1 (got -1)" in capsys.readouterr().err
    unfit = ["--set", "model.modality_weights=image:1"]
    assert main([*TINY, "--model", "FREEDOM", "--out", str(out), *unfit]) == 2
    assert "'modality_weights' needs one weight for each" in capsys.readouterr().err
    assert not out.exists()


def test_it_says_what_was_left_out():
    counts = {
        "users": 3, "items": 4, "training": 5, "validation": 1, "test": 2, "modalities": {},
        "dropped": {"duplicate_pairs": 6, "test_users": 1, "test_interactions": 2},
    }  # fmt: skip
    assert describe("mine", counts) == (
        "mine: 3 users, 4 items, 5 / 1 / 2 interactions (6 duplicates, 2 test interactions of "
        "users without training left out); no modalities"
    )


def test_it_says_which_index_was_picked(caplog):
    arguments = ["train", "--dataset", "planted-tiny", "--model", "FREEDOM"]
    assert main([*arguments, "--set", "train.epochs=1", "model.knn_index=auto"]) == 0
    assert "modality 'text': graph of k=10 neighbours between 90 of 90 items, index flat" in (
        caplog.text
    )


def test_a_start_that_may_know_what_is_held_out_is_refused(tmp_path, capsys):
    common = [*TINY, "--model", "BPRMF", "--set", "train.epochs=1"]
    assert main([*common, "data.seed=1", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main([*common, "data.seed=2", "--start-from", str(tmp_path)]) == 2
    assert "learned from other splits than these" in capsys.readouterr().err
    assert main([*common, "data.seed=1", "--seed", "3", "--start-from", str(tmp_path)]) == 0


def write_folder(root, item):
    (root / "toy").mkdir(parents=True)
    rows = [f"{u}\t{(u + i) % 6}\t{i // 4}" for u in range(6) for i in range(5)]
    rows += [f"{u}\t{(u + 5) % 6 if u else item}\t2" for u in range(6)]
    (root / "toy" / "toy.inter").write_text("\n".join(["u\ti\tsplit", *rows, ""]))


def test_columns_have_any_names_and_results_belong_to_their_data(tmp_path, capsys):
    columns = "data.columns=user:u,item:i,label:split"
    common = ["train", "--model", "MostPop", "--dataset", "toy", "--quiet", "--set", columns]
    write_folder(tmp_path / "a", 5)
    write_folder(tmp_path / "b", 4)
    out = ["--out", str(tmp_path / "out")]
    assert main([*common, "--root", str(tmp_path / "a"), *out]) == 0
    assert main([*common, "--root", str(tmp_path / "a"), *out, "--resume"]) == 0
    capsys.readouterr()
    assert main([*common, "--root", str(tmp_path / "b"), *out, "--resume"]) == 2
    assert "is the result of another run (test pairs: " in capsys.readouterr().err


def test_the_module_is_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "pyg_mmrec", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("pyg-mmrec ")
