"""The `.pt2` files of torch.export."""

import io
from pathlib import Path

from kerasnorm.formats import archive
from kerasnorm.formats.format import Format, Opened, fixed_sizes, only
from kerasnorm.formats.safety import pt2


def write(source: Path, out: Path) -> None:
    """Writes the model of a `.keras` file as a program of torch.export."""
    write_program(source, out)
    out.write_bytes(pt2.clean(out))  # without the stack traces, which name the author's folders


def write_program(source: Path, out: Path) -> None:
    """Writes the model of a `.keras` file as torch.export itself does."""
    import torch

    model = archive.load_used_model(source)
    model.eval()
    # Two images: torch.export regards a dimension of 1 as constant.
    images = torch.zeros((2, *model.input_shape[1:]))
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=(({0: batch},),))
    torch.export.save(program, out)


def open_file(path: Path) -> Opened:
    """Opens what is safe in a `.pt2` file in torch.export."""
    import torch

    program = torch.export.load(io.BytesIO(pt2.clean(path)))
    module = program.module(check_guards=False)
    name = only(path, program.graph_signature.user_inputs, "input")
    value = next(node for node in program.graph.nodes if node.name == name).meta["val"]
    call = torch.inference_mode()(lambda batch: module(torch.from_numpy(batch)).numpy())
    return Opened(call, fixed_sizes(value.shape), str(value.dtype).removeprefix("torch."), name)


FORMAT = Format(
    name="torch",
    suffix=".pt2",
    runtime="torch.export",
    write=write,
    open=open_file,
    modules=("torch.export", "sympy"),
    writers={"torch": ()},
)
