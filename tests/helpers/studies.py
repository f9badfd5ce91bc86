"""Runs and studies that were never trained."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from kerasnorm.config import resolve, to_toml
from kerasnorm.study.plan import StudyPlan
from kerasnorm.study.summary import summarize
from kerasnorm.training import run_folder
from kerasnorm.training.run import Run

ABLATION = StudyPlan(
    norms=("bn", "gn"),
    backends=("torch",),
    seeds=(0, 1, 2),
    fixed={"recipe": "era8", "data": "cifar10", "optimizer": "adamw", "dropout": 0.0},
    vary={"optimizer": ("adamw", "sgd"), "dropout": (0.1, 0.2, 0.3), "groups": (2,)},
    one_at_a_time=True,
)


def make_run(accuracy, **fields) -> Run:
    config = resolve({"data": "cifar10", "backend": "torch", "recipe": "era8"} | fields)
    rows = [
        {"epoch": float(e), "lr": 0.01, "seconds": 2.0, "images_per_second": 500.0,
         "val_loss": None, "val_accuracy": None}
        | {f"{part}_accuracy": accuracy * e / 3 for part in ("train", "test")}
        | {f"{part}_loss": 3 - accuracy * e / 3 for part in ("train", "test")}
        for e in (1, 2, 3)
    ]  # fmt: skip
    metrics = {
        "class_names": ["cat", "dog", "ship"],
        "confusion": [[8, 1, 1], [0, 10, 0], [0, 0, 10]],
        "misclassified": [{"index": 1, "true": 0, "predicted": 1, "confidence": 0.9}],
        "test_accuracy": accuracy,
        "train_accuracy": accuracy - 0.02,
        "test_loss": 1 - accuracy,
        "train_loss": 1.0,
        "parameters": 123,
        "steps_per_epoch": 7,
        "seconds": 6.0,
        "data": {"name": "cifar10"},
    }
    model = config.model
    path = Path(f"{model.norm}-{model.ln_affine}-s{config.train.seed}")
    return Run(path, config, tuple(rows), metrics)


RUNS = [
    *(make_run(a, norm="bn", seed=s) for s, a in enumerate((0.80, 0.82, 0.81))),
    *(make_run(a, norm="gn", seed=s) for s, a in enumerate((0.79, 0.808, 0.80))),
    *(make_run(a, norm="ln", seed=s, ln_affine="element") for s, a in ((1, 0.78), (2, 0.79))),
    make_run(0.77, norm="ln", seed=0),
]


def ablation_runs():
    """Runs of `ABLATION`: bn loses 0.4, 0.2 and 0.3 points by sgd; gn has validation scores too."""
    bases = {"bn": (0.80, 0.82, 0.81), "gn": (0.70, 0.72, 0.71)}
    losses = {
        ("bn", "optimizer"): (0.004, 0.002, 0.003),
        ("bn", "dropout"): (0.0, 0.01, 0.02),
        ("gn", "optimizer"): (-0.1, -0.1, -0.1),
        ("gn", "dropout"): (0.02, 0.02, 0.03),
        ("gn", "groups"): (0.01, 0.01, 0.01),
    }
    for config, change in zip(
        ABLATION.configs().values(), ABLATION.changes().values(), strict=True
    ):
        norm, seed = config.model.norm, config.train.seed
        loss = losses[norm, *change][seed] if change else 0.0
        run = make_run(bases[norm][seed] - loss, norm=norm)
        if norm == "gn":
            run.metrics["val_accuracy"] = 0.9 - 2 * loss
        yield replace(run, config=config)


def summarize_ablation(runs=None):
    return summarize(
        list(ablation_runs()) if runs is None else runs, tuple(ABLATION.vary), ABLATION
    )


def place(path, config, *, finished=True, content=None):
    """Writes what a finished, or a begun, run leaves behind; `content` is that of its data."""
    path.mkdir(parents=True)
    (path / run_folder.CONFIG).write_text(to_toml(config))
    done = make_run(0.5, norm="bn")
    run_folder.write_history(path / run_folder.HISTORY, list(done.history))
    if content is not None:
        (path / run_folder.ENVIRONMENT).write_text(json.dumps({"data": asdict(content)}))
    if finished:
        (path / run_folder.METRICS).write_text(json.dumps(done.metrics))
