"""Races the engines on the applications of Keras: `python scripts/race_networks.py`.

Each network keeps its own norms, and `kerasnorm bench` races it against `model.fit` on torch and on
TensorFlow. The table is written to results/bench/networks.csv, a row as soon as it is measured; a
network that Keras cannot build on a backend has the reason instead of numbers. It takes 45
minutes on two cores: leave the machine idle meanwhile.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from kerasnorm.benchmark.race import paired_ratio

RESULTS = Path(__file__).parents[1] / "results" / "bench" / "networks.csv"
RESNET20 = "docs/examples/resnet20.py:build"
APPLICATIONS = (
    *("MobileNetV2", "MobileNetV3Small", "MobileNet", "EfficientNetB0", "EfficientNetV2B0"),
    *("ResNet50", "ResNet50V2", "DenseNet121", "InceptionV3", "Xception", "ConvNeXtTiny"),
    *("NASNetMobile", "VGG16"),
)
SIZE = ("--side", "64", "--batch-size", "32", "--images", "128")
QUICK = (*SIZE[:-1], "512")
LARGER = ("--side", "80", *SIZE[2:])  # the least that these two take is 75 and 71
RACES = {
    RESNET20: ("--batch-size", "128", "--images", "640"),
    **{f"keras:{name}": SIZE for name in APPLICATIONS},
    **{f"keras:{name}": QUICK for name in ("MobileNet", "MobileNetV2", "MobileNetV3Small")},
    **{f"keras:{name}": LARGER for name in ("InceptionV3", "Xception")},
}
ROUNDS = "3"
COLUMNS = (
    *(
        "network",
        "backend",
        "model.fit images/s",
        "kerasnorm images/s",
        "ratio",
        "least",
        "largest",
    ),
    *("predict ratio", "model.fit peak MiB", "kerasnorm peak MiB", "processor", "note"),
)


def main() -> None:
    """Races each network on each backend, and writes the table."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS, restval="")
        rows.writeheader()
        for network, size in RACES.items():
            for backend in ("torch", "tensorflow"):
                row = {"network": network, "backend": backend, **race(network, backend, size)}
                print(row, flush=True)
                rows.writerow(row)
                file.flush()


def race(network: str, backend: str, size: tuple[str, ...]) -> dict[str, Any]:
    """Returns the columns of one race."""
    words = [sys.executable, "-m", "kerasnorm", "bench", "--network", network, *size]
    words += ["--backend", backend, "--rounds", ROUNDS, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    document = {"results": []} if done.returncode else json.loads(done.stdout)
    found = {result["contender"]: result for result in document["results"]}
    if not {"stock", "native"} <= found.keys():
        return {"note": done.stderr.strip().splitlines()[-1]}
    stock, native = found["stock"], found["native"]
    ratios = [a / b for a, b in zip(native["train"], stock["train"], strict=True)]
    return {
        "model.fit images/s": round(median(stock["train"])),
        "kerasnorm images/s": round(median(native["train"])),
        "ratio": f"{paired_ratio(native['train'], stock['train']):.2f}",
        "least": f"{min(ratios):.2f}",
        "largest": f"{max(ratios):.2f}",
        "predict ratio": f"{paired_ratio(native['predict'], stock['predict']):.2f}",
        "model.fit peak MiB": round(stock["peak_mib"]),
        "kerasnorm peak MiB": round(native["peak_mib"]),
        "processor": f"{document['host']['processor']}, {document['host']['cpus']} cores",
    }


if __name__ == "__main__":
    main()
