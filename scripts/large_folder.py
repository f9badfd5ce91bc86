"""Trains on a folder of images larger than memory should hold: `python scripts/large_folder.py`.

JPEG files of mixed sizes are generated, and a network is trained on them twice at 224x224 pixels,
each time in a process of its own, for some steps and an evaluation on the test images. The first
start decodes the images into the cache, the second one finds them there. The times to the first
step, the images decoded per second and the peak of the resident memory are printed, and written to
results/large-folder/README.md. Files and cache are removed at the end: 20,000 images take about
5 GB. Leave the machine idle meanwhile.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parents[1] / "results" / "large-folder" / "README.md"
SIDE = 224
FEWEST = 2000
CLASSES = 10
TEST_EVERY = 20  # of the images, one is a test image


def main() -> None:
    """Generates the images, trains twice, and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--network", default="keras:MobileNetV2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="Training steps of each start.")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images < FEWEST:
        parser.error(f"--images: expected at least {FEWEST}; fewer are decoded into memory")
    if options.train:
        train(options)
        return
    with tempfile.TemporaryDirectory(prefix="large-folder-") as place:
        os.environ["KERASNORM_CACHE"] = f"{place}/cache"
        begun = time.monotonic()
        size = generate(Path(place) / "images", options.images)
        print(f"{options.images:,} files generated in {time.monotonic() - begun:.0f} s")
        words = [sys.executable, __file__, *sys.argv[1:], "--train", f"{place}/images"]
        found = []
        for _ in range(2):
            env = {**os.environ, "BEGUN": str(time.time())}
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=env)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        (cached,) = Path(place, "cache", "decoded").glob("*/images.npy")
        text = report(options, size, cached.stat().st_size, found)
    print(text)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")


def generate(folder: Path, count: int) -> int:
    """Writes JPEG files with sides of 200 to 640 pixels; returns their size in bytes."""

    def write(number: int) -> int:
        rng = np.random.default_rng(number)
        label = number % CLASSES
        half = "test" if number // CLASSES % TEST_EVERY == 0 else "train"
        width, height = (int(side) for side in rng.integers(200, 641, 2))
        # Large forms with grain, about as hard to compress as a photo; the classes differ in hue.
        forms = rng.integers(0, 180, (9, 9, 3), np.uint8)
        forms[..., label % 3] //= 1 + label // 3
        image = Image.fromarray(forms).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.integers(0, 24, (height, width, 1), np.uint8)
        path = folder / half / str(label) / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image) + grain).save(path, quality=88)
        return path.stat().st_size

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(write, range(count)))


def train(options: argparse.Namespace) -> None:
    """Trains for some steps and evaluates, in this process; prints what it took as JSON."""
    import kerasnorm
    from kerasnorm import runtime
    from kerasnorm.progress import console_notes

    begun = float(os.environ["BEGUN"])
    found = {"host": runtime.host(), "backend": runtime.import_keras()}
    import keras

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            found.setdefault("first_step", time.time() - begun)
            self.model.stop_training = batch + 1 >= options.steps

    class Decoding(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith("Decoded in"):
                found["decoded"] = text

    with console_notes(), tempfile.TemporaryDirectory() as folder:
        logging.getLogger("kerasnorm").addHandler(Decoding())
        kerasnorm.fit(
            data=str(options.train),
            network=options.network,
            image_size=(SIDE, SIDE),
            batch_size=options.batch_size,
            epochs=1,
            out=Path(folder) / "run",
            callbacks=[Watch()],
            plots=False,
        )
    found["seconds"] = time.time() - begun
    found["peak"] = runtime.peak_memory()
    print(json.dumps(found))


def report(
    options: argparse.Namespace, size: int, cached: int, starts: list[dict[str, Any]]
) -> str:
    """Returns the text of results/large-folder/README.md."""
    host, cores = starts[0]["host"], starts[0]["host"]["cpus"]
    rows = [
        f"| {name} | {one.get('decoded', 'Nothing to decode.')} | {one['first_step']:.0f} "
        f"| {one['peak'] / 1e9:.2f} |"
        for name, one in zip(("first", "second"), starts, strict=True)
    ]
    words = " ".join([Path(__file__).name, *sys.argv[1:]])
    return f"""# A folder of {options.images:,} images

Written by `python scripts/{words}`: `{options.network}` on {starts[0]["backend"]}, {options.steps}
training steps of {options.batch_size} images of {SIDE}x{SIDE}, then an evaluation on the
{options.images // TEST_EVERY:,} test images. The JPEG files have sides of 200 to 640 pixels and
take {size / 1e9:.2f} GB; the decoded images take {cached / 1e9:.2f} GB in the cache. Times are
those since the process was started, peaks those of the whole process, evaluation included.

Machine: {host["processor"]}, {cores} cores, {host["system"]}.

| start | decoding | seconds to the first step | peak of resident memory, GB |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
