"""The optimizers of `kerasnorm.engines.optimizers`, computed on all variables as one vector.

The Keras optimizer keeps its variables, so that checkpoints are the same for every engine; the
variables become views of the vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kerasnorm.config import TrainConfig
from kerasnorm.engines.optimizers import DECAYED, ConvMuon, is_kernel, step_size

# Moves weights along a gradient (a tensor) at a learning rate (a tensor of one number).
Rule = Callable[[Tensor, Tensor], None]


class FlatOptimizer:
    """Adam, AdamW, SGD with Nesterov momentum or Muon, as Keras computes them.

    Nothing is read back from the device: step and rate are tensors.

    Attributes:
        parameters: The variables' tensors, in their order.
        gathered: Gradients and numbers of the last `gather`, as one vector.
        gradient: The gradients in it, those of kernels first.
    """

    def __init__(
        self,
        optimizer: Any,
        variables: list[Any],
        config: TrainConfig,
        rates: NDArray[np.float64],
        numbers: int = 0,
    ) -> None:
        self.parameters = [variable.value for variable in variables]
        self.places = [optimizer._get_variable_index(variable) for variable in variables]
        self.kernels = [v.value for v in variables if is_kernel(v)]
        # Kernels come first, because Muon has a rule for them alone.
        self.order = sorted(range(len(variables)), key=lambda i: not is_kernel(variables[i]))
        self.weights = _flatten(self._sorted(self.parameters))
        self.gathered = self.weights.new_zeros(len(self.weights) + numbers)
        self.gradient = self.gathered[: len(self.weights)]
        self.iterations = optimizer.iterations.value
        self.decay = None
        if optimizer.weight_decay:
            shares = [
                torch.full_like(p, optimizer.weight_decay if v.name.endswith(DECAYED) else 0.0)
                for v, p in zip(variables, self.parameters, strict=True)
            ]
            self.decay = torch.cat([s.detach().reshape(-1) for s in self._sorted(shares)])
        # Callbacks may change a constant rate, which is a variable.
        is_constant = config.schedule == "constant"
        self.rate = optimizer.learning_rate.value if is_constant else None
        self.rates = self._table(rates)
        self.rules = self._rules(optimizer, config)

    def _sorted(self, of_variables: Sequence[Any]) -> list[Any]:
        return [of_variables[index] for index in self.order]

    def _slot(self, slots: Sequence[Any]) -> Tensor:
        """Returns a slot of the optimizer as one vector; variables without it are left out."""
        found = self._sorted([slots[place] for place in self.places])
        return _flatten([slot.value for slot in found if slot is not None])

    def _rules(self, optimizer: Any, config: TrainConfig) -> list[tuple[slice, Rule]]:
        """Returns the update rules, each with its part of the vector."""
        whole = slice(None)
        if isinstance(optimizer, keras.optimizers.SGD):
            velocity = self._slot(optimizer.momentums) if config.momentum else None
            return [(whole, _sgd(self.weights, velocity, config.momentum))]
        if not isinstance(optimizer, ConvMuon):
            slots = self._slot(optimizer._momentums), self._slot(optimizer._velocities)
            betas = optimizer.beta_1, optimizer.beta_2
            return [(whole, self._adam(self.weights, slots, betas, optimizer.epsilon))]
        first = self._slot(optimizer.momentums)
        shapes = [kernel.shape for kernel in self.kernels]
        turn = sum(shape.numel() for shape in shapes)
        rules = [(slice(turn), _muon(self.weights[:turn], first[:turn], shapes, optimizer))]
        if turn < len(self.weights):
            slots = first[turn:], self._slot(optimizer.adam_velocities)
            betas = optimizer.adam_beta_1, optimizer.adam_beta_2
            adam = self._adam(self.weights[turn:], slots, betas, optimizer.epsilon)
            rules.append((slice(turn, None), adam))
        return rules

    def _adam(
        self,
        weights: Tensor,
        slots: tuple[Tensor, Tensor],
        betas: tuple[float, float],
        epsilon: float,
    ) -> Rule:
        """Kingma & Ba, arXiv 1412.6980, the form before section 2.1."""
        (first, second), (beta_1, beta_2) = slots, betas
        t = np.arange(1, len(self.rates) + 1)
        corrections = self._table(np.sqrt(1 - beta_2**t) / (1 - beta_1**t))

        def move(gradient: Tensor, rate: Tensor) -> None:
            first.lerp_(gradient, 1 - beta_1)
            second.lerp_(gradient.square(), 1 - beta_2)
            size = rate * self._at_step(corrections)
            weights.sub_(first * size / second.sqrt().add_(epsilon))

        return move

    def _table(self, numbers: NDArray[np.float64]) -> Tensor:
        return torch.tensor(numbers, dtype=self.weights.dtype, device=self.weights.device)

    def _at_step(self, table: Tensor) -> Tensor:
        """Returns a table's number for this step; beyond its end, the last one."""
        index = self.iterations.clamp(max=len(table) - 1).reshape(1).long()
        return table.index_select(0, index)

    def gather(self, gradients: Sequence[Tensor | None], numbers: Tensor) -> None:
        """Copies the gradients of the next step, one per variable, and numbers to `gathered`.

        A variable that the loss does not depend on, whose gradient is None, stays as it is.
        """
        with torch.no_grad():
            if any(gradient is None for gradient in gradients):
                gradients = self._filled(gradients)
            rows = [g.reshape(-1) for g in self._sorted(gradients)]
            torch.cat([*rows, numbers], out=self.gathered)

    def _filled(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns gradients with zeros for None, and lets no such variable decay, as in Keras."""
        if self.decay is not None:
            for gradient, share in zip(gradients, self._parts(self.decay), strict=True):
                if gradient is None:
                    share.zero_()
        pairs = zip(gradients, self.parameters, strict=True)
        return [torch.zeros_like(p) if g is None else g for g, p in pairs]

    def gradients(self) -> list[Tensor]:
        """Returns the gradients that were gathered, one per variable."""
        return self._parts(self.gradient)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """Returns what belongs to each variable of a vector over all, in the variables' order."""
        sizes = [parameter.numel() for parameter in self._sorted(self.parameters)]
        return [part for _, part in sorted(zip(self.order, vector.split(sizes), strict=True))]

    def update(self) -> None:
        """Takes one step along the gradients that were gathered."""
        with torch.no_grad():
            rate = self._at_step(self.rates) if self.rate is None else self.rate
            if self.decay is not None:
                self.weights.sub_(self.weights * (self.decay * rate))
            for part, move in self.rules:
                move(self.gradient[part], rate)
            self.iterations.add_(1)


def _sgd(weights: Tensor, velocity: Tensor | None, momentum: float) -> Rule:
    """Nesterov momentum as in Sutskever et al. 2013, in the form of Keras."""

    def move(gradient: Tensor, rate: Tensor) -> None:
        step = gradient * rate
        if velocity is None:
            weights.sub_(step)
        else:
            velocity.mul_(momentum).sub_(step)
            weights.add_(velocity, alpha=momentum).sub_(step)

    return move


def _muon(
    weights: Tensor, average: Tensor, shapes: Sequence[torch.Size], optimizer: ConvMuon
) -> Rule:
    """See `ConvMuon`; the vectors hold kernels of these shapes (height, width, in, out)."""
    sizes = [shape.numel() for shape in shapes]
    alike: dict[tuple[int, ...], list[int]] = {}  # places by shape
    for place, shape in enumerate(shapes):
        alike.setdefault(tuple(shape), []).append(place)
    factors = optimizer.muon_a, optimizer.muon_b, optimizer.muon_c
    momentum, repeats = optimizer.momentum, optimizer.ns_steps

    def move(gradient: Tensor, rate: Tensor) -> None:
        average.mul_(momentum).add_(gradient)
        steps = list(gradient.add(average, alpha=momentum).split(sizes))
        for shape, places in alike.items():
            matrices = torch.stack([steps[place].view(-1, shape[-1]) for place in places])
            moves = orthogonalize(matrices, factors, repeats) * step_size(shape, optimizer.rms_rate)
            for place, step in zip(places, moves, strict=True):
                steps[place] = step.reshape(-1)
        weights.sub_(torch.cat(steps).mul_(rate))

    return move


def orthogonalize(matrices: Tensor, factors: tuple[float, float, float], repeats: int) -> Tensor:
    """Returns nearly the nearest matrices with orthonormal columns (or rows, if they have fewer).

    X <- a X + (b X Xᵀ + c (X Xᵀ)²) X, repeated; the singular values of the result lie between 0.7
    and 1.2. Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Matrices are
    (count, rows, columns), the factors a, b, c.
    """
    a, b, c = factors
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(repeats):
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x.mT if is_tall else x


def _flatten(parameters: list[Tensor]) -> Tensor:
    """Returns tensors as one vector, and makes them views of it."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat
