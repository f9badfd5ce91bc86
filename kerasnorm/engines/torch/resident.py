"""Training data that stay on the accelerator, and the training step as one CUDA graph.

A step on a GPU takes less time than Python needs to ask for its parts. So the images lie on the
device as uint8, once; the order and the augmentation's random numbers of an epoch follow when it
begins; and a step — gather, augment, forward, backward, update — is recorded once and replayed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kerasnorm.data.batches import Batches
from kerasnorm.engines.torch.augment import DeviceAugmentation, to_device

WARM_UP = 3  # steps before a recording, as PyTorch's guide to CUDA graphs advises


class ResidentData:
    """The images, labels, order and draws of an epoch as tensors on a device.

    Args:
        batches: What they are on the host.
        device: Where the tensors lie.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.images = torch.from_numpy(batches.split.images).to(device)
        self.labels = torch.from_numpy(batches.split.labels).to(device)
        self.position = torch.zeros((), dtype=torch.long, device=device)
        self.epoch: dict[str, Tensor] = {}
        augmentation = batches.augmentation
        self.augment = None
        if augmentation is not None and augmentation.is_active:
            self.augment = DeviceAugmentation(augmentation, device)

    def begin(self, epoch: int) -> None:
        """Puts the order and the draws of an epoch on the device, in the same memory each time."""
        order, size = self.batches.order(epoch), self.batches.batch_size
        fresh = {"order": torch.from_numpy(order).to(self.device)}
        if self.augment is not None:
            draw = self.augment.augmentation.draw
            parts = [order[at : at + size] for at in range(0, len(order), size)]
            draws = [draw(part, epoch, step) for step, part in enumerate(parts)]
            fresh |= to_device(draws, self.device)
        for name, tensor in fresh.items():
            self.epoch.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
        self.position.zero_()

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the next images (count, H, W, C) and labels (count,), and moves on.

        Nothing is read back from the device, so that a CUDA graph can hold it. Beyond the end of
        the epoch, where a recording may warm up, it begins again.
        """
        places = (self.position + torch.arange(count, device=self.device)) % len(self.labels)
        self.position.add_(count)
        draws = {name: tensor.index_select(0, places) for name, tensor in self.epoch.items()}
        indices = draws.pop("order")
        images, labels = self.images.index_select(0, indices), self.labels.index_select(0, indices)
        return self.augment(images, draws) if self.augment else images, labels


class RecordedStep:
    """A training step as a CUDA graph.

    Recording takes the step a few times: who makes one puts back what it changes.

    Args:
        step: Reads nothing back from the device, and takes nothing from the host.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            step()

    def __call__(self) -> None:
        """Takes the step; returns before the device has done it."""
        self.graph.replay()
