"""Atomic writes, the run lock, and paths as names and words of commands."""

import codecs
import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from kerasnorm import files
from kerasnorm.errors import RunFolderError
from kerasnorm.files import (
    atomic_writer,
    encoded,
    in_command,
    is_empty,
    make_folder,
    read_text,
    run_lock,
    sha256,
    short_name,
    write_bytes,
    write_json,
)


@pytest.fixture
def first_warning():
    """Warnings that come once per process come again."""
    files._warn_once.cache_clear()


def refuse(number):
    """Returns a function that a file system without it answers with an error."""

    def function(*_, **__):
        raise OSError(number, os.strerror(number))

    return function


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


def test_a_list_of_numbers_is_one_line_of_json(tmp_path):
    document = {"counts": [[1, 2], [3, 4]], "x": [1.5, -2e-08], "text": ["[\n1\n]", "[ 1 ]"]}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == document
    assert [line.strip() for line in text.splitlines()][1:6] == [
        '"counts": [',
        "[1,2],",
        "[3,4]",
        "],",
        '"x": [1.5,-2e-08],',
    ]


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


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM])
def test_a_file_system_without_fsync_is_said_once(
    tmp_path, monkeypatch, caplog, first_warning, number
):
    monkeypatch.setattr(os, "fsync", refuse(number))
    make_folder(tmp_path / "a" / "b")
    for content in (b"1", b"2"):
        write_bytes(tmp_path / "a" / "b" / "c", content)
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"2"
    assert len(caplog.messages) == 1
    assert "no fsync" in caplog.messages[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_an_fsync_that_fails_is_an_error(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.raises(RunFolderError, match="Cannot write"):
        write_bytes(tmp_path / "a", b"1")
    with pytest.raises(OSError, match=os.strerror(number)):
        files.fsync_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_once(
    tmp_path, monkeypatch, caplog, first_warning, number
):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    for _ in range(2):
        with run_lock(tmp_path) as folder:
            assert folder == tmp_path
    assert len(caplog.messages) == 1
    assert "no locks" in caplog.messages[0]
    assert list(tmp_path.iterdir()) == []


def test_the_log_that_a_process_writes_does_not_fill_its_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from kerasnorm.files import is_empty\n"
        "print(is_empty(Path(sys.argv[1])), flush=True)"
    )
    log = tmp_path / "notes of tonight"
    for stream in ("stdout", "stderr"):
        with log.open("w") as file:  # as the shell does with > and 2>
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: file}
            command = [sys.executable, "-c", code, str(tmp_path)]
            done = subprocess.run(command, check=True, text=True, **streams)
        assert (done.stdout or log.read_text()) == "True\n"
    assert not is_empty(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "größer 日本\n".encode(),
        codecs.BOM_UTF8 + "größer 日本\n".encode(),
        "größer 日本\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "größer 日本\n".encode("utf-16-be"),
    ],
)
def test_text_is_read_as_any_editor_leaves_it(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert read_text(tmp_path / "a") == "größer 日本\n"


def test_a_path_that_is_no_text_comes_back_from_a_file(tmp_path):
    path = os.fsdecode(b"/data/\xff\xfe")
    write_bytes(tmp_path / "a", encoded(path))
    assert (tmp_path / "a").read_bytes() == b"/data/\xff\xfe"
    assert read_text(tmp_path / "a") == path
