"""Where a result comes from: versions, host, revision and command line."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from kerasnorm.runtime import Device

PACKAGES = ("kerasnorm", "keras", "numpy", "torch", "tensorflow", "tensorflow-cpu", "jax")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide a result."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(backend: str, device: Device) -> dict[str, Any]:
    """Returns what a reader needs to judge or repeat a run: versions, device, host, revision."""
    return {
        "versions": versions(),
        "backend": backend,
        "device": {"kind": device.kind, "name": device.name},
        "host": host(),
        "git_revision": git_revision(),
        "command_line": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def host() -> dict[str, Any]:
    """Returns the machine in a few facts."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_revision() -> str | None:
    """Returns the commit of the checkout that this package runs from, None outside of one."""
    import subprocess

    folder = Path(__file__).parent
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
