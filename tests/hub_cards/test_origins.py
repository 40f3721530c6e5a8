"""The origin and the license of a model or of data are read where they are, and never guessed or downloaded."""

import json

import pytest

from hawaii.hub_cards import origins
from hawaii.hub_cards.licenses import License
from hawaii.hub_cards.origins import Origin, find_origin


@pytest.fixture(autouse=True)
def cached(monkeypatch, tmp_path):
    """Files in the cache of the Hub, by repository; nothing is looked up elsewhere."""
    files = {}
    monkeypatch.setattr(origins, "try_to_load_from_cache", lambda name, file, repo_type: files.get((name, repo_type)))
    return files


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my_model"
    folder.mkdir()
    return folder


def with_card(folder, metadata):
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# Model\n")
    return find_origin(str(folder))


def test_a_repository_of_a_preset_has_its_known_license():
    origin = find_origin("lmsys/vicuna-7b-v1.5")
    assert origin == Origin("lmsys/vicuna-7b-v1.5", ["lmsys/vicuna-7b-v1.5"], License("llama2"))


def test_the_card_in_the_cache_names_the_license(cached, tmp_path):
    (tmp_path / "card.md").write_text("---\nlicense: gemma\n---\n")
    cached["a/b", "model"] = cached["a/b", "dataset"] = str(tmp_path / "card.md")
    assert find_origin("a/b").license == find_origin("a/b", "dataset").license == License("gemma")


def test_the_license_of_another_repository_is_not_known():
    assert find_origin("a/b") == Origin("a/b", ["a/b"], None)


def test_a_local_folder_is_named_without_its_path(folder):
    assert find_origin(str(folder)) == Origin("my_model", [], None)


def test_a_local_folder_with_a_card_has_its_license_and_its_base_models(folder):
    origin = with_card(folder, "license: mit\nbase_model: [a/b, c/d]")
    assert origin == Origin("my_model", ["a/b", "c/d"], License("mit"))
    assert with_card(folder, "license: [mit]\nbase_model: a/b") == Origin("my_model", ["a/b"], License("mit"))


@pytest.mark.parametrize(
    "metadata",
    ["license: [mit, gpl]", "license: unknown", "license: mine", "license: other", "license: 5", "a: [", "", "5"],
)
def test_a_license_that_is_not_one_is_not_known(folder, metadata):
    assert with_card(folder, metadata).license is None


def test_a_license_in_a_file_of_another_repository_keeps_its_name(folder):
    origin = with_card(folder, "license: other\nlicense_name: My License\nlicense_link: LICENSE")
    assert origin.license == License("other", "My License", None)


def test_a_configuration_names_what_it_was_made_from_but_not_its_license(folder):
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "lmsys/vicuna-7b-v1.5"}))
    assert find_origin(str(folder)) == Origin("my_model", ["lmsys/vicuna-7b-v1.5"], None)


@pytest.mark.parametrize("name", ["/home/someone/model", "models", "a/b/c", 5, None])
def test_a_local_path_is_never_a_base_model(folder, name):
    (folder / "config.json").write_text(json.dumps({"_name_or_path": name}))
    assert find_origin(str(folder)).repositories == []


def test_a_path_that_exists_here_is_no_repository(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "start").mkdir()
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "my_model/start"}))
    assert find_origin(str(folder)).repositories == []


def test_a_snapshot_in_the_cache_is_its_repository(tmp_path):
    folder = tmp_path / "models--lmsys--vicuna-7b-v1.5" / "snapshots" / "1234"
    folder.mkdir(parents=True)
    assert find_origin(str(folder)).repositories == ["lmsys/vicuna-7b-v1.5"]
    assert find_origin(str(folder)).license == License("llama2")


def test_a_local_path_that_is_gone_keeps_its_last_part_only():
    assert find_origin("/scratch/acme/clip-removed") == Origin("clip-removed", [], None)
    assert find_origin("https://me:pw@example.org/data.parquet?token=1") == Origin("data.parquet", [], None)


def test_a_known_license_may_have_a_link(folder):
    link = "license: apache-2.0\nlicense_link: https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/LICENSE"
    assert with_card(folder, link).license == License("apache-2.0")


def test_data_next_to_a_model_are_not_the_model(folder):
    (folder / "train.json").write_text("[]")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "a/b"}))
    with_card(folder, "license: mit\nbase_model: a/b")
    assert find_origin(str(folder / "train.json"), "dataset") == Origin("train.json", [], None)


def test_data_in_a_folder_of_a_snapshot_have_the_card_of_its_top(tmp_path):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "1"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    (snapshot / "data" / "train.json").write_text("[]")
    assert find_origin(str(snapshot / "data" / "train.json"), "dataset") == Origin("a/b", ["a/b"], License("mit"))


def test_data_have_the_card_next_to_them(tmp_path):
    (tmp_path / "train.json").write_text("[]")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert find_origin(str(tmp_path / "train.json"), "dataset") == Origin("train.json", [], License("cc-by-4.0"))
