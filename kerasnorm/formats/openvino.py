"""OpenVINO models: an `.xml` file, with the weights in the `.bin` file of the same name."""

from pathlib import Path

from kerasnorm.formats import archive
from kerasnorm.formats.format import Format, Opened, only
from kerasnorm.formats.safety import checks


def write(source: Path, out: Path) -> None:
    """Writes the model of a `.keras` file, its input of a fixed height, width and channels.

    Keras on torch leaves them open.
    """
    import openvino

    archive.export_with_keras(source, out, format="openvino")
    model = openvino.Core().read_model(out.read_bytes(), out.with_suffix(".bin").read_bytes())
    sizes = archive.load_model(source).input_shape[1:]
    model.reshape([-1, *sizes])
    openvino.save_model(model, out, compress_to_fp16=False)


def open_file(path: Path) -> Opened:
    """Checks an OpenVINO model and opens it in OpenVINO."""
    import openvino

    checks.check_openvino(path)
    core = openvino.Core()
    # By default, CPUs that have bfloat16 compute in it, which is off by 1e-2.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    entry = only(path, compiled.inputs, "input")
    shape = tuple(0 if n.is_dynamic else n.get_length() for n in entry.get_partial_shape())
    name, dtype = entry.any_name.partition(":")[0], entry.element_type.to_dtype().name
    return Opened(lambda batch: compiled([batch])[compiled.output(0)], shape, dtype, name)


FORMAT = Format(
    name="openvino",
    suffix=".xml",
    runtime="OpenVINO",
    write=write,
    open=open_file,
    modules=("openvino",),
    # Keras converts with the help of SciPy, which neither of the two brings.
    writers={"tensorflow": ("openvino", "scipy"), "torch": ("openvino", "scipy")},
    companions=(".bin",),
)
