"""The end of a run in a few lines."""

from pathlib import Path

from kerasnorm.cli.training import results

ROW = {
    "epoch": 3.0,
    "train_loss": 0.8421,
    "train_accuracy": 0.631,
    "val_loss": None,
    "val_accuracy": None,
    "test_loss": 0.7909,
    "test_accuracy": 0.719,
    "seconds": 41.23,
}


def test_the_last_epoch_counts():
    first = ROW | {"epoch": 2.0, "test_accuracy": 0.99}
    assert results([first, ROW], Path("results") / "runs").splitlines() == [
        "train      accuracy  63.10 %   loss 0.8421",
        "test       accuracy  71.90 %   loss 0.7909",
        "trained    2 epochs in 1:22",
        f"folder     {Path('results') / 'runs'}",
    ]


def test_validation_and_empty_history():
    row = ROW | {"val_loss": 0.81, "val_accuracy": 1.0}
    assert "validation accuracy 100.00 %   loss 0.8100" in results([row], Path("x"))
    assert "trained    1 epoch in 0:41" in results([ROW], Path("x"))
    assert results([], Path("x")).splitlines()[0] == "trained    0 epochs in 0:00"
