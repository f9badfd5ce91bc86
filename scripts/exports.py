"""Writes the tables of results/exports: `make exports`, or `python scripts/exports.py all`.

Trains every norm for a moment on each backend, exports it to every format, and records the largest
difference from Keras, the size of the file and the time per image. Then exports the gn model of
`results/best` and measures each format on the CIFAR-10 test set, with `kerasnorm evaluate`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kerasnorm.config import resolve

RESULTS = Path(__file__).parent.parent / "results"
TABLES = RESULTS / "exports"
COLUMNS = (
    "trained_on",
    "norm",
    "format",
    "made_on",
    "max_difference",
    "bytes",
    "milliseconds",
)
TRAINING = {
    "data": "shapes",
    "train_size": 512,
    "test_size": 100,
    "epochs": 1,
    "batch_size": 64,
    "device": "cpu",
    "engine": "keras",
    "weight_standardization": False,
}
VARIANTS: dict[str, dict[str, object]] = {
    "bn": {},
    "gn": {},
    "gn, kernels standardized": {"weight_standardization": True},
    "ln": {},
    "ln, affine by element": {"ln_affine": "element"},
    "lnc": {},
    "in": {},
    "rms": {},
    "none": {},
}


def kerasnorm(*words: str) -> str:
    """Runs a command of kerasnorm and returns its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "kerasnorm", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def export_all(backend: str, folder: Path) -> None:
    """Exports the models in `folder`; this process must run the backend that trained them."""
    from kerasnorm import runtime

    runtime.start(backend, "cpu")
    from kerasnorm.formats import FORMATS
    from kerasnorm.formats.archive import open_model
    from kerasnorm.formats.export import Exporter
    from kerasnorm.progress import console_notes

    rows: list[dict[str, object]] = []
    with console_notes():
        for name in VARIANTS:
            saved = open_model(folder / name)
            with Exporter(saved, folder / name / "exports", None) as exporter:
                for format_name in FORMATS:
                    done = exporter.export(format_name)
                    facts = {column: getattr(done, column, "") for column in COLUMNS}
                    rows.append(facts | {"trained_on": backend, "norm": name})
            write_csv(
                TABLES / f"{backend}.csv", rows
            )  # after each norm, because all of them take long


def measure(backend: str) -> None:
    """Trains and exports every norm on one backend, in this process."""
    from kerasnorm.training.fit import fit

    with tempfile.TemporaryDirectory() as folder:
        for name, options in VARIANTS.items():
            settings = TRAINING | {"backend": backend, "norm": name.split(",")[0]} | options
            fit(resolve(settings), out=Path(folder) / name, plots=False)
        export_all(backend, Path(folder))


def accuracies() -> None:
    """Writes the accuracy of every export of a trained model on the CIFAR-10 test set."""
    run = str(RESULTS / "best" / "runs" / "gn-torch-s0")
    with tempfile.TemporaryDirectory() as folder:
        words = ["--format", "all", "--quantize", "int8", "--data", "cifar10", "--out", folder]
        done = json.loads(kerasnorm("export", run, *words, "--json"))
        keras = json.loads(kerasnorm("evaluate", run, "--data", "cifar10", "--json"))
        rows = [{"format": "the run itself"} | keras]
        for entry in done:
            scores = kerasnorm("evaluate", entry["path"], "--data", "cifar10", "--json")
            rows.append({"format": entry["format"]} | json.loads(scores))
            write_csv(TABLES / "accuracy.csv", rows)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes a CSV file with a header; the first row's keys are the columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def machine() -> None:
    """Records the machine and the versions beside the tables."""
    from importlib import metadata

    from kerasnorm import runtime

    packages = ("onnx", "tf2onnx", "onnxruntime", "ai-edge-litert", "openvino", "safetensors")
    versions = runtime.versions() | {name: metadata.version(name) for name in packages}
    facts = {"host": runtime.host(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    text = json.dumps(facts | {"versions": versions}, indent=2)
    (TABLES / "machine.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Runs the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("torch", "tensorflow", "accuracy", "all"))
    what = parser.parse_args().what
    if what == "all":
        for part in ("torch", "tensorflow", "accuracy"):
            command = [sys.executable, __file__, part]  # a process holds one backend
            subprocess.run(command, check=True)
    elif what == "accuracy":
        accuracies()
    else:
        machine()
        measure(what)


if __name__ == "__main__":
    main()
