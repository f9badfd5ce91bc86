"""Downloads, from a server on this machine: whole, damaged, slow, absent, cached, at once."""

import contextlib
import gzip
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kerasnorm.data import download
from kerasnorm.data.download import DownloadError, RemoteFile, fetch
from kerasnorm.data.sources import OFFICIAL

CONTENT = gzip.compress(bytes(range(256)) * 4000, mtime=0)


class Server(ThreadingHTTPServer):
    """Serves CONTENT under addresses that say how: /whole, /truncated, /stalls, …

    Attributes:
        asked: The addresses asked for, in order.
        done: Set when the server ends, for the handlers that wait.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.done = threading.Event()

    def url(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{how}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        how = self.path.strip("/")
        self.server.asked.append(how)
        if how == "silent":
            self.server.done.wait(10)
            return
        if how == "missing":
            self.send_error(404)
            return
        if how == "moved":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        if how != "endless":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side hangs up, as it should
            self.send_body(how)

    def send_body(self, how: str) -> None:
        if how == "endless":
            while not self.server.done.is_set():
                self.wfile.write(CONTENT)
        elif how == "whole" or (how == "recovers" and self.server.asked.count(how) > 1):
            self.wfile.write(CONTENT)
        elif how == "flipped":
            self.wfile.write(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        else:
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
            self.wfile.flush()
            if how == "stalls":
                self.server.done.wait(10)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.done.set()
        running.shutdown()
        thread.join()


def remote(*urls: str, path: str = "file.tar.gz", algorithm: str = "sha256") -> RemoteFile:
    checksum = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    return RemoteFile(path, urls, checksum, len(CONTENT))


def left_in(cache: Path) -> list[str]:
    """The files in the cache, but for locks."""
    files = (path for path in cache.rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.suffix != ".lock")


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_download_and_its_line(
    algorithm: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kerasnorm")
    cache = tmp_path / "new" / "cache"
    file = remote(server.url("whole"), path="digits/file.gz", algorithm=algorithm)
    path = fetch(file, cache)
    assert path == cache / "digits" / "file.gz"
    assert path.read_bytes() == CONTENT
    assert left_in(cache) == ["file.gz"]
    size = f"{len(CONTENT) / 1e6:.1f} MB"
    assert caplog.messages == [f"Downloading {server.url('whole')} ({size}) to {cache / 'digits'}"]


def test_the_second_time_asks_nobody(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch(remote(server.url("whole")), tmp_path)
    assert server.asked == ["whole"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("flipped", "SHA256 hash of downloaded file .* does not match"),
        ("truncated", f"{len(CONTENT) // 2} of the expected {len(CONTENT)} bytes|IncompleteRead"),
        ("endless", f"more than the expected {len(CONTENT)} bytes"),
        ("missing", "404 Client Error: Not Found"),
        ("moved", "No connection adapters were found for 'file:///etc/passwd'"),
        ("stalls", "timed out"),
        ("silent", "timed out"),
    ],
)
def test_what_is_not_the_file_leaves_nothing(
    how: str, reason: str, server: Server, tmp_path: Path
) -> None:
    message = rf"file\.tar\.gz: expected to download it\. Received: {server.url(how)}: .*({reason})"
    with pytest.raises(DownloadError, match=message) as caught:
        fetch(remote(server.url(how)), tmp_path, timeout=0.3)
    assert caught.value.exit_code == 3
    assert left_in(tmp_path) == []


def test_nobody_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kerasnorm")
    with Server() as closed:
        url = closed.url("whole")
    with pytest.raises(DownloadError, match="Check the network") as caught:
        fetch(remote(url), tmp_path, timeout=0.3)
    assert caught.value.reason.startswith(f"{url}: [Errno ")
    assert caplog.messages == []


def test_a_download_that_takes_too_long(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DEADLINE", -1.0)
    monkeypatch.setattr(download, "_PIECE", 100)
    with pytest.raises(DownloadError, match="not done after"):
        fetch(remote(server.url("whole")), tmp_path)
    assert left_in(tmp_path) == []


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    urls = [server.url(how) for how in ("missing", "flipped", "whole", "endless")]
    assert fetch(remote(*urls), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["missing", "flipped", "whole"]


def test_an_address_that_fails_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("pooch.core.time.sleep", pauses.append)
    with pytest.raises(DownloadError, match="404"):
        fetch(remote(server.url("missing")), tmp_path, retries=2)
    assert server.asked == ["missing"] * 3
    assert pauses == [1, 2]
    assert fetch(remote(server.url("recovers")), tmp_path, retries=2).read_bytes() == CONTENT
    assert server.asked[3:] == ["recovers"] * 2


def test_a_download_has_the_permissions_of_any_new_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    path = fetch(remote(server.url("whole")), tmp_path)
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_long_download_says_how_far_it_is(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kerasnorm")
    monkeypatch.setattr(download, "_NOTE_EVERY", 0.0)
    monkeypatch.setattr(download, "_PIECE", len(CONTENT) // 2)
    fetch(remote(server.url("whole")), tmp_path)
    assert [line.split()[0] for line in caplog.messages][:2] == ["Downloading", "Downloaded"]
    size = len(CONTENT) / 1e6
    assert caplog.messages[-1] == f"Downloaded {size:.1f} of {size:.1f} MB"


def test_many_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(remote(server.url("whole")), tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.asked == ["whole"]


def test_what_a_killed_process_left_is_removed(server: Server, tmp_path: Path) -> None:
    for name in ("file", "other"):
        (tmp_path / f".{name}.tar.gz.partial").mkdir()
        (tmp_path / f".{name}.tar.gz.partial" / f"{name}-half").write_bytes(b"half")
    fetch(remote(server.url("whole")), tmp_path)
    assert left_in(tmp_path) == ["file.tar.gz", "other-half"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DownloadError, match="set KERASNORM_CACHE to another folder"):
        fetch(remote("http://127.0.0.1:1/x"), tmp_path / "cache")


def test_the_table_is_sound() -> None:
    for official in OFFICIAL.values():
        for file in official.files:
            algorithm, _, digits = file.checksum.partition(":")
            assert len(bytes.fromhex(digits)) == {"sha256": 32, "md5": 16}[algorithm]
            assert all(url.startswith(("https://", "http://")) for url in file.urls)
            assert all(url.endswith(Path(file.path).name) for url in file.urls)
            assert 5_000 < file.size < 200_000_000
