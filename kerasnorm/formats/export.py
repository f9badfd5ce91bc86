"""Exports a model: made, opened again in its runtime, compared with Keras, then put in place."""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import kerasnorm
from kerasnorm.data import Split
from kerasnorm.errors import ConfigError, CorruptFileError, KerasnormError, RunFolderError
from kerasnorm.files import write_json
from kerasnorm.formats import state_dict
from kerasnorm.formats.archive import SavedModel, save_model
from kerasnorm.formats.formats import FORMATS, Format
from kerasnorm.formats.helper import Helper, Helpers
from kerasnorm.formats.metadata import card_path, checksums, parts
from kerasnorm.formats.opening import run
from kerasnorm.inspection.evaluation import score
from kerasnorm.inspection.outputs import as_logits, check_finite, probe_images
from kerasnorm.keras_settings import stock_keras
from kerasnorm.network import portable
from kerasnorm.runtime import installed_backends

logger = logging.getLogger(__name__)
BATCHES = (1, 7, 256)
TOLERANCE = 1e-4  # absolute, and relative for logits above 1

Images = NDArray[np.uint8]
Outputs = NDArray[np.float32]


@dataclass(frozen=True)
class Quantization:
    """What int8 needs: images to take the ranges from, and images to judge it on.

    Attributes:
        calibration: Raw training images, (N, H, W, C).
        test: Images with labels.
    """

    calibration: Images
    test: Split


@dataclass
class Export:
    """One exported model.

    Attributes:
        format: Its name; "litert-int8" where it was quantized.
        path: The file or folder.
        made_on: The backend that made it, "" where none was needed.
        runtime: What opened it again.
        differences: Batch size → largest difference from Keras's outputs.
        bytes: Size of all its files.
        milliseconds: Median time of a single image in its runtime.
        accuracy: That of the model, 0 to 1, where it is known.
        quantized_accuracy: That of the quantized file, on the same images.
    """

    format: str
    path: Path
    made_on: str
    runtime: str
    differences: dict[int, float]
    bytes: int = 0
    milliseconds: float | None = None
    accuracy: float | None = None
    quantized_accuracy: float | None = None

    @property
    def max_difference(self) -> float:
        """The largest difference from Keras's outputs over all batch sizes."""
        return max(self.differences.values())


class Exporter:
    """Exports one model to several formats; use it in a `with` block.

    Args:
        saved: The model.
        out: Folder of the exports.
        accuracy: Of the model on its test set, where it is known.
        helpers: Processes to use, of several exporters together; by default its own.
    """

    def __init__(
        self,
        saved: SavedModel,
        out: Path,
        accuracy: float | None,
        helpers: Helpers | None = None,
    ) -> None:
        self.saved, self.out, self.accuracy = saved, out, accuracy
        self._stack = ExitStack()
        self._helpers = helpers or self._stack.enter_context(Helpers())

    def __enter__(self) -> "Exporter":
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
        model = portable(self.saved.model)
        save_model(model, self._source, self._keras_card())
        self._images = probe_images(self.saved.image_shape, BATCHES[-1])
        self._expected = {n: self._predict(model, self._images[:n]) for n in BATCHES}
        for outputs in self._expected.values():
            check_finite(outputs, self.saved.path)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    @stock_keras
    def _predict(model: keras.Model, images: Images) -> Outputs:
        outputs = model.predict(images, batch_size=len(images), verbose=0)
        return np.asarray(outputs, np.float32)

    def _keras_card(self) -> dict[str, Any]:
        config = self.saved.config
        facts = {"class_names": list(self.saved.class_names), "kerasnorm": kerasnorm.__version__}
        return facts | ({"config": config.to_dict()} if config else {})

    def _on(self, backend: str | None) -> Helper:
        return self._helpers.get(f"keras on {backend}", backend)

    def export(self, name: str) -> Export:
        """Exports to one format, and puts it in place once it agrees with Keras.

        Raises:
            KerasnormError: It cannot be made, or does not agree.
        """
        entry = FORMATS[name]
        backend = entry.maker()
        made = self._folder / f"{self.saved.path.stem}{entry.suffix}"
        self._check_place(self.out / made.name, entry)
        logger.info(f"{name}: writing{f' on {backend}' if backend else ''} …")
        if name == "keras":
            shutil.copyfile(self._source, made)
        elif name == "state-dict":
            state_dict.write(portable(self.saved.model), made)
        else:
            self._on(backend).ask("make", self._source, format=name, out=str(made))
        done = Export(name, made, backend or "", entry.runtime, {}, accuracy=self.accuracy)
        facts = {"keras": self._verify_keras, "state-dict": self._verify_module}.get(
            name, self._verify
        )(done)
        return self._place(done, entry, facts)

    def _verify(self, done: Export) -> dict[str, Any]:
        """Opens an export in its runtime and runs it at every batch size."""
        helper = self._helpers.get(done.format)
        try:
            facts: dict[str, Any] = helper.ask("open", done.path, format=done.format)
        except CorruptFileError as error:
            reason = str(error).removeprefix(f"{done.path} ").removeprefix("is damaged: ")
            raise KerasnormError(
                f"{done.format}: what was written does not open in {done.runtime}: {reason}. "
                "Nothing was kept; try another --format."
            ) from None
        for n in BATCHES:
            outputs, _ = run(helper, "run", done.path, self._images[:n])
            self._compare(done, n, outputs)
        done.milliseconds = helper.ask("latency", done.path)
        return facts

    def _verify_module(self, done: Export) -> dict[str, Any]:
        helper = self._helpers.get(done.format)
        for n in BATCHES:
            outputs, took = run(helper, "run_module", done.path, self._images[:n])
            self._compare(done, n, outputs)
            done.milliseconds = took
        return {"dtype": "float32", "input_name": self.saved.model.inputs[0].name}

    def _verify_keras(self, done: Export) -> dict[str, Any]:
        """Opens the file in Keras on every other backend that is installed."""
        here = keras.backend.backend()
        others = [name for name in installed_backends() if name != here] or [here]
        done.runtime = f"Keras on {', '.join(others)}"
        facts: dict[str, Any] = {}
        for backend in others:
            helper = self._on(backend)
            facts = helper.ask("open", done.path, format="keras")
            for n in BATCHES:
                outputs, _ = run(helper, "run", done.path, self._images[:n])
                self._compare(done, n, outputs)
            done.milliseconds = helper.ask("latency", done.path)
        return facts

    def _compare(self, done: Export, n: int, outputs: Outputs) -> None:
        """Notes the largest difference of a batch.

        Raises:
            KerasnormError: It is too large.
        """
        expected = self._expected[n]
        if outputs.shape != expected.shape:
            raise KerasnormError(
                f"{done.format}: expected outputs {expected.shape}. Received: {outputs.shape}"
            )
        difference = float(np.max(np.abs(outputs - expected)))
        is_close = np.allclose(outputs, expected, rtol=TOLERANCE, atol=TOLERANCE)
        if not is_close:
            raise KerasnormError(
                f"{done.format}: expected Keras's outputs to {TOLERANCE:g}. Received: a difference "
                f"of {difference:.2g} at batch {n}. Nothing was written."
            )
        done.differences[n] = max(done.differences.get(n, 0.0), difference)

    def quantize(self, quantization: Quantization) -> Export:
        """Exports to LiteRT in int8 and measures what that costs in accuracy.

        Raises:
            KerasnormError: It cannot be made.
        """
        entry = FORMATS["litert"]
        backend = entry.maker()
        made = self._folder / f"{self.saved.path.stem}-int8{entry.suffix}"
        self._check_place(self.out / made.name, entry)
        calibration = self._folder / "calibration.npy"
        np.save(calibration, quantization.calibration)
        logger.info(f"litert int8: writing, from {len(quantization.calibration)} images …")
        self._on(backend).ask(
            "make", self._source, format="litert", out=str(made), calibration=str(calibration)
        )
        done = Export("litert-int8", made, backend or "", entry.runtime, {})
        test = quantization.test
        helper = self._helpers.get("litert")
        facts: dict[str, Any] = helper.ask("open", made, format="litert")
        for n in BATCHES:
            outputs, _ = run(helper, "run", made, self._images[:n])
            done.differences[n] = float(np.max(np.abs(outputs - self._expected[n])))
        outputs, _ = run(helper, "run", made, test.images)
        done.milliseconds = helper.ask("latency", made)
        check_finite(outputs, done.path.name)
        outputs = as_logits(outputs, self.saved.kind, done.path.name)
        done.quantized_accuracy = score(outputs, test.labels).accuracy
        done.accuracy = score(self.saved.predict(test.images), test.labels).accuracy
        return self._place(done, entry, facts)

    def _check_place(self, place: Path, entry: Format) -> None:
        """Refuses to write over anything but an earlier export, which has its card beside it.

        Raises:
            RunFolderError: Something else is there.
        """
        if place.exists() and place.samefile(self.saved.path):
            raise RunFolderError(f"{place} is the model itself. Choose another --out.")
        if card_path(place).is_file():
            return
        for path in (place, *(place.with_suffix(suffix) for suffix in entry.companions)):
            if path.exists():
                raise RunFolderError(
                    f"{path} is in the way: it is no export, for {card_path(place).name} is not "
                    "beside it. Choose another --out, or move it."
                )

    def _place(self, done: Export, entry: Format, facts: dict[str, Any]) -> Export:
        """Moves an export to its place and writes its card."""
        moved = {done.path: self.out / done.path.name}
        if done.path.is_file():
            moved = {made: self.out / made.name for made in parts(done.path, entry).values()}
        for made, place in moved.items():
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(made, place)
        done.path = self.out / done.path.name
        done.bytes = sum(file.stat().st_size for file in parts(done.path, entry).values())
        write_json(card_path(done.path), self._card(done, entry, facts))
        return done

    def _card(self, done: Export, entry: Format, facts: dict[str, Any]) -> dict[str, Any]:
        saved = self.saved
        is_int8 = done.quantized_accuracy is not None
        card = {
            "format": done.format,
            "runtime": done.runtime,
            "classes": list(saved.class_names),
            "input": {
                "shape": [None, *saved.image_shape],
                "layout": "N, H, W, C; N is free",
                "dtype": facts["dtype"],
                "range": [0, 255],
                "name": facts["input_name"],
                "equalized": saved.wants_equalized,
                "quantization": facts.get("quantization"),
            },
            "output": {"shape": [None, len(saved.class_names)], "kind": saved.kind},
            "parameters": saved.model.count_params(),
            "accuracy": done.quantized_accuracy if is_int8 else done.accuracy,
            "max_difference": {str(n): value for n, value in done.differences.items()},
            "made_on": done.made_on,
            "kerasnorm": kerasnorm.__version__,
            "sha256": checksums(done.path, entry),
        }
        if is_int8:
            card["accuracy_before_quantization"] = done.accuracy
        if saved.config is not None:
            card["config"] = saved.config.to_dict()
        return card


def check_formats(names: Sequence[str]) -> None:
    """Makes sure that every format can be made and opened here, before any is.

    Raises:
        MissingPackageError: A package is missing.
        ConfigError: A format is unknown.
    """
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"format: expected one of {', '.join(FORMATS)}. Received: {name!r}")
        FORMATS[name].maker()
        FORMATS[name].check_runtime()
