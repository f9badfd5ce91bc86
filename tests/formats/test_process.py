"""The process that parses files from strangers."""

import subprocess
import sys

import pytest


def test_openvino_reports_nothing_from_it():
    pytest.importorskip("openvino")
    code = (
        "from kerasnorm.formats.safety.process import refuse_telemetry\n"
        "refuse_telemetry()\n"
        "import openvino.tools.ovc.convert_impl as converter\n"
        "print(converter.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("telemetry_stub")
