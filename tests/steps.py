"""Trains 20 steps alone, or as a member of a team, and saves losses and weights: for comparison.

`python steps.py OUT.npz DEVICES NORM…`, under torchrun or TF_CONFIG too.
"""

import sys

import numpy as np

from kerasnorm import runtime, train
from kerasnorm.data.shapes import shapes
from kerasnorm.job import this_job
from kerasnorm.recipes import resolve

STEPS, BATCH = 20, 16


def main():
    out, devices, *norms = sys.argv[1:]
    backend, _ = runtime.start("auto", "cpu", int(devices))
    import tiny

    from kerasnorm.engines.choice import join

    team = join(this_job(), int(devices))
    # Three images are left over for a last step, in which each member takes the whole batch if
    # there are more of them.
    data, found = shapes((STEPS - 1) * BATCH + 3, 20), {}
    for norm in norms:
        # At a rate at which rounding does not grow: float32 is chaotic at high ones.
        config = resolve({
            "backend": backend, "norm": norm, "widths": tiny.WIDTHS, "dropout": 0.1, "epochs": 1,
            "batch_size": BATCH, "optimizer": "sgd", "learning_rate": 0.003, "device": "cpu",
            "l2": 1e-3,
        })  # fmt: skip
        engine = train.make_engine(config, data, team)
        listener = tiny.Listener()
        engine.train_epoch(0, listener)
        found |= {f"{norm}/{name}": array for name, array in engine.state().items()}
        found[f"{norm}/losses"] = np.array(listener.losses)
        found[f"{norm}/logits"] = engine.predict(data.test.images)
    if team.is_first:
        np.savez(out, **found)
    team.leave()


if __name__ == "__main__":
    main()
