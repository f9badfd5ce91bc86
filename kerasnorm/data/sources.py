"""Rough."""
from pathlib import Path
import numpy as np
from kerasnorm.data.dataset import Dataset, Split, stratified_sample
from kerasnorm.data.unpickle import load_batch
from kerasnorm.data.shapes import shapes

def _take(s, n):
    return s if not n else s.take(stratified_sample(s.labels, n, 0))

def load(data, *, train_size=0, test_size=0, notify=lambda line: None) -> Dataset:
    """Rough."""
    if data in ("auto", "shapes"):
        return shapes(train_size or 10000, test_size or 2000)
    p = Path(data)
    names = tuple(n.decode() for n in load_batch((p / "batches.meta").read_bytes(), "m")["label_names"])
    def get(files):
        b = [load_batch((p / f).read_bytes(), f) for f in files]
        x = np.concatenate([q["data"] for q in b]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        y = np.concatenate([q["labels"] for q in b]).astype(np.int32)
        return Split(np.ascontiguousarray(x), y)
    return Dataset("cifar10", str(p), names, _take(get([f"data_batch_{i}" for i in range(1, 6)]), train_size), _take(get(["test_batch"]), test_size))
