"""Packages are downloaded once and verified, and an error says why a download failed."""

import base64
import errno
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hawaii.example_data.emoji_vqa.packages import (
    NAMES,
    TEST_VENDOR,
    TRAIN_VENDORS,
    VENDORS,
    Package,
    fetch,
    read_members,
)
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.emoji import make_archive


class Registry(SimpleHTTPRequestHandler):
    """Serves files without logging, and only the start of files that end in `cut.tgz`."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if not self.path.endswith("cut.tgz"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"the beginning")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that a local server offers as a registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Registry, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def package(registry):
    return make_archive(Package("@scope/things", "1.2.3", ""), {"a.json": {"a": 1}, "b/c.json": [2]}, registry)


def test_a_package_is_downloaded_only_once(registry, package, tmp_path):
    path = fetch(package, tmp_path / "packages")
    published = registry / "@scope" / "things" / "-" / "things-1.2.3.tgz"
    assert path.name == "things-1.2.3.tgz" and path.read_bytes() == published.read_bytes()
    published.unlink()
    assert fetch(package, tmp_path / "packages") == path


def test_members_are_read_without_extracting_them(package, tmp_path):
    path = fetch(package, tmp_path / "packages")
    assert read_members(path, "b/c.json", "a.json") == [[2], {"a": 1}]
    assert list((tmp_path / "packages").iterdir()) == [path]


def test_incomplete_and_damaged_archives_are_downloaded_again(package, tmp_path):
    path = fetch(package, tmp_path / "packages")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    leftover = path.with_name(f"{path.name}.{'0' * 32}.incomplete")
    leftover.write_bytes(content[:7])
    os.utime(leftover, (0, 0))  # more than a day old
    assert fetch(package, tmp_path / "packages").read_bytes() == content
    assert list((tmp_path / "packages").iterdir()) == [path]


def test_an_archive_with_another_hash_is_refused(registry, package, tmp_path):
    (registry / "@scope" / "things" / "-" / "things-1.2.3.tgz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"things-1\.2\.3\.tgz has 14 bytes, and their SHA-512 is not .*another npm"):
        fetch(package, tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


@pytest.mark.parametrize(
    ("name", "registry_address", "reason"),
    [
        ("@scope/absent", None, "could not be downloaded: File not found|could not be downloaded: Not Found"),
        ("@scope/things", "http://127.0.0.1:9", "could not be downloaded: .*refused"),
        ("@scope/things", "nowhere", "could not be downloaded: unknown url type"),
    ],
)
def test_the_error_of_a_download_names_the_address_and_other_ways_to_reach_a_registry(
    registry, package, tmp_path, monkeypatch, name, registry_address, reason
):
    if registry_address is not None:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry_address)
    with pytest.raises(UserError, match=f"(?s){reason}.*NPM_CONFIG_REGISTRY.*HTTPS_PROXY"):
        fetch(Package(name, "1.2.3", package.sha512), tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_an_interrupted_download_leaves_no_file(registry, package, tmp_path):
    with pytest.raises(UserError, match="could not be downloaded: IncompleteRead"):
        fetch(Package("@scope/things", "cut", package.sha512), tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_a_full_disk_leaves_no_file(package, tmp_path, monkeypatch):
    def fill(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(package, tmp_path / "packages")
    assert not list((tmp_path / "packages").iterdir())


def test_every_package_has_its_own_file_and_hash():
    packages = [*VENDORS.values(), NAMES]
    assert {len(base64.b64decode(package.sha512, validate=True)) for package in packages} == {64}
    assert len({package.sha512 for package in packages}) == len({package.file_name for package in packages}) == 5
    assert TEST_VENDOR not in TRAIN_VENDORS and {*TRAIN_VENDORS, TEST_VENDOR} == set(VENDORS)
