"""Times HSIC beside its textbook form, and measures the memory that both take.

One side is learned, of 64 channels; the other is a constant feature, as in a bottleneck between a
projection and the features it is made of. The textbook form makes the centring matrix and
multiplies with it twice, and leaves the gradient to autograd. Both must give the same value and
gradient. They take turns in one process, in random order, so that a busy moment of the machine
meets both alike; memory is measured in a run of its own::

    python benchmarks/hsic.py --threads 2
    python benchmarks/hsic.py --rows 1024 --features 512 --device cuda
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyg_mmrec.nn.losses import hsic

OURS, TEXTBOOK = "hsic", "textbook"


def textbook(x: Tensor, y: Tensor, variance: float = 0.25) -> Tensor:
    """The trace of the formula, as it is written."""
    n = x.size(0)
    centring = torch.eye(n, device=x.device) - 1 / n
    kernels = []
    for z in (x, y):
        z = torch.nn.functional.normalize(z)
        squared = z.square().sum(1)
        distance = squared[:, None] + squared - 2 * z @ z.t()
        kernels.append(torch.exp(-distance / (2 * variance)))
    k_x, k_y = kernels
    return torch.trace(k_x @ centring @ k_y @ centring) / (n - 1) ** 2


def forward(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x, y)


def both(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    x.grad = None
    value = function(x, y)
    value.backward()
    return value.detach()


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Most bytes of tensors that live at once while ``run`` runs, beside those before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler sees every allocation of torch; the process's own size would see its caches too.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(event["Total Allocated"] for event in memory) - before


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument(
        "--features", type=int, nargs="+", default=[64, 512, 4096], help="widths of the constant"
    )
    parser.add_argument("--channels", type=int, default=64, help="width of the learned side")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write the result to this JSON file too")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    contenders = {OURS: hsic, TEXTBOOK: textbook}
    passes = {"forward": forward, "forward + backward": both}
    rows: list[dict[str, object]] = []
    print(
        f"{options.channels} learned channels, {options.threads} threads, medians of "
        f"{options.repeats} on {options.device}; ratios are the textbook form's to ours"
    )
    print(f"{'rows':>5}{'features':>9}  {'':<20}{'ms':>9}{'ratio':>7}{'MiB':>9}{'ratio':>7}")
    for n in options.rows:
        for features in options.features:
            x = torch.randn(n, options.channels, generator=generator).to(options.device)
            y = torch.randn(n, features, generator=generator).to(options.device)
            x.requires_grad_()
            for name, run in passes.items():
                seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
                first: list[Tensor] = []
                for turn in range(options.repeats + 1):  # one to warm up
                    for position in torch.randperm(2, generator=generator).tolist():
                        contender = list(contenders)[position]
                        start = time.perf_counter()
                        value = run(contenders[contender], x, y)
                        if x.is_cuda:
                            torch.cuda.synchronize()
                        seconds[contender].append(time.perf_counter() - start)
                        if turn == 0:  # both have to agree
                            found = [value] if x.grad is None else [value, x.grad]
                            first = first or found
                            scale = float(first[-1].abs().max())
                            torch.testing.assert_close(found, first, rtol=1e-3, atol=1e-3 * scale)
                median = {k: float(torch.tensor(v[1:]).median()) for k, v in seconds.items()}
                x.grad = None
                memory = {}
                for contender, function in contenders.items():
                    # Arguments now: the loop's variables are others when a lambda is called later.
                    memory[contender] = peak_memory(
                        lambda run=run, function=function, x=x, y=y: run(function, x, y),
                        options.device,
                    )
                    x.grad = None
                row = {
                    "rows": n,
                    "features": features,
                    "pass": name,
                    "seconds": {k: v[1:] for k, v in seconds.items()},
                    "median_seconds": median,
                    "ratio": median[TEXTBOOK] / median[OURS],
                    "peak_bytes": memory,
                    "memory_ratio": memory[TEXTBOOK] / memory[OURS],
                }
                rows.append(row)
                print(
                    f"{n:>5}{features:>9}  {name:<20}{1e3 * median[OURS]:9.2f}{row['ratio']:7.1f}"
                    f"{memory[OURS] / 2**20:9.1f}{row['memory_ratio']:7.1f}"
                )
    result: dict[str, object] = {
        "config": vars(options),
        "rows": rows,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    return result


if __name__ == "__main__":
    main()
