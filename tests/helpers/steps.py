"""Trains 20 steps alone, or as a rank of a group, and saves losses and weights: for comparison.

`python steps.py OUT.npz DEVICES OPTIONS NORM…`, under torchrun or TF_CONFIG too. OPTIONS are fields
of the config as JSON. DEVICES 0 trains by plain Keras and autograd (torch; SGD without momentum,
decay or dropout), on two halves of each batch with statistics of their own: the truth for
`bn_sync` off.
"""

import json
import sys

import numpy as np

from kerasnorm import runtime
from kerasnorm.config import resolve
from kerasnorm.data.shapes import shapes
from kerasnorm.process_group import shard_of, this_launch
from kerasnorm.training.fit import make_engine

STEPS, BATCH = 20, 16


def main():
    out, devices, options, *norms = sys.argv[1:]
    backend, _ = runtime.start("auto", "cpu", max(1, int(devices)))
    from helpers import tiny
    from kerasnorm.engines.choice import join

    group = join(this_launch(), max(1, int(devices)))
    # Three images are left over for a last step, in which each rank takes the whole batch if
    # there are more of them.
    data, found = shapes((STEPS - 1) * BATCH + 3, 20), {}
    for norm in norms:
        # At a rate at which rounding does not grow: float32 is chaotic at high ones.
        config = resolve({
            "backend": backend, "norm": norm, "widths": tiny.WIDTHS, "dropout": 0.1, "epochs": 1,
            "batch_size": BATCH, "optimizer": "sgd", "learning_rate": 0.001, "device": "cpu",
            "l2": 1e-3, **json.loads(options),
        })  # fmt: skip
        engine = make_engine(config, data, group)
        listener = tiny.Listener()
        if devices == "0":
            train_in_halves(engine.model, engine.batches, config.train.learning_rate)
        else:
            engine.train_epoch(0, listener)
        found |= {f"{norm}/{name}": array for name, array in engine.state().items()}
        found[f"{norm}/losses"] = np.array(listener.losses)
        found[f"{norm}/logits"] = engine.predict(data.test.images)
    if group.is_first:
        np.savez(out, **found)
    group.leave()


def train_in_halves(model, batches, rate):
    import torch

    order = batches.order(0)
    for step in range(STEPS):
        images, labels = batches.batch(0, step, order)
        gradients = 0
        for shard in (shard_of(len(labels), rank, 2) for rank in range(2)):
            logits = model(torch.from_numpy(images[shard.slice]).float(), training=True)
            truth = torch.from_numpy(labels[shard.slice]).long()
            loss = torch.nn.functional.cross_entropy(logits, truth, reduction="sum") / len(labels)
            values = [variable.value for variable in model.trainable_variables]
            gradients += np.array(torch.autograd.grad(loss, values), dtype=object)
        with torch.no_grad():
            for value, gradient in zip(values, gradients, strict=True):
                value.sub_(rate * gradient)


if __name__ == "__main__":
    main()
