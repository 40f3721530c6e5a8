"""Packages are fetched once, whole and as they were published, or one sentence says why not."""

import base64
import errno
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
from hawaii.tests.tiny.emoji import make_archive


class Registry(SimpleHTTPRequestHandler):
    """Serves files without a word; what ends in `cut.tgz` breaks off."""

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
    """A folder that a server on this machine offers as a registry."""
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


def test_a_package_is_fetched_whole_and_only_once(registry, package, tmp_path):
    path = fetch(package, tmp_path / "packages")
    published = registry / "@scope" / "things" / "-" / "things-1.2.3.tgz"
    assert path.name == "things-1.2.3.tgz" and path.read_bytes() == published.read_bytes()
    published.unlink()
    assert fetch(package, tmp_path / "packages") == path


def test_members_are_read_without_extracting_them(package, tmp_path):
    path = fetch(package, tmp_path / "packages")
    assert read_members(path, "b/c.json", "a.json") == [[2], {"a": 1}]
    assert list((tmp_path / "packages").iterdir()) == [path]


def test_what_a_kill_or_a_damage_left_is_fetched_anew(package, tmp_path):
    path = fetch(package, tmp_path / "packages")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    path.with_name(f"{path.name}.incomplete").write_bytes(whole[:7])
    assert fetch(package, tmp_path / "packages").read_bytes() == whole
    assert list((tmp_path / "packages").iterdir()) == [path]


def test_what_is_not_what_was_published_is_refused(registry, package, tmp_path):
    (registry / "@scope" / "things" / "-" / "things-1.2.3.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"things-1\.2\.3\.tgz is not what was published: its 14 bytes .*another npm"):
        fetch(package, tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


@pytest.mark.parametrize(
    ("name", "registry_address", "reason"),
    [
        ("@scope/absent", None, "could not be fetched: File not found|could not be fetched: Not Found"),
        ("@scope/things", "http://127.0.0.1:9", "could not be fetched: .*refused"),
        ("@scope/things", "nowhere", "could not be fetched: unknown url type"),
    ],
)
def test_a_registry_that_cannot_give_it_is_named_with_the_way_out(
    registry, package, tmp_path, monkeypatch, name, registry_address, reason
):
    if registry_address is not None:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry_address)
    with pytest.raises(ValueError, match=f"(?s){reason}.*NPM_CONFIG_REGISTRY.*HTTPS_PROXY"):
        fetch(Package(name, "1.2.3", package.sha512), tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_a_download_that_breaks_off_leaves_nothing(registry, package, tmp_path):
    with pytest.raises(ValueError, match="could not be fetched: IncompleteRead"):
        fetch(Package("@scope/things", "cut", package.sha512), tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_a_full_disk_leaves_nothing(package, tmp_path, monkeypatch):
    def fill(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(package, tmp_path / "packages")
    assert not list((tmp_path / "packages").iterdir())


def test_every_package_has_one_version_and_a_sha512_of_its_own():
    packages = [*VENDORS.values(), NAMES]
    assert {len(base64.b64decode(package.sha512, validate=True)) for package in packages} == {64}
    assert len({package.sha512 for package in packages}) == len({package.file_name for package in packages}) == 5
    assert TEST_VENDOR not in TRAIN_VENDORS and {*TRAIN_VENDORS, TEST_VENDOR} == set(VENDORS)
