"""The tests that hold on any backend, run on TensorFlow too; each process has one backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Tests that use nothing of one backend, but where they say so.
MODULES = (
    "test_norms.py",
    "test_norm_record.py",
    "test_network.py",
    "engines/test_engines.py",
    "engines/tensorflow/test_engine.py",
    "engines/test_training_pass.py",
    "inspection/test_outputs.py",
    "test_settings.py",
    "formats/test_torch_import.py",
    "explain/test_norm.py",
    "explain/test_landscape.py::test_the_middle_of_the_surface_is_what_evaluate_says",
    "explain/test_landscape.py::test_the_line_starts_at_the_batchs_loss_and_leaves_the_net_alone",
    "explain/test_landscape.py::test_training_in_windows_is_training",
    "explain/test_activations.py::test_a_dead_channel_is_seen",
    "training/test_train.py::test_an_interrupted_and_resumed_run_equals_one_never_interrupted",
    "training/test_train.py::test_keras_callbacks_see_every_step_and_standard_logs",
    "training/test_train.py::test_mixed_precision_trains_and_saves_a_float32_model",
)


def test_the_same_laws_hold_on_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    here = Path(__file__).parent
    options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(here / name) for name in MODULES)],
        cwd=here.parent,
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)
