from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "ranking.py"


def test_benchmark_agrees_with_common_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    output = tmp_path / "ranking.json"
    sizes = "--users 80 --items 900 --interactions 600 --held-out 150 --channels 8 --repeats 1"
    main = runpy.run_path(str(BENCHMARK))["main"]
    result = main([*sizes.split(), "--threads", str(threads), "--output", str(output)])
    assert result["largest_metric_difference"] < 1e-6
    assert set(result["ratios"]) == set(result["seconds"]) and min(result["ratios"].values()) > 0
    assert "times as fast" in capsys.readouterr().out
    assert json.loads(output.read_text())["seconds"] == result["seconds"]


def test_benchmark_refuses_too_many_pairs() -> None:
    main = runpy.run_path(str(BENCHMARK))["main"]
    with pytest.raises(ValueError, match=r"pairs are too many for 10 users, 10 items"):
        main("--users 10 --items 10 --interactions 30 --held-out 5".split())
