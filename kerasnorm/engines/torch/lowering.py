"""A functional Keras model as a flat list of plain PyTorch calls on the model's own variables.

The list is made once. A training step then needs neither Keras's Python code for each layer nor its
copies between memory layouts: images stay (N, C, H, W) in channels-last memory from the first layer
to the last. A layer without a rule in `kerasnorm.engines.torch.layers` is called as a Keras layer,
on (N, H, W, C).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import torch
from torch import Tensor

from kerasnorm.engines.torch.kernels import channels_last
from kerasnorm.engines.torch.layers import Lowered, Mode, Site, lower_layer
from kerasnorm.errors import ConfigError
from kerasnorm.inspection.graph import call_node, functional_graph, nodes


@dataclass
class _Step:
    """One call: what to call, the tensors that it reads and writes, and those not read again."""

    sources: list[int]
    targets: list[int]
    lowered: Lowered
    dead: list[int] = field(default_factory=list)


class LoweredModel:
    """The forward pass of a model with one input and one output.

    Attributes:
        device: Where the model's variables are.
        is_whole: Whether no layer is left to Keras.

    Args:
        model: Functional, or a Sequential that has been built.

    Raises:
        ConfigError: The model has no graph, or several inputs or outputs.
    """

    def __init__(self, model: Any) -> None:
        graph = functional_graph(model)
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ConfigError(
                "Expected a model with one input and one output. Received: "
                f"{len(graph.inputs)} and {len(graph.outputs)}"
            )
        self.device = keras.ops.zeros(()).device
        self.input = id(graph.inputs[0])
        self.input_dtype: torch.dtype = getattr(torch, graph.inputs[0].dtype)
        self.output = id(graph.outputs[0])
        self.steps = self._plan(graph)
        self.is_whole = not any(step.lowered.is_foreign for step in self.steps)

    def __call__(self, inputs: Tensor, mode: Mode) -> Tensor:
        """Returns the model's output for inputs (N, ...), on the model's device.

        Inputs of any type are cast to that of the model's input, as Keras casts them.
        """
        values = {self.input: _from_keras(inputs).to(self.input_dtype)}
        for step in self.steps:
            outputs = step.lowered.call(mode, *(values[source] for source in step.sources))
            if len(step.targets) == 1:
                values[step.targets[0]] = outputs
            else:
                values.update(zip(step.targets, outputs, strict=True))
            for name in step.dead:
                del values[name]
        return _to_keras(values[self.output])

    def _plan(self, graph: Any) -> list[_Step]:
        calls = [node for node in nodes(graph) if not node.is_input]
        readers = Counter(id(tensor) for node in calls for tensor in node.input_tensors)
        readers[self.output] += 1
        steps: list[_Step] = []
        for number, node in enumerate(calls):
            sources = [id(tensor) for tensor in node.input_tensors]
            targets = [id(tensor) for tensor in node.outputs]
            step = _Step(sources, targets, _lower(node, Site(self.device, number)))
            if [readers[name] for name in sources] == [1]:
                _fold_dropout(step, steps)
            steps.append(step)
        last = {name: step for step in steps for name in (*step.sources, *step.targets)}
        for name, step in last.items():
            if name != self.output:
                step.dead.append(name)
        return steps


def _fold_dropout(step: _Step, before: list[_Step]) -> None:
    """Lets the norm before a dropout do its scaling, so that only the zeros are left to write.

    It saves 4.5 % of a step of era8 with bn and 3.6 % with gn (one thread). The dropout must be
    the only reader of its input.
    """
    source = next((other for other in before if step.sources[0] in other.targets), None)
    if step.lowered.dropping is None or source is None or source.lowered.scaled is None:
        return
    rate, drop = step.lowered.dropping
    source.lowered = source.lowered.scaled(1 / (1 - rate))
    step.lowered = replace(step.lowered, call=drop)


def _lower(node: Any, site: Site) -> Lowered:
    inputs = node.input_tensors
    lowered = lower_layer(node.operation, inputs, site) if _has_only_tensors(node) else None
    return lowered or Lowered(_keras_call(node), is_foreign=True)


def _has_only_tensors(node: Any) -> bool:
    """Says whether a layer is called on symbolic tensors and nothing else, such as a mask."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    others = [value for name, value in kwargs.items() if name != "training"]
    return (
        len(args) == 1
        and len(keras.tree.flatten(args)) == len(node.input_tensors)
        and not any(value is not None for value in keras.tree.flatten(others))
    )


def _keras_call(node: Any) -> Callable[..., Any]:
    """Returns a call of the Keras layer or operation itself."""
    names = [id(tensor) for tensor in node.input_tensors]

    def call(mode: Mode, *inputs: Tensor) -> Any:
        tensors = dict(zip(names, map(_to_keras, inputs), strict=True))
        outputs = [_from_keras(output) for output in call_node(node, tensors, mode.training)]
        return outputs[0] if len(outputs) == 1 else outputs

    return call


def _from_keras(x: Tensor) -> Tensor:
    """Turns images (N, H, W, C) into (N, C, H, W) in channels-last memory."""
    return channels_last(x.permute(0, 3, 1, 2)) if x.dim() == 4 else x


def _to_keras(x: Tensor) -> Tensor:
    """Turns images (N, C, H, W) into (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x
