"""Only a complete published folder is uploaded, to the given repository."""

import shutil

import pytest

from hawaii.files.atomic import write_json
from hawaii.files.user_error import UserError
from hawaii.hub_cards import publish as module
from hawaii.hub_cards.card import write_card
from hawaii.hub_cards.publish import publish
from hawaii.tests.tiny.models import FACTS


@pytest.fixture
def folder(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    write_json(folder / "training.json", FACTS)
    write_card(folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Calls to the Hub."""
    calls = []

    class Api:
        def create_repo(self, repo_id, **kwargs):
            calls.append(("create_repo", repo_id, kwargs))

        def upload_folder(self, **kwargs):
            calls.append(("upload_folder", kwargs))
            return "https://huggingface.co/user/name/commit/1"

    monkeypatch.setattr(module, "HfApi", Api)
    return calls


@pytest.mark.parametrize("private", [False, True])
def test_the_folder_is_uploaded_to_the_repository(folder, calls, private):
    assert publish(str(folder), "user/name", private) == "https://huggingface.co/user/name/commit/1"
    assert calls[0] == ("create_repo", "user/name", {"private": private, "exist_ok": True})
    name, options = calls[1]
    assert (name, options["repo_id"], options["folder_path"]) == ("upload_folder", "user/name", str(folder))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["config.json", "configuration_hawaii.py", "README.md"])
def test_an_incomplete_folder_is_refused_before_a_repository_is_created(folder, calls, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"cannot be published: it has no {name}"):
        publish(str(folder), "user/name")
    assert calls == []


def test_an_invalid_repository_id_is_named(folder):
    with pytest.raises(UserError, match=r"hub could not be uploaded to a/b/c: Repo id must be"):
        publish(str(folder), "a/b/c")
