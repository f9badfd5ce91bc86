"""The hand-written contender computes what our network computes; else the race would be unfair."""

import keras
import numpy as np
import pytest
from helpers import tiny

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("needs the torch backend", allow_module_level=True)

from kerasnorm.benchmark.plain import make_loop, network  # noqa: E402
from kerasnorm.data.batches import Batches  # noqa: E402
from kerasnorm.errors import ConfigError  # noqa: E402
from kerasnorm.network import build_model  # noqa: E402


def copy_weights(model, module):
    """Copies the weights of the Keras model into the module, by order and shape."""
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    vectors = [v for v in model.trainable_variables if v.name != "kernel"]
    targets = list(module.parameters())
    with torch.no_grad():
        for sources, dims in ((kernels, 4), (vectors, 1)):
            ours = [p for p in targets if p.dim() == dims]
            for source, target in zip(sources, ours, strict=True):
                value = source.value.permute(3, 2, 0, 1) if dims == 4 else source.value
                target.copy_(value)


@pytest.mark.parametrize(
    ("norm", "recipe", "pooling"),
    [
        *[(n, r, "max") for n in ("bn", "gn", "ln", "in", "none") for r in ("era8", "best")],
        *[("bn", "best", pooling) for pooling in ("average", "mean")],
    ],
)
def test_the_hand_written_network_is_ours(norm, recipe, pooling):
    config = tiny.config(norm=norm, recipe=recipe, dropout=0.0, pooling=pooling)
    options = {"widths": tiny.WIDTHS, "dropout": 0.0, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    model = build_model(norm, recipe, pooling=pooling, **options)
    module = network(config.model, 3, 10).train()
    copy_weights(model, module)
    images = np.random.default_rng(0).standard_normal((6, 32, 32, 3)).astype(np.float32)
    expected = model(torch.from_numpy(images), training=True)
    received = module(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.allclose(received, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_loop_takes_every_step_and_waits_for_the_last(channels_last, monkeypatch):
    config, data, told = tiny.config(), tiny.dataset(), []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda x: told.append("waits") or item(x))
    loop = make_loop(
        config, Batches(data.train, 16, 0), "cpu", channels_last=channels_last, compiled=False
    )
    loop(0, lambda: told.append("step"))
    assert told.count("step") == 4
    assert told[-2:] == ["step", "waits"]  # an accelerator may still compute after a step


def test_a_norm_that_pytorch_lacks_is_refused():
    with pytest.raises(ConfigError, match="rms"):
        network(tiny.config(norm="rms").model, 3, 10)
