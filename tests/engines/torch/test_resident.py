"""Data that stay on a device, tried on the CPU: the images and the training are those of the host.

What needs a GPU, the recording of a step, is in the slow test at the end.
"""

import keras
import numpy as np
import pytest
from helpers import tiny

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from kerasnorm.engines.torch.resident import ResidentData  # noqa: E402
from kerasnorm.training.fit import make_engine  # noqa: E402

CPU = torch.device("cpu")
EVERYTHING = {"recipe": "era8", "shift_scale_rotate": 0.7, "gray": 0.5, "flip": 0.5, "translate": 3}


def engine(**options):
    return make_engine(tiny.config(**options), tiny.dataset())


@pytest.mark.parametrize("options", [{"translate": 3}, EVERYTHING], ids=["exact", "rounded"])
def test_images_are_those_of_the_host(options):
    batches = engine(**options).batches
    resident, differing = ResidentData(batches, CPU), 0
    for epoch in range(3):
        resident.begin(epoch)
        for step in range(batches.steps):
            expected, labels = batches.batch(epoch, step)
            images, received = resident.take(len(labels))
            assert np.array_equal(received.numpy(), labels)
            gap = np.abs(images.numpy().astype(int) - expected)
            assert gap.max() <= (1 if options is EVERYTHING else 0)  # a half, rounded the other way
            differing += (gap > 0).mean() / batches.steps / 3
    assert differing < 1e-3


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_training_is_that_from_the_host(norm):
    host, device = (engine(norm=norm, recipe="best", dropout=0.1) for _ in range(2))
    device.resident = ResidentData(device.batches, CPU)
    for epoch in range(2):
        told = tiny.Listener(), tiny.Listener()
        scores = host.train_epoch(epoch, told[0]), device.train_epoch(epoch, told[1])
        assert scores[0] == scores[1]
        assert told[0].losses == told[1].losses
    expected, received = host.state(), device.state()
    assert all(np.array_equal(array, received[name]) for name, array in expected.items())


@pytest.mark.parametrize("recipe", ["best", "era8"])
def test_our_networks_are_lowered_as_a_whole_but_recorded_on_cuda_only(recipe):
    made = engine(recipe=recipe)
    assert not made.lowered.foreign
    assert not made.can_record


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "lnc", "rms"])
def test_recorded_steps_are_the_steps(norm):
    plain, recorded = (engine(norm=norm, device="gpu", dropout=0.0) for _ in range(2))
    plain.can_record = False
    for epoch in range(2):
        tiny.assert_same_epoch(plain, recorded, epoch=epoch)
    assert recorded.recorded is not None
    expected, received = plain.state(), recorded.state()
    for name, array in expected.items():
        assert np.allclose(array, received[name], rtol=1e-3, atol=1e-5), name
