"""Exports a model: writes it, opens it in its runtime, compares it with Keras, puts it in place."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnorm.data import Split
from kerasnorm.errors import CorruptFileError, KerasnormError, RunFolderError
from kerasnorm.files import read_text, write_json
from kerasnorm.formats import FORMATS, archive, litert
from kerasnorm.formats.archive import SavedModel, save_model
from kerasnorm.formats.exported import checksums, metadata_path
from kerasnorm.formats.format import Format
from kerasnorm.formats.safety.process import FileProcess
from kerasnorm.inspection.evaluation import score
from kerasnorm.inspection.graph import call_again, functional_graph
from kerasnorm.inspection.outputs import as_logits, check_finite, probe_images
from kerasnorm.keras_settings import stock_keras
from kerasnorm.layers import portable
from kerasnorm.progress import in_percent
from kerasnorm.runtime import installed_backends
from kerasnorm.tables import Table
from kerasnorm.version import __version__

logger = logging.getLogger(__name__)
INT8 = "litert-int8"
BATCHES = (1, 7, 256)
TOLERANCE = 1e-4  # of a difference of logits, relative to their standard deviation
ROUNDING = 1e-5  # of a logit, relative to the largest: nearly equal logits have digits in common

Images = NDArray[np.uint8]
Outputs = NDArray[np.float32]


@dataclass
class Export:
    """One exported model.

    Attributes:
        format: Name of its format; "litert-int8" if it is quantized.
        path: File or folder.
        made_on: Backend that wrote it, "" where none in particular was needed.
        writer: Version of each package that wrote it, by name.
        runtime: What opened it again.
        differences: Largest difference from Keras's logits for each batch size.
        bytes: Size of all its files.
        milliseconds: Median time of a single image in its runtime, on one thread.
        accuracy: Its accuracy on the test images in its runtime, 0 to 1; None if not measured.
        keras_accuracy: Accuracy of the Keras model, where it is known.
        companions: Further files beside `path` that belong to it.
    """

    format: str
    path: Path
    made_on: str
    writer: dict[str, str]
    runtime: str
    differences: dict[int, float] = field(default_factory=dict)
    bytes: int = 0
    milliseconds: float | None = None
    accuracy: float | None = None
    keras_accuracy: float | None = None
    companions: list[Path] = field(default_factory=list)

    @property
    def place_text(self) -> str:
        """Its path, and the names of its companions."""
        return " and ".join([str(self.path), *(path.name for path in self.companions)])

    @property
    def writer_text(self) -> str:
        """The packages that wrote it, with their versions."""
        return ", ".join(f"{name} {version}" for name, version in self.writer.items())

    @property
    def max_difference(self) -> float:
        """Largest difference from Keras's logits over all batch sizes."""
        return max(self.differences.values())


def export_table(exports: Sequence[Export]) -> Table:
    """Returns the table that compares exported models: size, time, difference and accuracy."""
    columns: tuple[str, ...] = ("format", ">kB", ">ms", ">difference")
    rows: list[tuple[str, ...]] = [
        (
            one.format,
            f"{one.bytes / 1000:,.0f}",
            "-" if one.milliseconds is None else f"{one.milliseconds:.2f}",
            f"{one.max_difference:.1e}",
        )
        for one in exports
    ]
    batches = ", ".join(map(str, BATCHES))
    notes = [
        "ms: median time of one image in the format's own runtime, on one thread.",
        f"difference: the largest one from Keras's logits, at batches of {batches} images.",
    ]
    scores = [one.accuracy for one in exports]
    if known := [score for score in scores if score is not None]:
        columns = (*columns, ">accuracy %")
        cells = ["-" if score is None else in_percent(score) for score in scores]
        rows = [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
    before = exports[0].keras_accuracy
    if known and before is not None:
        notes.append(f"accuracy: on the test images, where Keras has {in_percent(before)} %.")
    return Table(columns, rows, notes=notes, title="Exports")


def tolerated(logits: Outputs) -> float:
    """Returns how far an exported model's logits may lie from these of Keras (N, classes)."""
    return float(TOLERANCE * logits.std() + ROUNDING * np.abs(logits).max())


@stock_keras
def _on_float_pixels(model: keras.Model) -> keras.Model:
    """Returns a model of the same layers that takes its pixels as float32, as every export does.

    `Exporter` compares the outputs of the two: pixels are exact in each type, but layers may
    compute otherwise with whole numbers.
    """
    pixels = model.inputs[0]
    if pixels.dtype == "float32":
        return model
    logger.info(f"Exports take pixels as float32, in place of the model's {pixels.dtype}.")
    floats = keras.Input(pixels.shape[1:], name=pixels.name, dtype="float32")
    return keras.Model(floats, call_again(functional_graph(model), floats), name=model.name)


class Exporter:
    """Exports one model to several formats; use it in a `with` block."""

    def __init__(
        self,
        saved: SavedModel,
        out: Path,
        accuracy: float | None,
        test: Split | None = None,
    ) -> None:
        self.saved, self.out, self.accuracy, self.test = saved, out, accuracy, test
        self._stack = ExitStack()
        self._processes: dict[str, FileProcess] = {}

    def __enter__(self) -> Self:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=".exporting-", dir=self.out)
        except OSError as error:
            raise RunFolderError(
                f"Cannot write into {self.out}: {error.strerror}. Choose another --out."
            ) from None
        self._folder = Path(folder)
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _prepare(self) -> None:
        self._source = self._folder / "source.keras"
        config, plain = self.saved.config, portable(self.saved.model)
        model = _on_float_pixels(plain)
        metadata: dict[str, Any] = {"class_names": list(self.saved.class_names)}
        metadata |= {"kerasnorm": __version__}
        if self.saved.input_scale is not None:
            metadata[archive.INPUT_SCALE] = self.saved.input_scale
        save_model(model, self._source, metadata | ({"config": config.to_dict()} if config else {}))
        self._images = probe_images(self.saved.image_shape, BATCHES[-1])
        self._expected = {n: self._predict(plain, self._images[:n]) for n in BATCHES}
        for outputs in self._expected.values():
            check_finite(outputs, self.saved.path)
        self._limit = tolerated(self._logits(self._expected[BATCHES[-1]]))
        if self.test is not None:
            self.accuracy = score(self.saved.predict(self.test.images), self.test.labels).accuracy

    def _logits(self, outputs: Outputs) -> Outputs:
        kind = self.saved.kind
        return outputs if kind == "other" else as_logits(outputs, kind)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    @stock_keras
    def _predict(model: keras.Model, images: Images) -> Outputs:
        outputs = model.predict(images, batch_size=len(images), verbose=0)
        return np.asarray(outputs, np.float32)

    def _process(self, name: str, backend: str | None = None) -> FileProcess:
        """Returns the process of that name; `backend` is the Keras backend of a new one."""
        if name not in self._processes:
            self._processes[name] = self._stack.enter_context(FileProcess(backend))
        return self._processes[name]

    def _keras_on(self, backend: str) -> FileProcess:
        return self._process(f"keras on {backend}", backend)

    def export(self, name: str) -> Export:
        """Exports to one format, and puts it in place once it agrees with Keras.

        Where one backend cannot write a file that agrees, the next one writes it.

        Raises:
            KerasnormError: It cannot be written, or does not agree.
        """
        entry, failures = FORMATS[name], list[KerasnormError]()
        path, writers = self._new_path(entry), entry.usable_writers()
        for backend in writers:
            try:
                logger.info(f"{name}: writing{f' on {backend}' if backend else ''} …")
                if backend is None:
                    entry.write(self._source, path)
                else:
                    self._keras_on(backend).do("write", self._source, format=name, out=path)
                return self._checked(name, path, entry, backend)
            except KerasnormError as error:
                failures.append(error)
                if len(writers) > 1:
                    logger.info(str(error))
        raise failures[0]

    def _checked(self, name: str, path: Path, entry: Format, backend: str | None) -> Export:
        """Returns the export that was written to `path`, measured in its runtime and in place."""
        done = Export(
            name,
            path,
            backend or "",
            entry.written_with(backend),
            entry.runtime,
            keras_accuracy=self.accuracy,
        )
        processes = [self._process(entry.name)]
        if entry is archive.FORMAT:
            here = keras.backend.backend()
            others = [one for one in installed_backends() if one != here] or [here]
            done.runtime = f"Keras on {', '.join(others)}"
            processes = [self._keras_on(one) for one in others]
        facts: dict[str, Any] = {}
        for process in processes:
            try:
                facts = process.do("open", path, format=entry.name, is_ours=True)
            except CorruptFileError as error:
                reason = str(error).removeprefix(f"{path} ")
                raise KerasnormError(
                    f"{name}: what was written does not open in {done.runtime}: {reason}. "
                    "Nothing was kept; try another --format."
                ) from None
            if facts["batch"] and name != INT8:
                raise KerasnormError(
                    f"{name}: expected a free batch size. Received: {facts['batch']}. Nothing was "
                    "written."
                )
            self._measure(process, done)
        return self._place(done, entry, facts)

    def _measure(self, process: FileProcess, done: Export) -> None:
        """Records the largest difference from Keras's logits, time of an image, and accuracy."""
        for n, expected in self._expected.items():
            outputs = process.run(done.path, self._images[:n])
            if outputs.shape != expected.shape:
                raise KerasnormError(
                    f"{done.format}: expected outputs {expected.shape}. Received: {outputs.shape}"
                )
            difference = float(np.max(np.abs(self._logits(outputs) - self._logits(expected))))
            if done.format != INT8 and not difference <= self._limit:
                raise KerasnormError(
                    f"{done.format}: expected Keras's logits to {self._limit:.2g}, {TOLERANCE:g} "
                    f"of their standard deviation. Received: a difference of {difference:.2g} at "
                    f"batch {n}. Nothing was written."
                )
            done.differences[n] = max(done.differences.get(n, 0.0), difference)
        done.milliseconds = process.do("latency", done.path)
        if self.test is not None:
            outputs = process.run(done.path, self.test.images)
            check_finite(outputs, done.path.name)
            logits = as_logits(outputs, self.saved.kind, done.path.name)
            done.accuracy = score(logits, self.test.labels).accuracy

    def quantize(self, calibration: Images) -> Export:
        """Exports to LiteRT in int8.

        Ranges are taken from `calibration`, raw training images (N, H, W, C).

        Raises:
            KerasnormError: It cannot be written.
        """
        entry = litert.FORMAT
        backend, path = entry.usable_writers()[0] or "", self._new_path(entry, "-int8")
        file = self._folder / "calibration.npy"
        np.save(file, calibration)
        logger.info(f"{INT8}: writing, from {len(calibration)} images …")
        self._keras_on(backend).do(
            "write", self._source, format=entry.name, out=path, calibration=file
        )
        return self._checked(INT8, path, entry, backend)

    def _new_path(self, entry: Format, ending: str = "") -> Path:
        """Returns where to write a model before it is put in place.

        Raises:
            RunFolderError: Its place holds something else than an earlier export, which has its
                metadata beside it.
        """
        made = self._folder / f"{self.saved.path.stem}{ending}{entry.suffix}"
        place = self.out / made.name
        if place.exists() and place.samefile(self.saved.path):
            raise RunFolderError(f"{place} is the model itself. Choose another --out.")
        for path in (place, *entry.files(place)):
            if path.exists() and not metadata_path(place).is_file():
                raise RunFolderError(
                    f"{path} is in the way: it is no export, for {metadata_path(place).name} is "
                    "not beside it. Choose another --out, or move it."
                )
        return made

    def _place(self, done: Export, entry: Format, facts: dict[str, Any]) -> Export:
        """Moves an export to its place and writes its metadata."""
        self._note_other_writer(done)
        made = [done.path] if done.path.is_dir() else entry.files(done.path)
        for path in made:
            place = self.out / path.name
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(path, place)
        done.path = self.out / done.path.name
        done.companions = [self.out / path.name for path in made if path.name != done.path.name]
        done.bytes = sum(file.stat().st_size for file in entry.files(done.path))
        write_json(metadata_path(done.path), self._metadata(done, entry, facts))
        return done

    def _note_other_writer(self, done: Export) -> None:
        """Warns where an export takes the place of one that other packages wrote."""
        try:
            document = json.loads(read_text(metadata_path(self.out / done.path.name)))
            before = ", ".join(document["writer"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if before != (now := ", ".join(done.writer)):
            logger.warning(
                f"{done.format}: the earlier file was written by {before}, this one by {now}."
            )

    def _metadata(self, done: Export, entry: Format, facts: dict[str, Any]) -> dict[str, Any]:
        saved = self.saved
        is_int8 = done.format == INT8
        accuracy = done.keras_accuracy if done.accuracy is None and not is_int8 else done.accuracy
        metadata = {
            "format": done.format,
            "runtime": done.runtime,
            "classes": list(saved.class_names),
            "input": {
                "shape": [None, *saved.image_shape],
                "layout": "N, H, W, C; N is free",
                "dtype": facts["dtype"],
                "range": [0, 255],
                "name": facts["input_name"],
                archive.INPUT_SCALE: saved.input_scale,
                "equalized": saved.wants_equalized,
                "quantization": facts["quantization"],
            },
            "output": {"shape": [None, len(saved.class_names)], "kind": saved.kind},
            "parameters": saved.model.count_params(),
            "accuracy": accuracy,
            "max_difference": {str(n): value for n, value in done.differences.items()},
            "made_on": done.made_on,
            "writer": done.writer,
            "kerasnorm": __version__,
            "sha256": checksums(done.path, entry),
        }
        if is_int8:
            metadata["accuracy_before_quantization"] = done.keras_accuracy
        if saved.config is not None:
            metadata["config"] = saved.config.to_dict()
        return metadata
