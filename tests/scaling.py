"""Measures 1 and 2 processes on this machine, and estimates more: `python tests/scaling.py`.

Writes results/scaling.md. The two are run in turns, since a shared machine is never twice the same.
"""

import json
import os
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from helpers.workers import tf_configs

HERE = Path(__file__).parent
ENVIRONMENT = {
    "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
IMAGES, BATCH, ROUNDS = 1024, 128, 3
# Assumed for the estimate on paper: latency of one hop, and bytes a second of one link.
LINKS = {8: (10e-6, 200e9), 64: (25e-6, 25e9)}  # NVLink in a node; InfiniBand between nodes
PAPER = """On paper, a ring sum takes 2 (n-1) latencies and carries 2 (n-1)/n of the gradient's
bytes. Assumed, not measured: 10 us and 200 GB/s between the GPUs of a node (n = 8), 25 us and
25 GB/s between nodes (n = 64); all compute divides by n."""
VERDICT = """The bytes are nothing, the latency of the ring decides. Synchronized bn adds three
short sums a norm to a step: read its column with some thirty times the sum. Eight GPUs pay from
about 1 ms of compute a step; 64 beat eight only from some 30 ms on: this net needs batches of
thousands of images before a second node gives more than it costs."""


def worker(backend):
    """Trains in a rank of a group; the first prints its rate, a sum's seconds and its bytes."""
    from kerasnorm import runtime
    from kerasnorm.config import resolve
    from kerasnorm.data.shapes import shapes
    from kerasnorm.process_group import this_launch
    from kerasnorm.training.fit import make_engine

    runtime.start(backend, "cpu")
    from helpers import tiny

    from kerasnorm.engines.choice import join

    group = join(this_launch(), 1)
    config = resolve({"backend": backend, "norm": "gn", "epochs": 2, "batch_size": BATCH})
    engine = make_engine(config, shapes(IMAGES, 20), group)
    engine.train_epoch(0, tiny.Listener())
    start = time.perf_counter()
    engine.train_epoch(1, tiny.Listener())
    rate = IMAGES / (time.perf_counter() - start)
    is_torch_group = backend == "torch" and group.size > 1
    seconds, nbytes = time_sum(group, engine.model) if is_torch_group else (0.0, 0)
    if group.is_first:
        print(json.dumps([rate, seconds, nbytes]))
    group.leave()


def time_sum(group, model):
    """Returns the seconds that summing a gradient takes, and its bytes."""
    import torch

    gradient = torch.zeros(model.count_params())
    start = time.perf_counter()
    for _ in range(100):
        group.sum_(gradient)
    return (time.perf_counter() - start) / 100, gradient.nbytes


def measure(backend, processes):
    """Trains in 1 or 2 processes, one thread each, and returns what the first printed."""
    words = [str(HERE / "scaling.py"), backend]
    environments = [{}]
    if processes > 1 and backend == "torch":
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), *words]
    elif processes > 1:
        environments = [{"TF_CONFIG": text} for text in tf_configs(processes)]
    processes = [
        subprocess.Popen(
            [sys.executable, *words], env=os.environ | ENVIRONMENT | environment,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for environment in environments
    ]  # fmt: skip
    said = [rank.communicate()[0] for rank in processes]
    for rank in processes:
        if rank.returncode != 0:
            raise subprocess.CalledProcessError(rank.returncode, rank.args)
    return json.loads(said[0].strip().splitlines()[-1])


def estimate(step, size, nbytes):
    """Seconds of a step of the whole batch on `size` GPUs: a share of the work and one ring sum."""
    latency, bandwidth = LINKS[size]
    ring = 2 * (size - 1) * latency + 2 * (size - 1) / size * nbytes / bandwidth
    return step / size, ring


def race(backend):
    """Returns the medians of 1 and of 2 processes' rates and of their ratio, and a sum's facts."""
    pairs = [(measure(backend, 1), measure(backend, 2)) for _ in range(ROUNDS)]
    one, two = (statistics.median(pair[n][0] for pair in pairs) for n in (0, 1))
    ratio = statistics.median(b[0] / a[0] for a, b in pairs)
    return one, two, ratio, statistics.median(b[1] for _, b in pairs), pairs[0][1][2]


def main():
    races = {backend: race(backend) for backend in ("torch", "tensorflow")}
    one, _, _, sum_seconds, nbytes = races["torch"]
    text = (
        f"Written by `python tests/scaling.py`: `best`, gn, batch {BATCH} in all, on CPU, "
        f"one thread a process, {os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f} "
        f"(mean of a minute, at the end), {ROUNDS} rounds in turns, medians."
    )
    lines = [
        "# Several processes",
        "",
        *textwrap.wrap(text, 100, break_on_hyphens=False),
        "",
        *[
            f"- {backend}: 1 process {found[0]:.0f} images/s, 2 processes {found[1]:.0f}; "
            f"ratio {found[2]:.2f}."
            for backend, found in races.items()
        ],
        (
            f"- The sum of {nbytes / 1000:.0f} kB over 2 processes (torch, gloo): "
            f"{1e3 * sum_seconds:.2f} ms."
        ),
        "",
        *textwrap.wrap(PAPER, 100),
        "",
        "| compute of a step on one device | n | compute on n | sum | times faster |",
        "| --- | --- | --- | --- | --- |",
    ]
    steps = {"1 ms": 1e-3, "10 ms": 10e-3, "100 ms": 100e-3}
    steps[f"{1e3 * BATCH / one:.0f} ms, measured on a core here (torch)"] = BATCH / one
    for name, step in steps.items():
        for size in LINKS:
            shard, ring = estimate(step, size, nbytes)
            lines.append(
                f"| {name} | {size} | {1e3 * shard:.3f} ms | {1e3 * ring:.3f} ms | "
                f"{step / (shard + ring):.1f} |"
            )
    lines += [
        "",
        *textwrap.wrap(VERDICT, 100),
        "",
    ]
    (HERE.parent / "results" / "scaling.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    worker(sys.argv[1]) if len(sys.argv) > 1 else main()
