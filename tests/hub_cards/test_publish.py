"""Only a complete published folder is uploaded, to the given repository, and nothing else that lies in it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hawaii.__main__ import main
from hawaii.configuration.hub_hawaii import read_code
from hawaii.files.manifest import write_manifest
from hawaii.files.user_error import UserError
from hawaii.hub_cards.card import add_results
from hawaii.hub_cards.publish import publish
from hawaii.tests.folders import DAMAGES, PUBLISHED, SCORE, damage, uploaded
from hawaii.tests.tiny.encoders import save_encoder_folder
from hawaii.tests.tiny.hub_server import TOKEN
from hawaii.tests.tiny.models import make_model


@pytest.mark.parametrize("private", [False, True])
def test_the_folder_is_uploaded_to_the_repository_in_one_commit(folder, hub, private):
    lines = publish(str(folder), "user/name", private).splitlines()
    repository = hub.repositories["user/name"]
    assert [commit.message for commit in repository.commits] == ["initial commit", "Upload HAWAII"]
    sha = repository.commits[1].sha
    assert lines == [
        f"Uploaded: {hub.url}/user/name/commit/{sha}",
        f'Users pin this version with revision="{sha}" and code_revision="{sha}".',
    ]
    assert repository.private == private
    assert uploaded(hub) == PUBLISHED
    contents = hub.contents("user/name")
    assert all(contents[name] == (folder / name).read_bytes() for name in PUBLISHED)


@pytest.mark.parametrize("name", ["config.json", "configuration_hawaii.py", "README.md"])
def test_an_incomplete_folder_is_refused_before_a_repository_is_created(folder, hub, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"cannot be published: it has no {name}"):
        publish(str(folder), "user/name")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "user/", "-user/name", "user/na me", "user/name.git", "../x"])
def test_an_invalid_repository_id_is_named(folder, hub, name):
    with pytest.raises(UserError, match=f"^{name} cannot be the name of a repository of the Hub: write user/name"):
        publish(str(folder), name)
    assert hub.requests == []


def test_other_files_are_not_uploaded_but_listed(folder, hub, capsys):
    others = [".env", "optimizer.pt", "pytorch_model.bin", "sub/.ssh/key", "sub/config.json", "evil_hawaii.py"]
    others += ["model-old.safetensors", "training_args.bin", "tokenizer.pkl", ".git/config", "notes.txt"]
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    (folder / "model-old.safetensors").unlink()
    save_file({"weight": torch.zeros(1)}, folder / "model-old.safetensors")
    publish(str(folder), "user/name")
    assert uploaded(hub) == PUBLISHED
    left_out = capsys.readouterr().out.splitlines()[-1]
    assert left_out.startswith("Not part of a published folder, and not uploaded: ")
    assert all(name.partition("/")[0] in left_out for name in others)


def test_weights_in_several_files_are_uploaded(folder, hub):
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    write_manifest(folder, {}, left_out=["README.md"])
    publish(str(folder), "user/name")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    assert uploaded(hub) == PUBLISHED - {"model.safetensors"} | shards | {"model.safetensors.index.json"}


def test_a_dry_run_lists_every_file_with_its_size_and_uploads_nothing(folder, hub, capsys):
    assert main(["publish", str(folder), "user/name", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines[: len(PUBLISHED)]}
    assert sizes == {name: (folder / name).stat().st_size for name in PUBLISHED}
    total = f"{sum(sizes.values()):,} bytes  in {len(PUBLISHED)} files, for user/name"
    assert lines[len(PUBLISHED)].strip() == total
    assert lines[-1] == "Nothing was uploaded, because of --dry-run."
    assert hub.requests == []


def refused(folder, hub, problem, capsys):
    """Checks that the command refuses the folder with one line, with and without `--dry-run`."""
    capsys.readouterr()
    for options in ([], ["--dry-run"]):
        assert main(["publish", str(folder), "user/name", *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and problem in error
    assert hub.requests == []


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "README.md", "id_rsa", "sub/key", "folder"])
def test_a_link_that_leads_out_is_refused(folder, hub, capsys, tmp_path, name):
    outside = tmp_path / "private"
    if name == "folder":
        outside.mkdir()
    elif (folder / name).exists():
        shutil.move(folder / name, outside)
    else:
        outside.write_text("a key")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    refused(folder, hub, f"{folder / name} is a link to {outside}, which leads out of {folder}", capsys)


def test_a_link_to_nothing_is_refused(folder, hub, capsys):
    (folder / "vocab.json").symlink_to("nowhere")
    refused(folder, hub, "vocab.json is a link to nowhere", capsys)


def test_a_link_within_the_folder_is_followed(folder, hub, tmp_path):
    shutil.move(folder / "model.safetensors", folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    publish(str(folder), "user/name")
    assert uploaded(hub) == PUBLISHED


def test_truncated_weights_are_refused(folder, hub, capsys):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(folder, hub, f"{folder}/model.safetensors is damaged or truncated", capsys)


def test_missing_weights_are_refused(folder, hub, capsys):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, hub, "its weights (model.safetensors) lack 1 tensors, such as lm_head.weight", capsys)


def test_other_weights_are_refused(folder, hub, capsys):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "teacher.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, hub, "contain 1 tensors that the model of its config.json does not have, teacher.weight", capsys)


def test_a_missing_file_of_several_is_refused(folder, hub, capsys):
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(folder, hub, f"{folder} lacks {shard.name}", capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(folder, hub, capsys, value, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["lm_head.weight"][1, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, hub, f"{folder}/model.safetensors: lm_head.weight has values that are not finite", capsys)


def test_weights_that_are_not_finite_are_refused_in_each_file(folder, hub, capsys):
    (folder / "model.safetensors").unlink()
    model = make_model()
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding[0, 0] = float("nan")
    model.save_pretrained(folder, max_shard_size="50KB")
    refused(folder, hub, "position_embedding has values that are not finite", capsys)


def test_changed_code_is_refused(folder, hub, capsys):
    with (folder / "projector_hawaii.py").open("a") as file:
        file.write("print('changed')\n")
    refused(folder, hub, f"{folder}/projector_hawaii.py is changed: it is not the code of the installed", capsys)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("reference", ["evil/code--modeling_hawaii.Model", "evil.Model", ["evil.Model", None]])
def test_a_configuration_that_names_other_code_is_refused(folder, hub, capsys, name, reference):
    values = json.loads((folder / name).read_text())
    values.setdefault("auto_map", {})["AutoTokenizer"] = reference
    (folder / name).write_text(json.dumps(values))
    refused(folder, hub, f"{folder / name} names code that is not this package's, evil", capsys)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", sorted(PUBLISHED - {"README.md"}))
def test_a_file_that_is_not_as_it_was_exported_is_refused(folder, hub, capsys, name, kind):
    damage(folder / name, kind)
    refused(folder, hub, name, capsys)


def test_settings_that_were_added_are_refused(folder, hub, capsys):
    (folder / "vocab.json").write_text("{}")
    refused(folder, hub, f"{folder}/vocab.json is not among the files that were exported", capsys)


def test_a_card_that_was_edited_is_uploaded(folder, hub):
    card = "---\nlicense: mit # mine\n---\na better card"
    (folder / "README.md").write_text(card)
    publish(str(folder), "user/name")
    assert uploaded(hub) == PUBLISHED
    assert (folder / "README.md").read_text() == card


def test_a_card_without_a_license_is_refused_until_it_is_given(folder, hub, capsys):
    (folder / "README.md").write_text("a better card\n")
    refused(
        folder,
        hub,
        "README.md names no license, so nobody could use the model: give it with `--license mit`",
        capsys,
    )
    options = ["--license", "mit", "--language", "en", "de", "--datasets", "a/b", "--base_model", "c/d"]
    assert main(["publish", str(folder), "user/name", "--dry-run", *options]) == 0
    assert (folder / "README.md").read_text() == "a better card\n" and hub.requests == []
    assert main(["publish", str(folder), "user/name", *options]) == 0
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en", "de"], ["a/b"])
    assert card.data.base_model == ["c/d"] and card.text == "a better card\n"
    assert hub.contents("user/name")["README.md"] == (folder / "README.md").read_bytes()


def test_a_license_that_the_hub_does_not_know_is_refused(folder, hub, capsys):
    capsys.readouterr()
    assert main(["publish", str(folder), "user/name", "--license", "Apache-2"]) == 2
    assert "license is 'Apache-2'; it must be an identifier of the Hub" in capsys.readouterr().err
    assert hub.requests == []


def test_the_files_that_the_card_shows_are_uploaded(folder, hub):
    shown = {"recipe.yaml", "loss_curves.png"}
    for name in shown:
        (folder / name).write_text("shown")
    write_manifest(folder, {}, left_out=["README.md"])
    add_results(folder, [SCORE])
    publish(str(folder), "user/name")
    assert uploaded(hub) == PUBLISHED | shown | {".eval_results/lmms_eval.yaml"}


# Of a data set without a name, of a task without one, and no number.
WRONG_SCORES = [
    "- {dataset: {id: 5, task_id: a}, value: 1}",
    "- {dataset: {id: a/x, task_id: [a]}, value: 1}",
    "- {dataset: {id: a/x, task_id: a}, value: .nan}",
]


def test_scores_that_the_author_removes_are_removed_from_the_repository(folder, hub):
    add_results(folder, [SCORE])
    publish(str(folder), "user/name")
    (folder / ".eval_results/lmms_eval.yaml").write_text("[]")
    publish(str(folder), "user/name")
    assert hub.contents("user/name")[".eval_results/lmms_eval.yaml"] == b"[]"


@pytest.mark.parametrize("scores", ["", "- 5", "scores: high", "[", "\0", *WRONG_SCORES])
def test_scores_that_the_hub_cannot_read_are_refused(folder, hub, capsys, scores):
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/lmms_eval.yaml").write_text(scores)
    refused(folder, hub, "lmms_eval.yaml does not list scores; remove it, and `hawaii evaluate`", capsys)


def test_an_encoder_is_uploaded(tmp_path, hub):
    folder = tmp_path / "hub"
    save_encoder_folder(folder)
    publish(str(folder), "user/name")
    expected = {
        "README.md",
        "training.json",
        "manifest.json",
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    assert uploaded(hub) == expected | set(read_code())


@pytest.mark.parametrize(
    "text, problem",
    [
        (f"token: {TOKEN}", "README.md contains an access token, which everybody could use: remove it"),
        ("\nhttps://me:pass@example.org", "README.md, line 2, has an address with a password: remove the login"),
        ("\nredis://:pass@example.org", "README.md, line 2, has an address with a password: remove the login"),
        (f"\n[data]({Path.home()}/data)", "README.md, line 2, names a file of your home folder: remove its path"),
    ],
)
def test_a_secret_in_the_card_is_refused(folder, hub, capsys, text, problem):
    (folder / "README.md").write_text(text)
    refused(folder, hub, problem, capsys)
