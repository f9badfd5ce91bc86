"""The receptive field against gradients: the pixels that move a unit are those that it sees."""

import math
from collections.abc import Callable

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import Sequential, layers
from keras.src.applications.convnext import LayerScale  # Keras does not export it

from kerasnorm.inspection.layers import LayerRow, layer_table, receptive_field
from kerasnorm.network import build_model

pytestmark = pytest.mark.backend("torch")  # gradients by torch.autograd


Extent = list[tuple[int, int]]


def seen_pixels(model: keras.Model, names: list[str], offset: int = 0) -> dict[str, Extent]:
    """Returns the first and last pixel of each axis that move the middle unit of each layer.

    With an offset, the unit that lies so many units behind the middle one.

    All kernels become constant and positive, so that nothing cancels and no ReLU closes. Max
    pooling passes the gradient of its largest input only: one image that rises along all axes and
    one that falls show the far and the near end.
    """
    import torch

    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(np.full(variable.shape, 1 / math.prod(variable.shape[:-1])))
    probe = keras.Model(model.inputs, {name: model.get_layer(name).output for name in names})
    shape = model.input_shape[1:]
    ramp = np.indices(shape[:-1]).sum(0)[None, ..., None] * np.ones(shape[-1])
    seen = {name: np.zeros(shape[:-1], bool) for name in names}
    for image in (200 + ramp / 8, 200 - ramp / 8):
        pixels = torch.tensor(image, dtype=torch.float32, requires_grad=True)
        for name, output in probe(pixels).items():
            middle = output[(0, *(size // 2 + offset for size in output.shape[1:-1]))].sum()
            (gradient,) = torch.autograd.grad(middle, pixels, retain_graph=True)
            seen[name] |= (gradient[0] != 0).any(-1).cpu().numpy()
    return {name: _extent(mask) for name, mask in seen.items()}


def _extent(mask: np.ndarray) -> Extent:
    return [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]


def computed_pixels(row: LayerRow, offset: int = 0) -> Extent:
    """Returns what `seen_pixels` should, from a row; it may reach out of the image."""
    pairs = []
    for size, field in zip(row.after.sizes, row.after.fields, strict=True):
        first = field.start + (0 if field.is_shared else (size // 2 + offset) * field.jump)
        pairs.append((math.ceil(first), math.floor(first + field.size - 1)))
    return pairs


def cut(extent: Extent, side: int) -> Extent:
    return [(max(first, 0), min(last, side - 1)) for first, last in extent]


@pytest.mark.parametrize("recipe", ["era8", "best"])
def test_our_network(recipe: str) -> None:
    model = build_model("none", recipe, input_shape=(64, 64, 3), widths=(2,) * 10)
    rows = {row.name: computed_pixels(row) for row in receptive_field(model)}
    seen = seen_pixels(model, list(rows))
    assert rows["convblock3_conv3"] == [(12, 55)] * 2  # 44 pixels, all of them in the image
    assert seen == {name: cut(extent, 64) for name, extent in rows.items()}


def conv(x: object, kernel: object = 3, **options: object) -> object:
    return layers.Conv2D(2, kernel, use_bias=False, activation="relu", **options)(x)


def same(x: object, kernel: object = 3, **options: object) -> object:
    return conv(x, kernel, padding="same", **options)


def squeeze_and_excite(x: object) -> object:
    scale = layers.GlobalAveragePooling2D()(x)
    scale = layers.Dense(2, use_bias=False)(layers.Reshape((1, 1, 2))(scale))
    return layers.Multiply()([x, scale])


def nested(x: object) -> object:
    inner = keras.Input((None, None, 2))
    branch = layers.Add()([same(inner), same(inner, 5)])
    submodel = keras.Model(inner, branch, name="inner")
    stack = Sequential([keras.Input((None, None, 2)), layers.AveragePooling2D(2)], name="stack")
    return submodel(stack(submodel(same(x))))


GRAPHS: dict[str, Callable[[object], object]] = {
    "valid": lambda x: conv(conv(x, 5)),
    "even kernels, same": lambda x: same(same(x, 4), 2),
    "stride, same": lambda x: same(same(same(x, strides=2), 5, strides=3)),
    "stride, valid": lambda x: conv(conv(x, 7, strides=3), 4, strides=2),
    "dilation": lambda x: same(conv(x, dilation_rate=2), dilation_rate=(1, 4)),
    "oblong kernels": lambda x: conv(same(x, (5, 1)), (1, 4)),
    "oblong strides": lambda x: conv(layers.AveragePooling2D((2, 3), strides=(2, 1))(x)),
    "depthwise": lambda x: layers.DepthwiseConv2D(5, strides=2, use_bias=False)(same(x)),
    "separable": lambda x: conv(layers.SeparableConv2D(2, 3, dilation_rate=3, use_bias=False)(x)),
    "max pooling": lambda x: layers.MaxPooling2D(3, strides=2)(same(layers.MaxPooling2D(2)(x))),
    "average pooling, same": lambda x: layers.AveragePooling2D(3, 2, padding="same")(conv(x)),
    "padding": lambda x: conv(layers.ZeroPadding2D(((3, 0), (0, 5)))(x), 7, strides=2),
    "cropping": lambda x: conv(layers.Cropping2D(((1, 4), (9, 2)))(conv(x, strides=2))),
    "add": lambda x: layers.Add()([same(x), same(x, 5)]),
    "downsampling shortcut": lambda x: layers.Add()(
        [same(x, 1, strides=2), same(same(x, strides=2))]
    ),
    "concatenate": lambda x: same(
        layers.Concatenate()(
            [same(x, 1), same(same(x), (7, 1)), layers.AveragePooling2D(3, 1, "same")(x)]
        )
    ),
    "multiply": lambda x: layers.Multiply()([same(x, (1, 3)), same(x, (3, 1))]),
    "operations": lambda x: keras.ops.relu(same(x) + same(x, 5)) * same(x) / 2 - 1,
    "a slice of channels": lambda x: same(same(x)[..., ::2], strides=2)[..., :1],
    "slices of space": lambda x: conv(same(x, strides=2)[:, 3:-4, -30::3], 5)[:, 1:],
    "scaled by channel": lambda x: LayerScale(0.5, 2)(same(x)),
    "squeeze and excite": lambda x: same(squeeze_and_excite(same(x))),
    "nested": nested,
    "dense on a map": lambda x: layers.Dense(3, use_bias=False)(same(x)),
    "global pooling": lambda x: layers.GlobalMaxPooling2D(keepdims=True)(conv(x)),
    "adaptive pooling": lambda x: layers.AdaptiveAveragePooling2D(1)(conv(x)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str) -> None:
    pixels = keras.Input((96, 96, 2))
    output = layers.Identity(name="end")(GRAPHS[name](pixels))
    model = keras.Model(pixels, output)
    seen = seen_pixels(model, ["end"])["end"]
    if name == "global pooling":  # the largest unit alone passes the gradient
        seen = [(0, 95)] * 2
    assert seen == cut(computed_pixels(layer_table(model)[-1]), 96)


def transposed(x: object, kernel: int, strides: int, **options: object) -> object:
    return layers.Conv2DTranspose(2, kernel, strides, use_bias=False, **options)(x)


def upsampled(x: object, factor: int, kind: str = "nearest") -> object:
    return layers.UpSampling2D(factor, interpolation=kind)(x)


# With the largest number of pixels that a unit sees, by hand where all phases occur.
ENLARGED: dict[str, tuple[Callable[[object], object], int | None]] = {
    "nearest": (lambda x: upsampled(x, 2), 1),
    "nearest, convolutions": (lambda x: same(same(upsampled(x, 3), 5)), 3),
    "bilinear": (lambda x: upsampled(x, 2, "bilinear"), 2),
    "transposed": (lambda x: transposed(x, 3, 2), 2),
    "transposed, same": (lambda x: transposed(x, 4, 2, padding="same"), 2),
    "transposed, odd, same": (lambda x: same(transposed(x, 5, 3, padding="same")), 3),
    "of one": (lambda x: transposed(x, 3, 1), 3),
    **{
        f"transposed, {kernel} by {strides}, output padding {more}": (
            lambda x, kernel=kernel, strides=strides, more=more: transposed(
                x, kernel, strides, padding="same", output_padding=more
            ),
            2,
        )
        for kernel, strides, more in ((3, 2, 0), (3, 2, 1), (4, 2, 0), (4, 2, 1), (5, 4, 1))
    },
    "encoder and decoder": (
        lambda x: same(upsampled(same(same(x, strides=2), strides=2), 4)),
        None,
    ),
    "skip": (lambda x: same(layers.Add()([upsampled(same(x, strides=2), 2), same(x, 5)])), None),
}


@pytest.mark.parametrize("name", ENLARGED)
def test_units_of_an_enlarged_map_see_no_more_than_the_bound(name: str) -> None:
    make, largest = ENLARGED[name]
    pixels = keras.Input((48, 48, 2))
    model = keras.Model(pixels, layers.Identity(name="end")(make(pixels)))
    row = layer_table(model)[-1]
    sizes = []
    for offset in range(4):
        seen = seen_pixels(model, ["end"], offset)["end"]
        for (first, last), (low, high) in zip(seen, computed_pixels(row, offset), strict=True):
            assert low <= first <= last <= high
            sizes.append(last - first + 1)
    assert max(sizes) <= row.receptive_field
    assert largest in (None, max(sizes))
    assert row.receptive_field == largest or largest is None


stages = st.tuples(
    st.integers(1, 4), st.integers(1, 2), st.integers(1, 2), st.sampled_from(["same", "valid"])
)


@settings(max_examples=20, deadline=None)
@given(st.lists(stages, min_size=1, max_size=3), st.booleans())
def test_stacks(stack: list[tuple[int, int, int, str]], pools: bool) -> None:
    x = pixels = keras.Input((95, 1))
    for kernel, stride, dilation, padding in stack:
        rate = dilation if stride == 1 else 1
        options = {"padding": padding, "strides": stride}
        x = layers.Conv1D(1, kernel, dilation_rate=rate, use_bias=False, **options)(x)
        x = layers.AveragePooling1D(kernel, 1, padding)(x) if pools else x
    model = keras.Model(pixels, layers.Identity(name="end")(x))
    expected = computed_pixels(layer_table(model)[-1])
    assume(expected[0][0] >= 0 and expected[0][1] < 95)
    assert seen_pixels(model, ["end"])["end"] == expected
