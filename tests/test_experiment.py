import pytest
import torch

from pyg_mmrec.experiment import Experiment
from pyg_mmrec.training import Trainer


def test_options_of_several_methods():
    options = {"method.fib.weight": 3, "method.gib.weight": "0", "method.temperature": "0.5"}
    experiment = Experiment("VLATTICE", "planted-tiny", method="gib+fib", options=options)
    assert experiment.config()["options"]["method.fib.weight"] == "3"  # as from the command line
    gib, fib = experiment.objective(experiment.load()).methods
    assert (fib.weight, gib.weight, gib.temperature) == (3.0, 0.0, 0.5)


def test_an_unusable_folder_is_found_before_training(monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *args: pytest.fail("it trained"))
    with pytest.raises(OSError, match="is a file, but a run needs a folder"):
        Experiment("LightGCN", "planted-tiny").run(__file__, progress=False)


def test_features_are_scaled_on_request():
    plain, scaled = (
        Experiment("VBPR", "planted-tiny", options=options).load()
        for options in ({}, {"data.scale_features": "l2"})
    )
    for name in ("image", "text"):
        unit = plain[name].x / plain[name].x.norm(dim=1, keepdim=True)
        torch.testing.assert_close(scaled[name].x, unit)
    with pytest.raises(ValueError, match="needs to be one of"):
        Experiment("VBPR", "planted-tiny", options={"data.scale_features": "log"}).load()


def test_features_are_probed_on_request():
    def features(seed=0, **options):
        named = {f"data.{name}": value for name, value in options.items()}
        data = Experiment("VBPR", "planted-tiny", options=named, seed=seed).load()
        return data["image"].x, data["text"].x

    image, text = features()
    width = image.size(1)
    noisy, _ = features(feature_noise="0.5", scale_features="max_abs")
    difference = noisy - image / image.abs().max()  # scaled first: the noise has its own unit
    assert difference.std().item() == pytest.approx(0.5, rel=0.05)
    again, _ = features(feature_noise="0.5", scale_features="max_abs")
    other, _ = features(feature_noise="0.5", scale_features="max_abs", seed=1)
    assert torch.equal(noisy, again) and not torch.equal(noisy, other)

    wide, moved = features(visual_redundancy="image", text_redundancy="text")
    assert wide.size(1) == width + 1024 and torch.equal(wide[:, :width], image)
    changed = (moved != text).any(1).sum().item()
    assert changed == text.size(0) // 2
    both, _ = features(feature_noise="0.5", visual_redundancy="image")
    noise = (both[:, :width] - image) / 0.5  # another draw than the columns', |1 + 3 x|
    drawn = both[:, width : 2 * width]
    both = torch.stack([(1 + 3 * noise).abs().flatten(), drawn.flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.1
    narrow, same = features(
        **{"visual_redundancy": "image", "visual_redundancy.num_zero_columns": "3"},
        **{"feature_noise": "0.5", "feature_noise.modalities": "image"},
    )
    assert narrow.size(1) == width + 515 and torch.equal(same, text)
    with pytest.raises(ValueError, match="'data.text_redundancy.strength' goes with 'data.text_r"):
        features(**{"text_redundancy.strength": "0.1"})
    with pytest.raises(ValueError, match="there are .*data.text_redundancy.strength"):
        features(**{"text_redundancy.power": "0.1"})
    with pytest.raises(ValueError, match="audio"):
        features(visual_redundancy="audio")
    with pytest.raises(ValueError, match="'std' needs to be a finite number of at least 0"):
        Experiment("VBPR", "planted-tiny", options={"data.feature_noise": "-1"})
