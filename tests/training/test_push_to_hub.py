"""`push_to_hub` of the trainer uploads a published folder of the trained student."""

from pathlib import Path

import pytest
import torch

from hawaii import HawaiiForConditionalGeneration
from hawaii.files.user_error import UserError
from hawaii.hub_cards.publish import find_files
from hawaii.tests.folders import PUBLISHED, uploaded
from hawaii.tests.tiny.hub_server import TOKEN
from hawaii.tests.tiny.training import RAGGED, build_trainer, make_module


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, teachers):
    torch.manual_seed(0)
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "hub_model_id": "user/name"}
    trainer = build_trainer(tmp_path_factory.mktemp("push"), make_module(), teachers, RAGGED, **options)
    trainer.train()
    return trainer


def test_the_published_folder_of_the_trained_student_is_uploaded(trainer, hub, tmp_path):
    trainer.push_to_hub(private=True, license="mit", language="en")
    assert uploaded(hub) == PUBLISHED
    repository = hub.repositories["user/name"]
    assert [commit.message for commit in repository.commits[1:]] == ["Upload HAWAII"] and repository.private
    for name, content in hub.contents("user/name").items():
        (tmp_path / name).write_bytes(content)
        assert TOKEN.encode() not in content and str(trainer.args.output_dir).encode() not in content, name
    assert set(find_files(tmp_path)) == PUBLISHED  # with its manifest
    pushed = HawaiiForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(value.equal(pushed[name]) for name, value in trainer.student.state_dict().items())
    card = hub.contents("user/name")["README.md"].decode()
    assert "distilled from frozen teachers (convnext, vit)" in card and "# name" in card
    assert "\nlicense: mit\n" in card and "\nlanguage:\n- en\n" in card
    assert not list(Path(trainer.args.output_dir).glob("*incomplete*"))


def test_a_second_push_makes_no_commit(trainer, hub):
    trainer.push_to_hub(license="mit")
    assert trainer.push_to_hub(commit_message="again", license="mit").startswith("Nothing was uploaded")
    assert len(hub.repositories["user/name"].commits) == 2


def test_a_license_must_be_given(trainer, hub):
    with pytest.raises(UserError, match="names no license, so nobody could use the model"):
        trainer.push_to_hub()
    assert hub.requests == []


@pytest.mark.parametrize("options", [{"blocking": False}, {"revision": "next"}])
def test_what_it_cannot_do_is_refused(trainer, hub, options):
    with pytest.raises(UserError, match="waits for the upload and uses the main branch: leave out blocking"):
        trainer.push_to_hub(**options)
    assert hub.requests == []


@pytest.mark.parametrize("option", ["tags", "model_name", "dataset", "folder", "dry_run"])
def test_an_unknown_option_is_refused(trainer, hub, option):
    with pytest.raises(
        UserError, match=rf"push_to_hub has no option {option}: write one of license, .*, base_model\."
    ):
        trainer.push_to_hub(license="mit", **{option: "x"})
    assert hub.requests == []


def test_files_of_a_killed_push_are_removed_first(trainer, hub):
    leftover = Path(trainer.args.output_dir) / "push.incomplete" / "model" / "model-old.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("old")
    trainer.push_to_hub(license="mit")
    assert uploaded(hub) == PUBLISHED


def test_a_name_without_a_user_is_one_of_the_user_of_the_token(trainer, hub, monkeypatch):
    monkeypatch.setattr(trainer.args, "hub_model_id", "my-model")
    trainer.push_to_hub(license="mit")
    (repository,) = hub.repositories
    assert "# my-model" in hub.contents(repository)["README.md"].decode()


def test_a_repository_must_be_named(trainer, hub, monkeypatch):
    monkeypatch.setattr(trainer.args, "hub_model_id", None)
    with pytest.raises(UserError, match="set hub_model_id to user/name"):
        trainer.push_to_hub()


def test_an_error_of_the_hub_is_explained_and_leaves_no_files(trainer, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(UserError, match="could not be uploaded to user/name: the Hub does not know your token"):
        trainer.push_to_hub(license="mit")
    assert not list(Path(trainer.args.output_dir).glob("*incomplete*"))
