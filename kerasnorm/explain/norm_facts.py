"""What each norm is called, computes and is used for, with sources: data, no code."""

from typing import NamedTuple

# Of x seen as (N, H, W, groups, channels a group): the axes that share a mean and a variance.
# All but gn see one group.
STATISTICS_AXES: dict[str, tuple[int, ...]] = {
    "bn": (0, 1, 2),
    "gn": (1, 2, 4),
    "ln": (1, 2, 3, 4),
    "lnc": (3, 4),
    "in": (1, 2),
    "rms": (3, 4),
}


class NormFacts(NamedTuple):
    """What is known about a norm.

    Attributes:
        name: Its full name.
        over: The axes that share statistics, in words.
        formula: In plain text.
        source: The paper that introduced it.
        users: Who uses it today and why, each with its source.
        caution: What popular accounts get wrong, or where it fails.
    """

    name: str
    over: str
    formula: str
    source: str
    users: tuple[str, ...]
    caution: str


CENTERED = "y = gamma * (x - mean) / sqrt(variance + epsilon) + beta"

NORM_FACTS: dict[str, NormFacts] = {
    "bn": NormFacts(
        "Batch Normalization",
        "N, H, W: one mean and variance a channel, shared by the whole batch",
        CENTERED,
        "Ioffe & Szegedy 2015, arXiv 1502.03167",
        (
            "ResNet (arXiv 1512.03385) and EfficientNet (arXiv 1905.11946).",
            "At inference it is a fixed scale and shift, which folds into a convolution: free.",
        ),
        "Its benefit is not less 'internal covariate shift': with noise injected behind it, which "
        "shifts the distributions again, it still trains as well; it makes the loss smoother "
        "(Santurkar et al. 2018, arXiv 1805.11604). At few images a batch its statistics are "
        "noise (Wu & He, arXiv 1803.08494, figure 1).",
    ),
    "gn": NormFacts(
        "Group Normalization",
        "H, W and the channels of a group: one mean and variance an image and group",
        CENTERED,
        "Wu & He 2018, arXiv 1803.08494",
        (
            "BiT (arXiv 1912.11370), with weight standardization: fine-tunes at any batch size.",
            "Diffusion U-Nets (DDPM, arXiv 2006.11239): few large images a device.",
        ),
        "One group is ln over H, W, C; as many groups as channels is instance normalization.",
    ),
    "ln": NormFacts(
        "Layer Normalization over H, W, C",
        "H, W, C: one mean and variance an image",
        CENTERED,
        "Ba et al. 2016, arXiv 1607.06450",
        ("PoolFormer (arXiv 2111.11418), as Group Normalization with one group.",),
        "Three different things are called layer norm of images: over H, W, C with a scale and "
        "shift for each element (PyTorch's LayerNorm((C, H, W)); ties the model to one image "
        "size), the same with one for each channel (GroupNorm with one group), and over C at each "
        "pixel (lnc).",
    ),
    "lnc": NormFacts(
        "Layer Normalization over channels",
        "C: one mean and variance a pixel",
        CENTERED,
        "Ba et al. 2016, arXiv 1607.06450; on images as in ConvNeXt, arXiv 2201.03545",
        (
            "ConvNeXt (arXiv 2201.03545): neither the batch nor the image size is in it.",
            "Vision and Swin Transformers (arXiv 2010.11929, 2103.14030); a pixel is a token.",
        ),
        "It is what 'layer norm' means in transformers, not what it means in PyTorch examples "
        "for images; see ln.",
    ),
    "in": NormFacts(
        "Instance Normalization",
        "H, W: one mean and variance an image and channel",
        CENTERED,
        "Ulyanov et al. 2016, arXiv 1607.08022",
        (
            "Style transfer (AdaIN, arXiv 1703.06868): mean and variance are style, and are to go.",
            "Medical segmentation (nnU-Net, arXiv 1904.08128): batches of two volumes.",
        ),
        "It removes each channel's strength from each image, which a classifier may need; on a "
        "map of one pixel it erases everything.",
    ),
    "rms": NormFacts(
        "Root Mean Square Normalization",
        "C, no mean: one mean square a pixel",
        "y = gamma * x / sqrt(mean(x^2) + epsilon)",
        "Zhang & Sennrich 2019, arXiv 1910.07467",
        ("Language models, T5 (arXiv 1910.10683) and LLaMA (arXiv 2302.13971): cheaper than lnc.",),
        "It does not center: a constant added to all channels changes the direction of what "
        "comes out.",
    ),
}
