"""A published folder contains the student and what its users need, and nothing of teachers, objective or training."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.configuration import hub_hawaii
from hawaii.configuration.hub_hawaii import read_code
from hawaii.files.manifest import check_manifest, read_files, write_manifest
from hawaii.files.user_error import UserError
from hawaii.hub_cards import export as export_module
from hawaii.hub_cards.card import add_results
from hawaii.hub_cards.export import export
from hawaii.hub_cards.publish import publish
from hawaii.hub_cards.released_code import hash_code
from hawaii.tests.folders import PUBLISHED, SCORE, contents, damage, uploaded
from hawaii.tests.tiny.models import FACTS, make_config, make_model, make_processor


# Files of training next to a model.
STATE = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "stage.json",
    "log.jsonl",
]

FILES = ["config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
FILES += ["chat_template.jinja", "generation_config.json"]
IDENTITY = {"recipe": "1234", "data": "5678", "start": None, "step": 6, "world_size": 2, "options": {"llava": "/home"}}


@pytest.fixture
def source(hub_folder, tmp_path):
    """A stage's folder with files that must not be published."""
    folder = tmp_path / "stage"
    shutil.copytree(hub_folder, folder)
    save_file({"fine_projections.0.1.weight": torch.zeros(2)}, folder / "objective.safetensors")
    for name in STATE:
        (folder / name).write_text("training")
    for name in ("experts", "checkpoint-6"):
        (folder / name).mkdir()
        save_file({"weight": torch.zeros(2)}, folder / name / "model.safetensors")
    write_manifest(folder, IDENTITY)
    return folder


@pytest.fixture
def published(source, tmp_path):
    export(source, tmp_path / "hub", FACTS)
    return tmp_path / "hub"


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_only_files_that_a_user_needs_are_published(published):
    assert names(published) == PUBLISHED
    assert all(path.is_file() for path in published.iterdir())


def test_the_tensors_match_the_configuration(published):
    with torch.device("meta"):
        model = HawaiiForConditionalGeneration(make_config())
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {
        name: tuple(tensor.shape) for name, tensor in load_file(published / "model.safetensors").items()
    } == expected
    parts = {name.split(".")[1] for name in expected if name.startswith("model.")}
    assert parts == {"vision_tower", "multi_modal_projector", "language_model"}
    assert {name.split(".")[0] for name in expected} == {"model", "lm_head"}


def test_the_published_model_equals_the_source(source, published):
    expected = HawaiiForConditionalGeneration.from_pretrained(source).state_dict()
    model, report = HawaiiForConditionalGeneration.from_pretrained(published, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (
        HawaiiProcessor.from_pretrained(published).chat_template
        == HawaiiProcessor.from_pretrained(source).chat_template
    )


def test_weights_in_several_files_are_published_completely(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "stage", max_shard_size="50KB")
    make_processor().save_pretrained(tmp_path / "stage")
    write_manifest(tmp_path / "stage", {})
    export(tmp_path / "stage", tmp_path / "hub", FACTS)
    index = json.loads((tmp_path / "hub" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    loaded = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "hub").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_the_facts_are_published_and_in_the_card(published):
    assert json.loads((published / "training.json").read_text()) == FACTS
    card = (published / "README.md").read_text()
    assert "# tiny" in card and "vit" in card and "49,000" in card


def test_an_export_replaces_a_damaged_one_completely(source, published):
    (published / "stale.safetensors").write_text("old")
    (published / "config.json").write_text("{}")
    assert export(source, published, FACTS)
    assert "stale.safetensors" not in names(published)
    assert names(published.parent) == {"stage", "hub"}


@pytest.mark.parametrize("change", ["model", "identity"])
def test_an_export_of_the_same_model_is_kept_and_one_of_another_is_replaced(source, published, change):
    (published / "README.md").write_text("a better card")
    (published / "logo.png").write_bytes(b"logo")
    assert not export(source, published, {})
    assert (published / "README.md").read_text() == "a better card" and (published / "logo.png").is_file()
    if change == "model":
        weights = load_file(source / "model.safetensors")
        save_file({name: tensor + 1 for name, tensor in weights.items()}, source / "model.safetensors")
    write_manifest(source, {**IDENTITY, "step": -1} if change == "identity" else IDENTITY)
    assert export(source, published, FACTS)
    assert "tiny" in (published / "README.md").read_text() and not (published / "logo.png").exists()


def test_a_missing_card_is_written_and_the_rest_of_the_folder_kept(source, published):
    card = (published / "README.md").read_text()
    (published / "logo.png").write_bytes(b"logo")
    (published / "README.md").unlink()
    assert export(source, published, FACTS)
    assert (published / "README.md").read_text() == card and (published / "logo.png").read_bytes() == b"logo"


@pytest.fixture
def earlier(source, tmp_path, monkeypatch):
    """A folder that an earlier version of this package exported, and that its author has edited."""
    code = {name: f"{text}\n# of an earlier version\n" for name, text in read_code().items()} | {"old_hawaii.py": ""}
    with monkeypatch.context() as patch:
        patch.setattr(hub_hawaii, "read_code", lambda *here: code)
        patch.setattr(export_module, "read_code", lambda: code)
        export(source, tmp_path / "hub", FACTS)
    folder = tmp_path / "hub"
    (folder / "README.md").write_text(
        (folder / "README.md").read_text().replace("# tiny", "# my words").replace("---\n", "---\nlicense: mit\n", 1)
    )
    add_results(folder, [SCORE])
    (folder / "images").mkdir()
    (folder / "images" / "logo.png").write_bytes(b"logo")
    (folder / "mine_hawaii.py").write_text("mine")
    return folder


def test_an_export_with_the_code_of_an_earlier_version_gets_the_installed_code(source, earlier, hub):
    with pytest.raises(UserError, match="it is not the code of the installed hawaii-vlm. Run `hawaii train` again"):
        publish(str(earlier), "user/name")
    before = contents(earlier)
    assert export(source, earlier, FACTS)
    code = {path.name: path.read_text() for path in earlier.glob("*_hawaii.py")}
    assert code == {**read_code(), "mine_hawaii.py": "mine"}
    after = contents(earlier)
    replaced = {*read_code(), "manifest.json", "README.md"}
    assert {name: text for name, text in before.items() if name not in {*replaced, "old_hawaii.py"}} == {
        name: text for name, text in after.items() if name not in replaced
    }
    old, new = (text["README.md"].decode().splitlines() for text in (before, after))
    changed = [line for line in new if line not in old]
    assert changed == [f"{digest}  {name}" for name, digest in hash_code(read_code()).items()]
    assert "# my words" in new and not [line for line in new if "old_hawaii" in line or "mine_hawaii" in line]
    assert "logo.png" not in after["manifest.json"].decode()
    assert not export(source, earlier, FACTS) and contents(earlier) == after
    publish(str(earlier), "user/name")
    assert uploaded(hub) == {*PUBLISHED, ".eval_results/lmms_eval.yaml"}


def test_a_field_that_a_card_lacks_is_a_change(source, published):
    path = published / "README.md"
    path.write_text(path.read_text().replace("- owner/data\n", "").replace("datasets:\n", ""))
    assert export(source, published, FACTS) and "- owner/data" in path.read_text()
    assert not export(source, published, FACTS)


def test_a_failed_export_keeps_the_previous_one(source, published, monkeypatch):
    (published / "config.json").write_text("{}")  # otherwise nothing is exported
    before = names(published)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    for name in ("write_card", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(export_module, name, fail)
            with pytest.raises(OSError):
                export(source, published, {})
        assert names(published) == before
        assert names(published.parent) == {"stage", "hub"}


def test_the_manifest_lists_all_but_the_card_and_names_no_folder(source, published):
    public = {name: value for name, value in IDENTITY.items() if name != "options"}
    assert check_manifest(published) == public
    assert read_files(published).keys() == PUBLISHED - {"README.md", "manifest.json"}
    saved = read_files(source)
    assert {name for name, entry in read_files(published).items() if saved.get(name) == entry} == {
        name for name in PUBLISHED if (source / name).is_file() and name != "manifest.json"
    }
    (published / "README.md").write_text("a better card")
    assert check_manifest(published) == public


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "flipped", "added"])
def test_a_stage_that_is_not_as_it_was_saved_is_refused(source, tmp_path, kind):
    for name in [*FILES, "model.safetensors", "objective.safetensors", "manifest.json"]:
        content = (source / name).read_bytes()
        path = source / f"{name}.new" if kind == "added" else source / name
        damage(path, kind) if kind != "added" else path.write_bytes(b"")
        with pytest.raises(
            UserError, match=rf"{name}.*: a folder that has changed since it was saved is not exported"
        ):
            export(source, tmp_path / "hub", FACTS)
        (path if kind == "added" else source / name).unlink(missing_ok=True)
        (source / name).write_bytes(content)
    assert not (tmp_path / "hub").exists()
    export(source, tmp_path / "hub", FACTS)


def test_a_copy_that_differs_is_not_exported(source, tmp_path, monkeypatch):
    original = shutil.copyfile

    def copy(there, here):
        original(there, here)
        if here.name == "model.safetensors":
            damage(here, "flipped")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(UserError, match=r"The copy of .*stage/model\.safetensors differs from the saved file"):
        export(source, tmp_path / "hub", FACTS)
    assert not (tmp_path / "hub").exists()


def test_the_source_is_unchanged(source, tmp_path):
    before = names(source)
    export(source, tmp_path / "hub", FACTS)
    assert names(source) == before


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_a_checkpoint_is_named(source, tmp_path, name):
    (source / name).unlink()
    write_manifest(source, {})  # it was saved like this
    with pytest.raises(UserError, match=f"stage is not a saved HAWAII: it has no {name}"):
        export(source, tmp_path / "hub", FACTS)
    assert not (tmp_path / "hub").exists()


def test_a_folder_without_weights_is_named(source, tmp_path):
    (source / "model.safetensors").unlink()
    write_manifest(source, {})
    with pytest.raises(UserError, match=r"stage has neither model\.safetensors nor model\.safetensors\.index\.json"):
        export(source, tmp_path / "hub", FACTS)
    assert not (tmp_path / "hub").exists()


def test_a_link_that_leads_out_is_refused(source, tmp_path):
    (tmp_path / "key").write_text("private")
    (source / "vocab.json").symlink_to(tmp_path / "key")
    write_manifest(source, {})
    with pytest.raises(UserError, match=r"stage/vocab\.json is a link to .*key, which leads out of"):
        export(source, tmp_path / "hub", FACTS)
    assert not (tmp_path / "hub").exists()


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    write_manifest(source, {})
    with pytest.raises(UserError, match=r"stage/model\.safetensors: lm_head\.weight has values that are not finite"):
        export(source, tmp_path / "hub", FACTS)
    assert not (tmp_path / "hub").exists()


def test_the_published_code_is_the_installed_one(source, tmp_path):
    (source / "projector_hawaii.py").write_text("changed")
    (source / "other_hawaii.py").write_text("other")
    write_manifest(source, {})
    export(source, tmp_path / "hub", FACTS)
    code = {path.name: path.read_text() for path in (tmp_path / "hub").glob("*.py")}
    assert code == read_code()
