"""The record that a run keeps of where it came from."""

from kerasnorm import provenance, runtime


def test_the_environment_names_versions_device_and_command():
    record = provenance.environment("torch", runtime.Device("cpu", "CPU, 2 threads"))
    assert {"python", "keras", "numpy", "kerasnorm"} <= set(record["versions"])
    assert record["device"] == {"kind": "cpu", "name": "CPU, 2 threads"}
    assert record["command_line"]
