"""The code of released versions is recorded and does not change; a folder with other code is found."""

import json
import re
import shutil

import pytest

from hawaii.configuration.hub_hawaii import read_code
from hawaii.evaluation.checkpoint import checkpoint_folder
from hawaii.files.user_error import UserError
from hawaii.hub_cards import released_code
from hawaii.hub_cards.released_code import find_other_code, hash_code, read_released, record_release
from hawaii.tests.documents import ROOT


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table with the given versions, and the version of a setup.cfg."""
    monkeypatch.setattr(released_code, "TABLE", tmp_path / "released.json")
    monkeypatch.setattr(released_code, "SETUP", tmp_path / "setup.cfg")

    def write(version, **released):
        (tmp_path / "setup.cfg").write_text(f"[metadata]\nversion = {version}\n")
        (tmp_path / "released.json").write_text(json.dumps(released))

    return write


def test_the_code_of_the_version_in_setup_cfg_is_that_of_its_release():
    version = re.search(r"^version = (.*)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    released = read_released()
    assert version in released or "dev" in version, "run `make release`"
    code = hash_code(read_code())
    assert released.get(version, code) == code, "released code has changed: write a new version in setup.cfg"


def test_every_released_version_has_the_hash_of_each_file():
    for files in read_released().values():
        assert {"configuration_hawaii.py", "modeling_hawaii.py", "processing_hawaii.py"} <= files.keys()
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in files.values())


def test_a_release_adds_its_code_to_the_table(table):
    table("1.0", **{"0.9": {"modeling_hawaii.py": "0"}})
    record_release()
    assert read_released() == {"0.9": {"modeling_hawaii.py": "0"}, "1.0": hash_code(read_code())}
    record_release()  # again, with the same code


@pytest.mark.parametrize(
    "version, problem",
    [
        ("0.9", "The code of 0.9 has changed since its release"),
        ("1.0.dev0", "in setup.cfg is a version of development"),
    ],
)
def test_a_released_version_and_one_of_development_are_not_released(table, version, problem):
    table(version, **{"0.9": {"modeling_hawaii.py": "0"}})
    with pytest.raises(UserError, match=problem):
        record_release()
    assert read_released().keys() == {"0.9"}


def test_the_code_of_one_version_is_found_and_of_no_version_reported(hub_folder, tmp_path, table):
    table("1.0")
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    assert find_other_code(folder) == []  # the installed one
    for name in ("modeling_hawaii.py", "vision_hawaii.py"):
        (folder / name).write_text((folder / name).read_text() + "\n")
    assert find_other_code(folder) == ["modeling_hawaii.py", "vision_hawaii.py"]
    older = hash_code({path.name: path.read_text() for path in folder.glob("*_hawaii.py")})
    table("1.0", **{"0.9": older})
    assert find_other_code(folder) == []
    (folder / "vision_hawaii.py").unlink()
    assert find_other_code(folder) == []  # a part of a version
    (folder / "vision_hawaii.py").write_text(read_code()["vision_hawaii.py"])
    assert find_other_code(folder) == ["modeling_hawaii.py"]  # of 0.9, all others are of the installed version
    (folder / "added_hawaii.py").write_text("")
    assert find_other_code(folder) == ["added_hawaii.py", "modeling_hawaii.py"]


def test_a_class_in_other_code_is_reported(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {**config["auto_map"], "AutoModel": "evil.Model", "AutoConfig": "a/b--modeling_hawaii.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "custom_pipelines": {"x": {"impl": "evil.Pipeline"}}}))
    (folder / "evil.py").write_text("")
    assert find_other_code(folder) == [
        "custom_pipelines in config.json",
        "a/b--modeling_hawaii.Model in config.json",
        "evil.Model in config.json",
    ]


def test_commands_that_load_a_folder_warn_of_its_code(hub_folder, tmp_path, caplog):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    checkpoint_folder(folder)
    assert not caplog.records
    (folder / "vision_hawaii.py").write_text("print('changed')\n")
    checkpoint_folder(folder)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{folder} contains code of no released version of hawaii-vlm: vision_hawaii.py. It does not run here, "
        "because this command uses the installed code, but wherever trust_remote_code is set."
    )


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
@pytest.mark.parametrize("reference", ["evil\x1b[2J.Model", "evil/code--modeling_hawaii.Model"])
def test_commands_that_load_a_folder_warn_of_code_that_its_settings_name(
    hub_folder, tmp_path, caplog, name, reference
):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    values = json.loads((folder / name).read_text())
    values["auto_map"]["AutoModel"] = reference
    (folder / name).write_text(json.dumps(values))
    checkpoint_folder(folder)
    (record,) = caplog.records
    shown = reference.replace("\x1b", "")
    assert f"code of no released version of hawaii-vlm: {shown} in {name}. It does not run" in record.getMessage()
