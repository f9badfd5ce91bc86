"""Compares the estimate of a dry run with what then happens: `python scripts/estimate.py OPTIONS`.

OPTIONS are those of `kerasnorm compare`, without `--out` and `--dry-run`. The study is trained into
a temporary folder, and each of its runs is timed from its first event line to its last. Leave the
machine idle meanwhile. The exit code is 1 where the time of the study is not within a factor of 1.5
of the estimate. A study of a few minutes on each backend:

    python scripts/estimate.py --norm bn --norm gn --seeds 2 --epochs 3 --data cifar10
    python scripts/estimate.py --norm bn --norm gn --seeds 2 --epochs 3 --data cifar10 --jobs 2
    python scripts/estimate.py --norm bn --seeds 1 --epochs 3 --data cifar10 --backend tensorflow
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FACTOR = 1.5
EVENT = re.compile(r"run \d+/\d+  (\S+)  (running|done|failed)")


def main() -> None:
    """Prints the estimated and the measured seconds of each run and of the study."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*sys.argv[1:], "--out", str(Path(folder) / "study")]
        command = [sys.executable, "-m", "kerasnorm", "compare", *words]
        planned = subprocess.run(
            [*command, "--dry-run", "--json"], stdout=subprocess.PIPE, text=True, check=True
        )
        plan = json.loads(planned.stdout)
        begun: dict[str, float] = {}
        ended: dict[str, float] = {}
        start = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as study:
            assert study.stderr is not None
            for line in study.stderr:
                print(line, end="", flush=True)
                if event := EVENT.match(line):
                    now, (name, state) = time.monotonic(), event.groups()
                    begun.setdefault(name, now)
                    if state != "running":
                        ended[name] = now
        if study.returncode or len(ended) != len(plan["runs"]):
            sys.exit("The study failed.")
    print(f"{'':<40}{'estimate':>10}{'took':>10}{'ratio':>8}")
    for run in plan["runs"]:
        show(run["run"], run["seconds"], ended[run["run"]] - begun[run["run"]])
    took = max(ended.values()) - start
    show("the study, without its report", plan["seconds"], took)
    sys.exit(not 1 / FACTOR <= took / plan["seconds"] <= FACTOR)


def show(name: str, estimated: float, took: float) -> None:
    """Prints one line of the comparison."""
    print(f"{name:<40}{estimated:>8.1f} s{took:>8.1f} s{took / estimated:>8.2f}")


if __name__ == "__main__":
    main()
