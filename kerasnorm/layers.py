"""The layers that are this package's own, and the copy of a model that does without them."""

from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from kerasnorm import user_code
from kerasnorm.config import ModelConfig
from kerasnorm.errors import ConfigError
from kerasnorm.keras_settings import stock_keras
from kerasnorm.norms import EPSILON, NORMS, normalization

# Names of a model's input: the second says that images must be histogram-equalized first.
PIXELS = "pixels"
EQUALIZED_PIXELS = "equalized_pixels"
# What to do with a network that is no classifier of images.
ONE_OF_EACH = (
    "Take the part between one of each: keras.Model(model.inputs[0], model.outputs[0]) is a model."
)
OTHER_NETWORKS = (
    "Networks of other inputs or outputs are for kerasnorm convert and kerasnorm explain --network "
    "alone."
)


def standardize_kernel(kernel: Any) -> Any:
    """Returns a kernel with mean 0 and variance 1/fan-in for each output channel.

    w' = (w - mean(w)) / sqrt(var(w) * fan_in + epsilon), statistics over (height, width, in).
    Source: Qiao et al., "Weight Standardization", arXiv 1903.10520, with the 1/fan-in of Brock et
    al., arXiv 2101.08692.
    """
    height, width, inputs, _ = kernel.shape
    full = ops.cast(kernel, "float32")
    centered = full - ops.mean(full, axis=(0, 1, 2), keepdims=True)
    variance = ops.mean(ops.square(centered), axis=(0, 1, 2), keepdims=True)
    standardized = centered * ops.rsqrt(variance * (height * width * inputs) + EPSILON)
    return ops.cast(standardized, kernel.dtype)


@keras.saving.register_keras_serializable(package="kerasnorm")
class StandardizedConv2D(keras.layers.Conv2D):
    """A Conv2D that convolves with its standardized kernel (see `standardize_kernel`).

    `portable` folds it into a stock Conv2D, and so does every file that this package writes. A file
    that Keras's own `save` wrote keeps it, and needs this package to be opened.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves `inputs` (N, H, W, C) with the standardized kernel."""
        return super().convolution_op(inputs, standardize_kernel(kernel))


def custom_layers() -> dict[str, type[keras.layers.Layer]]:
    """Returns the norms' layers that are not Keras's own, by the names that Keras saves."""
    configs = [ModelConfig(norm=name) for name in NORMS]
    made = [normalization(config, config.group_size) for config in configs]
    kinds = {type(layer) for layer in made if layer is not None}
    return {
        keras.saving.get_registered_name(kind): kind
        for kind in kinds
        if kind.__module__.partition(".")[0] != "keras"
    }


def own_classes() -> dict[str, type]:
    """Returns the classes that are not Keras's own and may be opened, by the names Keras saves."""
    kinds: list[type] = [StandardizedConv2D, *user_code.classes()]
    return custom_layers() | {keras.saving.get_registered_name(kind): kind for kind in kinds}


def is_instance_norm(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer, which is built, is a group norm with groups of one channel each."""
    if not isinstance(layer, keras.layers.GroupNormalization):
        return False
    # The layer may have neither scale nor shift, whose sizes would tell the number of channels.
    return layer.groups in (-1, layer.input_spec.axes[layer.axis])


def instance_norms(model: keras.Model) -> tuple[int, int]:
    """Returns how many group norms of a model are instance norms, and how many it has."""
    found = [one for one in leaves(model) if isinstance(one, keras.layers.GroupNormalization)]
    return sum(map(is_instance_norm, found)), len(found)


def instance_note(model: keras.Model, name: str) -> str:
    """Returns a sentence about the instance norms among a model's group norms, "" without any.

    `name` is what the user calls the model; Keras numbers those without one.
    """
    alone, count = instance_norms(model)
    if not alone:
        return ""
    return (
        f"norm gn: in {alone} of {count} norms of {name} each group is one channel, which is "
        "instance normalization. For groups of several channels use --group-size, such as 8."
    )


def is_augmentation(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer of Keras changes images in training only."""
    kind = type(layer)
    is_random = kind.__name__.startswith("Random") and kind is not keras.layers.RandomCrop
    is_listed = kind.__name__ in ("AugMix", "CutMix", "MixUp", "RandAugment")
    return kind.__module__.startswith("keras.") and (is_random or is_listed)


def with_precision(config: dict[str, Any], precision: str) -> dict[str, Any]:
    """Returns a layer's config with another dtype policy, also of layers in it, as in a wrapper."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("class_name") == "DTypePolicy":
                return value | {"config": {"name": precision}}
            return {key: changed(part) for key, part in value.items()}
        return type(value)(map(changed, value)) if isinstance(value, (list, tuple)) else value

    found: dict[str, Any] = changed(config)
    if "dtype" in found:  # which not every constructor takes
        found["dtype"] = precision
    return found


def made_anew(layer: keras.layers.Layer, config: dict[str, Any], policy: Any) -> Any:
    """Returns a new layer of the same class.

    Layers that name no dtype policy, such as those that its constructor makes, have `policy`; in
    Keras this is the policy of the whole process.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return type(layer).from_config(config)
    finally:
        keras.config.set_dtype_policy(before)


@stock_keras
def portable(model: keras.Model) -> keras.Model:
    """Returns a float32 copy of stock Keras layers, without what only training needs.

    The copy gives the same logits, up to rounding, and `portable(model).save("model.keras")` writes
    a file that opens in Keras without this package. Standardized kernels are folded into stock
    convolutions, layers trained in mixed precision become float32, and augmentation is left out.

    Args:
        model: A functional model with one input and one output.

    Raises:
        ConfigError: The model is not of that kind.
    """
    sizes = [len(getattr(model, name, None) or ()) for name in ("inputs", "outputs")]
    if sizes != [1, 1]:
        raise ConfigError(
            "model: expected a functional Keras model with one input and one output. Received: "
            f"{type(model).__name__} with {sizes[0]} inputs and {sizes[1]} outputs. {ONE_OF_EACH}"
        )

    def stock(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation such as a division: it has no weights and no precision
        if getattr(layer, "quantization_mode", None) is not None:
            raise ConfigError(
                f"model: its layer {layer.name!r} was quantized by model.quantize(), which only "
                "Keras computes so. Export the model as it was before; --quantize int8 quantizes "
                "for LiteRT."
            )
        if is_augmentation(layer):
            return keras.layers.Activation("linear", name=layer.name, dtype="float32")
        config = with_precision(layer.get_config(), "float32")
        if config.get("synchronized"):
            config["synchronized"] = False  # it matters in training only; torch refuses to load it
        is_folded = isinstance(layer, StandardizedConv2D)
        return (keras.layers.Conv2D if is_folded else type(layer)).from_config(config)

    # A clone would inherit the compile state of the model in training; this one has none.
    plain = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    copy = keras.models.clone_model(plain, clone_function=stock, recursive=True)
    for source, target in zip(leaves(plain), leaves(copy), strict=True):
        if is_augmentation(source):
            continue
        weights = source.get_weights()
        if isinstance(source, StandardizedConv2D):
            weights[0] = keras.ops.convert_to_numpy(standardize_kernel(source.kernel.value))
        target.set_weights(weights)
        if hasattr(target, "finalize_state"):
            target.finalize_state()  # Normalization and others derive what they compute with
    return copy


def leaves(model: keras.Model) -> Iterator[Any]:
    """Yields the layers of a model and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer
