"""Atomic writes, the run lock, and paths as names and words of commands."""

import os
import subprocess
import sys

import pytest

from kerasnorm.errors import RunFolderError
from kerasnorm.files import (
    atomic_writer,
    in_command,
    run_lock,
    sha256,
    short_name,
    write_bytes,
    write_json,
)


def test_a_write_replaces_the_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(TypeError), atomic_writer(path) as file:
        file.write("no bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_second_process_cannot_take_a_held_lock(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from kerasnorm.files import run_lock\n"
        "with run_lock(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with run_lock(tmp_path):
        held = subprocess.run(command, capture_output=True, text=True, check=False)
    assert held.returncode == 1
    assert RunFolderError.__name__ in held.stderr
    subprocess.run(command, check=True)


@pytest.mark.parametrize(
    "name", ["run", "my run", "it's", 'a"b', "$HOME", "a;b", "-x", "--out", "*", "a\nb", "ü", "~"]
)
def test_a_path_in_a_command_is_one_word_of_the_shell(tmp_path, name):
    (tmp_path / name).mkdir()
    done = subprocess.run(
        ["bash", "-c", f"cd {in_command(name)} && pwd -P"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.removesuffix("\n") == str(tmp_path.resolve() / name)
    assert not in_command(name).startswith("-")


def test_long_names_are_cut_and_stay_distinct(tmp_path):
    long = ["é" * 200 + end for end in "ab"] + ["x" * 120, "x" * 121, "\udcff" * 300]
    names = [short_name(name) for name in long]
    assert names[2] == long[2]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / name).mkdir()
        assert len(os.fsencode(name)) <= 120
    assert short_name("bn-torch") == "bn-torch"
