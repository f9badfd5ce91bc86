"""TensorBoard: one event file for each epoch, written without TensorFlow.

The package's own `EventFileWriter`, and torch's `SummaryWriter` on top of it, import TensorFlow
where it is installed and append to one file. Here each epoch is a file that is written atomically:
a resumed run replaces or removes files, and so holds no epoch twice and none in half.
"""

import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import Config
from kerasnorm.files import make_folder, write_bytes
from kerasnorm.training.run_folder import Row

if TYPE_CHECKING:
    from kerasnorm.training.loggers import EpochDetails
    from kerasnorm.training.run import Run

PREFIX = "events.out.tfevents."  # by which TensorBoard finds its files, which it reads in order
RESULTS = "results"  # ends the name of the last file; digits come before letters
BINS = 30  # of a histogram


class EventFiles:
    """The event files of one run, in the folder `tensorboard`; see `RunLog`.

    Tags say what their steps count: epochs (`epoch/`, `weights/`, `plots/`) or optimizer steps
    (`step/`).
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.folder = path / "tensorboard"

    def write(self, rows: Sequence[Row], details: "EpochDetails | None" = None) -> None:
        """Writes the files of epochs that are missing, and removes those of later epochs."""
        make_folder(self.folder)
        files = [self.folder / f"{PREFIX}{number:06d}" for number, _ in enumerate(rows, 1)]
        for stale in {*self.folder.glob(f"*{PREFIX}*")} - {*files}:
            stale.unlink()
        for number, (file, row) in enumerate(zip(files, rows, strict=True), 1):
            is_last = number == len(rows)
            if is_last and details is not None:
                _save(file, _scalars(row), *_details(number, details))
            elif not file.exists():
                _save(file, _scalars(row))

    def stop(self, *, has_failed: bool) -> None:
        """Does nothing: event files have no end."""

    def finish(self, run: "Run") -> None:
        """Writes the plots of the run."""
        _save(self.folder / (PREFIX + RESULTS), _images(run))


def _save(path: Path, *events: Any) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    content, now = io.BytesIO(), time.time()
    writer = RecordWriter(content)
    for event in (Event(file_version="brain.Event:2"), *events):
        event.wall_time = now
        writer.write(event.SerializeToString())
    write_bytes(path, content.getvalue())


def _event(step: int, values: Sequence[Any]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(step=step, summary=Summary(value=values))


def _scalars(row: Row) -> Any:
    """Returns the event of a row of the history."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    found = {name: value for name, value in row.items() if value is not None}
    values = [
        Summary.Value(tag=f"epoch/{name}", simple_value=value)
        for name, value in found.items()
        if name != "epoch"
    ]
    return _event(int(found["epoch"]), values)


def _details(epoch: int, details: "EpochDetails") -> Iterator[Any]:
    """Yields the events of an epoch's steps and of its weights."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    steps = zip(details.losses, details.rates, strict=True)
    for step, (loss, rate) in enumerate(steps, details.steps_before + 1):
        values = {"step/loss": loss, "step/lr": rate}
        yield _event(step, [Summary.Value(tag=t, simple_value=v) for t, v in values.items()])
    histograms = [
        Summary.Value(tag=f"weights/{name}", histo=_histogram(values))
        for name, values in details.weights.items()
    ]
    yield _event(epoch, histograms)


def _histogram(values: NDArray[Any]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    flat = values.astype(np.float64).ravel()
    counts, edges = np.histogram(flat, BINS)
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=flat.size,
        sum=flat.sum(),
        sum_squares=flat @ flat,
        bucket_limit=edges[1:],
        bucket=counts,
    )


def _images(run: "Run") -> Any:
    """Returns the event of the plots in a run's folder."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = []
    for path in sorted(run.plots_folder.glob("*.png")):
        with Image.open(path) as image:
            picture = Summary.Image(
                width=image.width,
                height=image.height,
                colorspace=len(image.getbands()),
                encoded_image_string=path.read_bytes(),
            )
        values.append(Summary.Value(tag=f"plots/{path.stem}", image=picture))
    return _event(len(run.history), values)
