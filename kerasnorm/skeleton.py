"""What is fixed about the network, as plain data: blocks, names of layers, numbers of the norms."""

from kerasnorm.config import ModelConfig
from kerasnorm.errors import ConfigError

EPSILON = 1e-5  # of every norm
# (block, convolutions in it, their kernel size); a pooling ends each block of 1x1 convolutions.
SKELETON = (
    ("convblock1", 2, 3),
    ("transblock1", 1, 1),
    ("convblock2", 3, 3),
    ("transblock2", 1, 1),
    ("convblock3", 3, 3),
)
LAYER_LABELS = {
    "convblock1_conv1": "C1",
    "convblock1_conv2": "C2",
    "transblock1_conv": "c3",
    "transblock1_pool": "P1",
    "convblock2_conv1": "C3",
    "convblock2_conv2": "C4",
    "convblock2_conv3": "C5",
    "transblock2_conv": "c6",
    "transblock2_pool": "P2",
    "convblock3_conv1": "C7",
    "convblock3_conv2": "C8",
    "convblock3_conv3": "C9",
    "gap": "GAP",
    "fc1": "C10",
}


def groups_for(config: ModelConfig, channels: int) -> int:
    """Returns the number of groups that gn uses on `channels` channels.

    Raises:
        ConfigError: The groups do not divide the channels; the message lists the counts that do.
    """
    if config.groups:
        name, value, groups = "groups", config.groups, config.groups
    else:
        name, value, groups = "group_size", config.group_size, channels // config.group_size
    if groups < 1 or channels % groups or (not config.groups and channels % config.group_size):
        fitting = [n for n in range(1, channels + 1) if channels % n == 0]
        raise ConfigError(
            f"{name}: expected a divisor of {channels}, the channels of a layer that gn "
            f"normalizes: {', '.join(map(str, fitting))}. Received: {name}={value}"
        )
    return groups
