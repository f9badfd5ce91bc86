"""The optimizers of `portable.make_optimizer`, computed on all variables as one vector.

The Keras optimizer stays the owner of its variables, so checkpoints are the same for every engine;
the variables become views of the vectors.
"""

from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor

from kerasnorm.config import TrainConfig
from kerasnorm.engines.portable import UNDECAYED
from kerasnorm.engines.schedule import learning_rates


class FlatOptimizer:
    """Adam, AdamW or SGD with Nesterov momentum, as Keras computes them.

    Nothing is read back from the device: step and rate are tensors.

    Args:
        optimizer: Built on `variables`; its state is kept up to date.
        variables: The model's trainable variables.
        config: What the optimizer was made from.
        steps: Of the whole run.
    """

    def __init__(
        self, optimizer: Any, variables: list[Any], config: TrainConfig, steps: int
    ) -> None:
        self.parameters = [variable.value for variable in variables]
        self.weights = _flatten(self.parameters)
        self.gradient = torch.zeros_like(self.weights)
        self.iterations = optimizer.iterations.value
        self.momentum = config.momentum
        self.decay = None
        if optimizer.weight_decay:
            shares = [
                torch.full_like(p, 0.0 if v.name in UNDECAYED else optimizer.weight_decay)
                for v, p in zip(variables, self.parameters, strict=True)
            ]
            self.decay = torch.cat([share.detach().reshape(-1) for share in shares])
        if isinstance(optimizer, keras.optimizers.SGD):
            slots = [optimizer.momentums] if config.momentum else []
            self.adam = None
        else:
            slots = [optimizer._momentums, optimizer._velocities]
            self.adam = optimizer
        self.slots = [_flatten([variable.value for variable in slot]) for slot in slots]
        # A constant rate is a variable, which callbacks may change.
        is_constant = config.schedule == "constant"
        self.rate = optimizer.learning_rate.value if is_constant else None
        self.rates = self._table(learning_rates(config, steps))
        self.corrections = self._table(self._bias_corrections(steps))

    def _table(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=self.weights.dtype, device=self.weights.device)

    def _bias_corrections(self, steps: int) -> Any:
        """sqrt(1 - beta_2^t) / (1 - beta_1^t) of Adam; Kingma & Ba, arXiv 1412.6980, section 2."""
        if self.adam is None:
            return np.ones(1)
        t = np.arange(1, steps + 1)
        return np.sqrt(1 - self.adam.beta_2**t) / (1 - self.adam.beta_1**t)

    def _at_step(self, table: Tensor) -> Tensor:
        """Returns a table's number for this step; the last one holds beyond its end."""
        index = self.iterations.clamp(max=len(table) - 1).reshape(1).long()
        return table.index_select(0, index)

    def update(self, gradients: tuple[Tensor, ...]) -> None:
        """Takes one step along gradients, one for each variable."""
        with torch.no_grad():
            self._update(gradients)

    def _update(self, gradients: tuple[Tensor, ...]) -> None:
        gradient = torch.cat([g.reshape(-1) for g in gradients], out=self.gradient)
        rate = self._at_step(self.rates) if self.rate is None else self.rate
        if self.decay is not None:
            self.weights.sub_(self.weights * (self.decay * rate))
        if self.adam is not None:
            first, second = self.slots
            first.lerp_(gradient, 1 - self.adam.beta_1)
            second.lerp_(gradient.square(), 1 - self.adam.beta_2)
            size = rate * self._at_step(self.corrections)
            self.weights.sub_(first * size / second.sqrt().add_(self.adam.epsilon))
        elif self.slots:
            step = gradient * rate
            velocity = self.slots[0].mul_(self.momentum).sub_(step)
            self.weights.add_(velocity, alpha=self.momentum).sub_(step)
        else:
            self.weights.sub_(gradient * rate)
        self.iterations.add_(1)


def _flatten(parameters: list[Tensor]) -> Tensor:
    """Returns tensors as one vector, and makes them views of it."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat
