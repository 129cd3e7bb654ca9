"""Searches within a budget: what they try, keep, give up, and say."""

import sys

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("yaml")
CONFIG = """
model: LightGCN
dataset: planted-tiny
options:
  train.epochs: 4
  model.embedding_dim: 8
grid:
  model.num_layers: [1, 2]
  train.learning_rate: [0.001, 0.1]
"""


@pytest.fixture(scope="module")
def program(load_script):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return load_script("search")


@pytest.fixture
def config(program, tmp_path):
    path = tmp_path / "lightgcn.yaml"
    path.write_text(CONFIG)
    return program.Config.read(path)


def states(study):
    return [trial.state.name for trial in study.get_trials()]


def test_a_grid_is_searched_once_and_goes_on_where_it_stopped(program, config, tmp_path):
    file = tmp_path / "a" / "study.journal"
    study = program.make_study(config, "grid", file, 0, None)
    program.search(config, study, "", trials=2, seed=0)
    trial = study.ask()  # an interrupted trial
    for name, values in program.space(config).items():
        trial.suggest_categorical(name, values)
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING", "WAITING"]
    study = program.make_study(config, "grid", file, 0, None)
    program.search(config, study, "", trials=4, seed=0)
    assert states(study).count("COMPLETE") == 4 and states(study).count("FAIL") == 1
    points = {tuple(trial.params.values()) for trial in study.get_trials() if trial.values}
    assert points == {("1", "0.001"), ("1", "0.1"), ("2", "0.001"), ("2", "0.1")}
    text = program.report(config, study, "validation")
    assert "4 points finished; trials given up early 0, failed or interrupted 1" in text
    best = max((t for t in study.get_trials() if t.values), key=lambda trial: trial.value)
    assert f"picked on validation: {best.params}, test recall@20 " in text
    assert "picking on test would have added" in text and "PICKED ON TEST" not in text
    assert "PICKED ON TEST, no clean estimate" in program.report(config, study, "test")


def test_a_trial_is_the_run_of_its_point(program, config, tmp_path):
    study = program.make_study(config, "random", tmp_path / "study.journal", 1, None)
    program.search(config, study, "", trials=1, seed=1)
    (trial,) = study.get_trials()
    result = config.experiment(trial.params, 1, "").run(progress=False)
    assert trial.value == result["metrics"]["validation"]["recall@20"]
    assert trial.user_attrs["test"] == result["metrics"]["test"]


def test_points_drawn_again_are_not_trained_again(program, config, tmp_path, monkeypatch):
    runs = []
    run = program.Config.experiment
    monkeypatch.setattr(
        program.Config, "experiment", lambda *arguments: runs.append(arguments) or run(*arguments)
    )
    study = program.make_study(config, "random", tmp_path / "study.journal", 0, None)
    program.search(config, study, "", trials=12, seed=0)
    points = {tuple(trial.params.values()) for trial in study.get_trials()}
    trained = [arguments for arguments in runs if arguments[1]]  # not: to load the data
    assert states(study) == ["COMPLETE"] * 12 and len(trained) == len(points) <= 4
    assert f"{len(points)} points finished" in program.report(config, study, "validation")


def test_trials_that_fall_behind_are_given_up(program, config, tmp_path):
    study = program.make_study(config, "grid", tmp_path / "study.journal", 0, 1)
    for value in (0.9, 0.9, 0.9):  # of others, out of reach
        trial = optuna.trial.create_trial(
            params={"model.num_layers": "2", "train.learning_rate": "0.1"},
            distributions={
                name: optuna.distributions.CategoricalDistribution(values)
                for name, values in program.space(config).items()
            },
            value=value,
            intermediate_values=dict.fromkeys(range(4), value),
            user_attrs={"test": {"recall@20": 0.9}},
        )
        study.add_trial(trial)
    program.search(config, study, "", trials=4, seed=0)
    (pruned,) = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    assert len(pruned.intermediate_values) == 2


def test_without_a_grid_there_is_nothing_to_search(program, tmp_path, monkeypatch, capsys):
    path = tmp_path / "plain.yaml"
    path.write_text(CONFIG.split("grid")[0])
    monkeypatch.setattr(sys, "argv", ["search.py", str(path)])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "has no 'grid' to search" in capsys.readouterr().err


LARGER = CONFIG.replace("[0.001, 0.1]", "[0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.1]")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_resumed_search_draws_other_points(program, tmp_path, monkeypatch, sampler):
    path = tmp_path / "larger.yaml"
    path.write_text(LARGER)
    config = program.Config.read(path)
    result = {"metrics": {part: {"recall@20": 0.1} for part in ("validation", "test")}}
    monkeypatch.setattr("pyg_mmrec.experiment.Experiment.load", lambda *_: None)
    monkeypatch.setattr(
        "pyg_mmrec.experiment.Experiment.run", lambda *_, **__: {**result, "best_epoch": 0}
    )
    for trials in (6, 12):
        study = program.make_study(config, sampler, tmp_path / "study.journal", 0, None)
        program.search(config, study, "", trials=trials, seed=0)
    points = [tuple(trial.params.values()) for trial in study.get_trials()]
    assert len(points) == 12 and points[6:] != points[:6] and len(set(points)) >= 8


def test_a_file_holds_one_search(program, config, tmp_path, monkeypatch, capsys):
    file = tmp_path / "study.journal"
    study = program.make_study(config, "random", file, 0, None)
    study.tell(study.ask(), 0.1)
    assert len(program.make_study(config, "random", file, 0, None).trials) == 1
    with pytest.raises(ValueError, match=r"holds another search of 'lightgcn' \(seed: 0 there, 1 "):
        program.make_study(config, "random", file, 1, None)
    with pytest.raises(ValueError, match="sampler: random there, tpe here"):
        program.make_study(config, "tpe", file, 0, None)
    config.path.write_text(CONFIG.replace("embedding_dim: 8", "embedding_dim: 16"))
    edited = program.Config.read(config.path)
    with pytest.raises(ValueError, match="'model.embedding_dim': '8'.* there, .*'16'.* here"):
        program.make_study(edited, "random", file, 0, None)
    config.path.write_text(CONFIG.replace("[1, 2]", "[1, 2, 3]"))
    with pytest.raises(ValueError, match="grid: "):
        program.make_study(program.Config.read(config.path), "random", file, 0, None)
    arguments = [str(config.path), "--storage", str(file), "--sampler", "random"]
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    monkeypatch.setattr(program, "tune_process", lambda: None)  # for a whole process
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "holds another search of 'lightgcn'" in capsys.readouterr().err


def test_a_point_that_was_given_up_is_not_trained_again(program, config, tmp_path, monkeypatch):
    study = program.make_study(config, "random", tmp_path / "study.journal", 0, 1)
    distributions = {
        name: optuna.distributions.CategoricalDistribution(values)
        for name, values in program.space(config).items()
    }
    for point in config.points():
        study.add_trial(
            optuna.trial.create_trial(
                params=point, distributions=distributions, intermediate_values={0: 0.1, 1: 0.2},
                state=optuna.trial.TrialState.PRUNED,
            )
        )  # fmt: skip
    monkeypatch.setattr("pyg_mmrec.experiment.Experiment.run", lambda *_, **__: pytest.fail())
    program.search(config, study, "", trials=6, seed=0)
    assert states(study) == ["PRUNED"] * 6
    assert study.get_trials()[-1].intermediate_values == {0: 0.1, 1: 0.2}
