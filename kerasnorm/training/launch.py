"""What a launcher's environment says about this process: torchrun's variables, or TF_CONFIG."""

import json
import os
from dataclasses import dataclass

from kerasnorm.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """This process among those that were started to train one model together.

    Attributes:
        launcher: "torchrun", "TF_CONFIG", or "" for a process alone.
        rank: Counted from 0.
        size: How many there are.
        local_rank: Counted from 0 on this machine.
        restarts: How often torchrun has started the job anew.
    """

    launcher: str = ""
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0


def this_launch() -> Launch:
    """Returns what torchrun, or TF_CONFIG, says about this process.

    Raises:
        ConfigError: TF_CONFIG is damaged.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        rank, size, local, restarts = (int(os.environ.get(name, "0")) for name in names)
        return Launch("torchrun", rank, size, local, restarts)
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Launch()
    try:
        document = json.loads(text)
        workers, index = document["cluster"]["worker"], int(document["task"]["index"])
        return Launch("TF_CONFIG", index, len(workers))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", …]}, "task": {"type": '
            f'"worker", "index": 0}}}}. Received: {text[:80]!r} ({error!r}). Mend it, or unset it.'
        ) from None
