"""An upload appears in one commit, can be repeated and tagged, and an error names the way out."""

import errno
import os
import re
from functools import partial

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import AutoImageProcessor

from hawaii.__main__ import main
from hawaii.files.manifest import write_manifest
from hawaii.files.user_error import UserError
from hawaii.hub_cards import publish as publish_module
from hawaii.hub_cards.publish import publish
from hawaii.tests.folders import PUBLISHED, uploaded
from hawaii.tests.tiny.encoders import save_encoder_folder
from hawaii.tests.tiny.hub_server import READ_TOKEN, TOKEN, Handler, Refusal
from hawaii.tests.tiny.models import make_model


def test_a_repetition_makes_no_commit_and_sends_nothing(folder, hub):
    publish(str(folder), "user/name")
    sha = hub.repositories["user/name"].branches["main"]
    hub.requests.clear()
    answer = publish(str(folder), "user/name")
    assert answer.startswith(
        f"Nothing was uploaded, the repository has these files already: {hub.url}/user/name/commit/{sha}"
    )
    assert len(hub.repositories["user/name"].commits) == 2
    assert {method for method, _ in hub.requests} == {"GET", "POST"}
    assert [path for method, path in hub.requests if method == "POST"] == ["/api/repos/create"]


def test_only_changed_files_are_sent_and_named(folder, hub, capsys):
    publish(str(folder), "user/name")
    (folder / "README.md").write_text("---\nlicense: mit\n---\na better card")
    received = hub.received.copy()
    capsys.readouterr()
    publish(str(folder), "user/name")
    assert hub.received == received
    assert capsys.readouterr().out.splitlines()[-1] == "Replaced in the repository: README.md"
    first, second = hub.repositories["user/name"].commits[1:]
    assert {name for name in first.files if first.files[name] != second.files[name]} == {"README.md"}


def test_files_of_an_earlier_version_are_deleted_in_the_same_commit_and_others_stay(folder, hub, capsys):
    earlier = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "old_hawaii.py",
    ]
    earlier += ["adapter_config.json", "adapter_model.safetensors", "added_tokens.json", "vocab.json"]
    foreign = ["images/cat.png", "app.py", "LICENSE", "onnx/model.onnx", "sub/model.safetensors"]
    hub.push("user/name", dict.fromkeys([*earlier, *foreign], b"before"))
    publish(str(folder), "user/name")
    assert uploaded(hub) == {*PUBLISHED, *foreign}
    assert len(hub.repositories["user/name"].commits) == 3
    deleted = capsys.readouterr().out.splitlines()[-1]
    assert deleted == f"Deleted in the repository, as files of an earlier version: {', '.join(sorted(earlier))}"


def test_a_model_in_fewer_files_replaces_one_in_more(folder, hub):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    write_manifest(folder, {}, left_out=["README.md"])
    publish(str(folder), "user/name")
    assert "model.safetensors" not in uploaded(hub)
    for path in [*folder.glob("model-*"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "model.safetensors").write_bytes(whole)
    write_manifest(folder, {}, left_out=["README.md"])
    publish(str(folder), "user/name")
    assert uploaded(hub) == PUBLISHED


def test_scores_and_losses_of_earlier_weights_are_deleted_with_them(folder, hub):
    records = {".eval_results/lmms_eval.yaml", "recipe.yaml", "loss_curves.png"}
    hub.push("user/name", {**dict.fromkeys(records, b"old"), "model.safetensors": b"old", ".eval_results/x.yaml": b""})
    publish(str(folder), "user/name")
    assert uploaded(hub) == {*PUBLISHED, ".eval_results/x.yaml"}
    hub.push("user/name", dict.fromkeys(records, b"new"))
    publish(str(folder), "user/name")
    assert uploaded(hub) == {*PUBLISHED, ".eval_results/x.yaml", *records}


def test_an_encoder_published_over_a_model_prepares_its_images_with_its_own_settings(folder, hub, tmp_path):
    publish(str(folder), "user/name")
    save_encoder_folder(tmp_path / "encoder")
    publish(str(tmp_path / "encoder"), "user/name")
    assert uploaded(hub) == {path.name for path in (tmp_path / "encoder").iterdir()}
    processor = AutoImageProcessor.from_pretrained("user/name", cache_dir=tmp_path)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]


def test_a_tag_names_the_commit(folder, hub):
    first = publish(str(folder), "user/name", tag="v1.0")
    repository = hub.repositories["user/name"]
    sha = repository.commits[1].sha
    assert repository.tags == {"v1.0": sha} and first.splitlines()[0].endswith(f"/commit/{sha}, tagged v1.0")
    assert publish(str(folder), "user/name", tag="v1.0").startswith("Nothing was uploaded")
    assert publish(str(folder), "user/name", tag="final").startswith("Nothing was uploaded")
    assert repository.tags == {"v1.0": sha, "final": sha}


@pytest.mark.parametrize("change", ["card", "push"])
def test_a_tag_of_another_commit_is_refused_before_the_upload(folder, hub, change):
    publish(str(folder), "user/name", tag="v1.0")
    repository = hub.repositories["user/name"]
    if change == "card":
        (folder / "README.md").write_text("---\nlicense: mit\n---\na better card")
    else:
        hub.push("user/name", {"notes.txt": b"later"})
    commits = list(repository.commits)
    with pytest.raises(UserError, match=f"has a tag v1.0, of the commit {commits[1].sha}, which is not this version"):
        publish(str(folder), "user/name", tag="v1.0")
    assert repository.commits == commits


@pytest.mark.parametrize("tag", ["", "a b", "-x", "a..b", "x/", "v1.", "--force", "refs/heads/main"])
def test_an_invalid_tag_is_named(folder, hub, tag):
    with pytest.raises(UserError, match="cannot be the name of a tag: write letters, digits"):
        publish(str(folder), "user/name", tag=tag)
    assert hub.requests == []


def test_a_tag_with_the_name_of_a_branch_is_refused(folder, hub):
    with pytest.raises(UserError, match="main is a branch of user/name: give the tag another name"):
        publish(str(folder), "user/name", tag="main")
    assert uploaded(hub) == set()


def test_a_public_repository_is_not_used_as_a_private_one(folder, hub):
    hub.push("user/name", {"notes.txt": b""})
    with pytest.raises(UserError, match="user/name exists and is public: make it private on the Hub"):
        publish(str(folder), "user/name", private=True)
    assert uploaded(hub) == {"notes.txt"}


def test_a_gitignore_in_the_repository_hides_no_file(folder, hub):
    hub.push("user/name", {".gitignore": b"tokenizer.json\n"})
    with pytest.raises(UserError, match=r"The .gitignore in user/name names tokenizer.json: remove this line"):
        publish(str(folder), "user/name")
    assert uploaded(hub) == {".gitignore"}


def test_the_token_is_in_no_uploaded_file(folder, hub):
    publish(str(folder), "user/name", tag="v1.0")
    for name, content in hub.contents("user/name").items():
        assert TOKEN.encode() not in content and str(folder).encode() not in content, name


ANSWERS = {
    401: "the Hub does not know your token: run `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "the token may not do this: make one that may write to user/name",
    404: "it was not found: check its name, and that the token may see it",
    409: "the repository was changed at the same time: look at the newest commit, and run the same command again",
    412: "somebody pushed to it during the upload: look at the newest commit, and run the same command again",
    413: "the Hub refused it with status 413 (the Hub says: because)",
    429: "the Hub has received too many requests: run the same command again in some minutes",
    500: "the Hub failed with status 500: run the same command again later",
    503: "the Hub failed with status 503: run the same command again later",
}


@pytest.mark.parametrize("pattern", ["/commit/", "/objects/"])
def test_an_answer_of_the_hub_is_explained_and_the_same_command_completes_the_upload(
    folder, hub, capsys, monkeypatch, pattern
):
    def refuse(status, method, path):
        if pattern in path and method in ("POST", "PUT"):
            raise Refusal(status, "because")

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub repeats some requests
    for status, answer in ANSWERS.items():
        hub.rule = partial(refuse, status)
        assert main(["publish", str(folder), "user/name"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"hawaii publish: {folder} could not be uploaded to user/name: {answer}")
        assert uploaded(hub) == set()
    hub.rule = lambda method, path: None
    assert main(["publish", str(folder), "user/name"]) == 0
    assert uploaded(hub) == PUBLISHED
    assert len(hub.repositories["user/name"].commits) == 2
    sizes = {oid: len(content) for oid, content in hub.objects.items()}
    assert hub.received == sizes


def test_a_push_during_the_upload_is_not_lost(folder, hub):
    def push(method, path):
        if method == "POST" and "/commit/" in path:
            hub.rule = lambda method, path: None
            hub.push("user/name", {"notes.txt": b"meanwhile"})

    hub.rule = push
    with pytest.raises(UserError, match="somebody pushed to it during the upload"):
        publish(str(folder), "user/name")
    assert uploaded(hub) == {"notes.txt"}
    publish(str(folder), "user/name")
    assert uploaded(hub) == {*PUBLISHED, "notes.txt"}


def test_a_file_that_is_edited_while_weights_are_sent_is_uploaded_as_it_was_before(folder, hub):
    checked = (folder / "README.md").read_bytes()

    def edit(method, path):
        if "/objects/" in path:
            (folder / "README.md").write_text(f"{checked.decode()}\n{TOKEN}")

    hub.rule = edit
    publish(str(folder), "user/name")
    assert TOKEN in (folder / "README.md").read_text()
    assert hub.contents("user/name")["README.md"] == checked


def test_a_failed_tag_is_explained_and_added_by_a_repetition(folder, hub):
    def refuse(method, path):
        if "/tag/" in path:
            raise Refusal(503, "because")

    hub.rule = refuse
    with pytest.raises(UserError, match="user/name is uploaded, but could not be tagged v1: the Hub failed"):
        publish(str(folder), "user/name", tag="v1")
    hub.rule = lambda method, path: None
    publish(str(folder), "user/name", tag="v1")
    assert list(hub.repositories["user/name"].tags) == ["v1"] and len(hub.repositories["user/name"].commits) == 2


@pytest.mark.parametrize(
    "token, problem",
    [
        ("", "the Hub does not know your token: run `hf auth login`"),
        ("hf_copied\u200b", "the Hub does not know your token: run `hf auth login`"),
        ("hf_unknown", "the Hub does not know your token: run `hf auth login`"),
        (READ_TOKEN, "the token may not do this: make one that may write to user/name"),
    ],
)
def test_a_token_that_may_not_write_is_explained(folder, hub, monkeypatch, token, problem):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no token"))
    with pytest.raises(UserError, match=problem) as caught:
        publish(str(folder), "user/name")
    assert not token or token not in str(caught.value)


def test_a_missing_token_is_explained_where_the_client_finds_it_missing(folder, hub, monkeypatch):
    def fail(*args, **options):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(UserError, match="the Hub does not know your token: run `hf auth login`"):
        publish(str(folder), "user/name")


def test_a_lost_network_is_explained(folder, hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(
        UserError, match=f"the connection to {hub.url} failed: check the network and run the same command"
    ):
        publish(str(folder), "user/name")


@pytest.mark.parametrize("address", ["http://[::1", "hub.local", "ftp://hub.local"])
def test_an_invalid_address_of_the_hub_is_named(folder, hub, monkeypatch, address):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with pytest.raises(UserError, match=f"HF_ENDPOINT is {re.escape(address)}, which is not the address of a server"):
        publish(str(folder), "user/name")


def test_an_error_of_another_text_is_not_one_of_the_token(folder, hub, monkeypatch):
    monkeypatch.setattr(publish_module, "plan_upload", lambda *args, **options: "\u6a21".encode("ascii"))
    with pytest.raises(UnicodeEncodeError):
        publish(str(folder), "user/name")


def test_a_page_in_the_place_of_the_hub_is_explained(folder, hub, monkeypatch):
    page = b"<html>Log in to use this network</html>"
    monkeypatch.setattr(Handler, "do_POST", lambda handler: handler.send(page))
    with pytest.raises(UserError, match=f"to user/name: {hub.url} did not answer as the Hub does, but perhaps as a"):
        publish(str(folder), "user/name")


def test_offline_mode_is_explained(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        publish(str(folder), "user/name")


def test_an_answer_of_the_hub_moves_no_cursor(folder, hub, capsys):
    def refuse(method, path):
        raise Refusal(413, "too\x1b[2J large")

    hub.rule = refuse
    with pytest.raises(UserError, match=r"\(the Hub says: too\[2J large\)"):
        publish(str(folder), "user/name")


def test_names_of_files_move_no_cursor(folder, hub, capsys):
    hub.push("user/name", {"model-\x1b[2J.safetensors": b""})
    (folder / "notes\x1b[2J").write_text("")
    publish(str(folder), "user/name")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "model-[2J.safetensors" in printed and "notes[2J" in printed


@pytest.mark.parametrize("moment", ["plan_upload", "commit_upload"])
def test_a_file_that_is_removed_during_the_upload_is_named(folder, hub, monkeypatch, moment):
    original = getattr(publish_module, moment)

    def remove_and_go_on(*args, **options):
        (folder / "tokenizer.json").unlink()
        return original(*args, **options)

    monkeypatch.setattr(publish_module, moment, remove_and_go_on)
    problem = rf"to user/name: {folder}/tokenizer.json cannot be used \(No such file or directory\): correct this"
    with pytest.raises(UserError, match=problem):
        publish(str(folder), "user/name")
    assert uploaded(hub) == set()


def test_an_error_of_the_program_is_not_explained_as_one_of_the_hub(folder, hub, monkeypatch):
    def fail(*args, **options):
        raise TypeError("a bug")

    monkeypatch.setattr(publish_module, "commit_upload", fail)
    with pytest.raises(TypeError, match="a bug"):
        publish(str(folder), "user/name")


def test_a_full_disk_is_explained(folder, hub, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.HfApi.preupload_lfs_files", fail)
    with pytest.raises(
        UserError, match="No space left on device; .* bytes are free there.: make room and run the same"
    ):
        publish(str(folder), "user/name")
