"""`push_to_hub` uploads all that an object needs in one commit, and removes what an earlier version left."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor, HawaiiVisionModel
from hawaii.configuration.hub_hawaii import read_code
from hawaii.configuration.push_hawaii import find_stale
from hawaii.hub_cards.card import add_results
from hawaii.tests.folders import TRANSFORMERS_VERSIONS, uploaded
from hawaii.tests.tiny.models import FACTS, make_config, make_model, make_processor


CODE = set(read_code())
SCRIPT = Path(__file__).with_name("push_remote.py")


@pytest.mark.parametrize("is_saved_before", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: HawaiiForConditionalGeneration(make_config()),
        lambda: HawaiiVisionModel(make_config().vision_config),
        make_config,
        lambda: make_config().vision_config,
        make_processor,
    ],
    ids=["model", "vision_model", "config", "vision_config", "processor"],
)
def test_every_pushed_object_contains_its_code(tmp_path, hub, make, is_saved_before):
    saved = make()
    if is_saved_before:
        saved.save_pretrained(tmp_path / "model")
    saved.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="user/name")
    assert CODE <= uploaded(hub)
    assert {"config.json", "processor_config.json"} & uploaded(hub)
    assert len(hub.repositories["user/name"].commits) == 2


def test_a_model_and_a_processor_make_a_repository_that_loads(hub, tmp_path):
    model, processor = make_model(), make_processor()
    model.push_to_hub("user/name", commit_message="the model", tags=["tiny"])
    assert "tiny" in hub.contents("user/name")["README.md"].decode()
    processor.push_to_hub("user/name", private=True)
    repository = hub.repositories["user/name"]
    assert [commit.message for commit in repository.commits[1:]] == ["the model", "Upload HawaiiProcessor"]
    assert not repository.private  # as it was created
    loaded = HawaiiForConditionalGeneration.from_pretrained("user/name", cache_dir=tmp_path)
    assert all(value.equal(loaded.state_dict()[name]) for name, value in model.state_dict().items())
    again = HawaiiProcessor.from_pretrained("user/name", cache_dir=tmp_path)
    assert again.chat_template == processor.chat_template
    assert model.push_to_hub("user/name").oid == processor.push_to_hub("user/name").oid == repository.commits[-1].sha
    assert len(repository.commits) == 3


def test_a_save_with_a_push_uploads_the_given_weights_as_they_were_saved(hub, tmp_path):
    model = make_model()
    gathered = {name: value + 1 for name, value in model.state_dict().items()}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "private.txt").write_text("mine")
    model.save_pretrained(
        tmp_path / "model", state_dict=gathered, max_shard_size="50KB", push_to_hub=True, repo_id="user/gathered"
    )
    saved = {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.safetensors")}
    pushed = hub.contents("user/gathered")
    assert len(saved) > 1 and {name: pushed[name] for name in pushed if name.endswith(".safetensors")} == saved
    assert "private.txt" not in pushed
    loaded = HawaiiForConditionalGeneration.from_pretrained("user/gathered", cache_dir=tmp_path / "cache").state_dict()
    assert all(value.equal(loaded[name]) for name, value in gathered.items())


def test_a_push_can_go_to_a_branch(hub):
    make_processor().push_to_hub("user/name", revision="next")
    repository = hub.repositories["user/name"]
    assert list(repository.find("main").files) == [".gitattributes"]
    assert CODE < set(repository.find("next").files)


def test_a_push_can_open_a_pull_request(hub):
    processor = make_processor()
    processor.push_to_hub("user/name")
    hub.push("user/name", {"old_hawaii.py": b""})
    processor.chat_template = "{{ messages }}"
    assert processor.push_to_hub("user/name", create_pr=True).pr_revision == "refs/pr/1"
    repository = hub.repositories["user/name"]
    assert len(repository.commits) == 4
    assert "old_hawaii.py" in repository.find("main").files
    proposed = repository.find("refs/pr/1").files
    assert "old_hawaii.py" not in proposed and proposed["chat_template.jinja"] == b"{{ messages }}"


def test_a_model_replaces_weights_and_code_but_no_processor(hub):
    make_processor().push_to_hub("user/name")
    make_model().push_to_hub("user/name", max_shard_size="50KB")
    before = uploaded(hub)
    hub.push("user/name", {"old_hawaii.py": b"", "manifest.json": b"{}", "cat.png": b"", "sub/model.safetensors": b""})
    make_model().push_to_hub("user/name")
    stale = {name for name in before if name.startswith("model-") or name.endswith(".index.json")}
    assert len(stale) > 2
    assert uploaded(hub) == before - stale | {"model.safetensors", "cat.png", "sub/model.safetensors"}


PRESENT = [
    ".gitattributes",
    "README.md",
    "config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "generation_config.json",
    "modeling_hawaii.py",
    "old_hawaii.py",
    "handler.py",
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "manifest.json",
    "sub/model.safetensors",
    "sub/old_hawaii.py",
]
STALE = {
    "a model": (
        ["config.json", "model.safetensors", "modeling_hawaii.py"],
        "adapter_config.json adapter_model.safetensors generation_config.json manifest.json "
        "model-00001-of-00002.safetensors model.safetensors.index.json old_hawaii.py pytorch_model.bin",
    ),
    "a processor": (
        ["tokenizer.json", "chat_template.jinja", "processor_config.json", "preprocessor_config.json"],
        "added_tokens.json chat_template.json manifest.json tokenizer.model",
    ),
    "an image processor": (["preprocessor_config.json"], "manifest.json processor_config.json"),
    "a configuration": (["config.json", "modeling_hawaii.py"], "manifest.json old_hawaii.py"),
}


@pytest.mark.parametrize("names, stale", STALE.values(), ids=STALE)
def test_only_files_of_the_same_groups_are_stale(names, stale):
    assert find_stale(PRESENT, names) == stale.split()


def test_the_weights_that_were_saved_are_pushed(hub, tmp_path):
    model = make_model()
    gathered = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=gathered, push_to_hub=True, repo_id="user/name", variant="a")
    pushed = hub.contents("user/name")["model.a.safetensors"]
    assert pushed == (tmp_path / "saved" / "model.a.safetensors").read_bytes()
    assert all(value.equal(gathered[name]) for name, value in load(pushed).items())


def test_only_the_main_process_pushes(hub, tmp_path):
    make_model().save_pretrained(tmp_path, is_main_process=False, push_to_hub=True, repo_id="user/name")
    assert hub.requests == []


@pytest.mark.parametrize("is_new", [True, False])
def test_what_is_written_about_the_old_weights_goes_with_them(hub, is_new):
    model = make_model()
    model.push_to_hub("user/name")
    records = dict.fromkeys(["recipe.yaml", "loss_curves.png", ".eval_results/lmms_eval.yaml", "training.json"], b"")
    others = dict.fromkeys([".eval_results/mine.yaml", "cat.png"], b"")
    hub.push("user/name", {**records, **others})
    if is_new:
        model.lm_head.weight.data += 1
    model.push_to_hub("user/name", commit_message="again")
    assert uploaded(hub) & {*records, *others} == {*others, *(() if is_new else records)}


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def card(hub, model, tmp_path):
    """The card of a repository with a trained and scored model, edited by its author."""
    model.save_pretrained(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps(FACTS))
    for name in ("recipe.yaml", "loss_curves.png"):
        (tmp_path / name).touch()
    add_results(tmp_path, [{"task": "easy_vqa", "metric": "accuracy", "value": 0.975, "num_questions": 9}])
    card = (tmp_path / "README.md").read_text().replace("## Limitations", "## Mine\r\n\r\nyes\n\n## Limitations")
    model.push_to_hub("user/name")
    hub.push("user/name", {"README.md": card.encode()})
    return card


@pytest.mark.parametrize("branch", [None, "next"])
def test_new_weights_have_no_scores_and_no_training_of_the_old_ones(hub, model, card, branch):
    model.lm_head.weight.data += 1
    model.push_to_hub("user/name", revision=branch, tags="again")
    new = hub.contents("user/name", branch or "main")["README.md"].decode()
    for gone in ("model-index", "0.975", "| easy_vqa", "| finetune | hawaii |", "](loss_curves.png)", "recipe.yaml"):
        assert gone in card and gone not in new, gone
    assert "Not evaluated yet." in new and "Not recorded: these weights were pushed without" in new
    for kept in ("license: llama2", "## Mine\r\n\r\nyes\n\n## Limitations", "## Cite"):
        assert kept in new, kept
    assert "- again" in new and (branch is None or hub.contents("user/name")["README.md"].decode() == card)


@pytest.mark.parametrize("kind", ["model", "processor"])
def test_the_card_of_the_same_weights_stays(hub, model, card, kind):
    {"model": model, "processor": make_processor()}[kind].push_to_hub("user/name")
    assert hub.contents("user/name")["README.md"].decode() == card


def test_the_card_has_the_hashes_of_the_code_that_is_pushed(hub, card):
    hub.push("user/name", {"README.md": re.sub("[0-9a-f]{64}", "0" * 64, card).encode(), "hub_hawaii.py": b"old"})
    make_processor().push_to_hub("user/name")
    assert hub.contents("user/name")["README.md"].decode() == card


def test_scores_are_the_authors_where_no_weights_are_replaced(hub, model, card):
    hub.push("user/other", {"README.md": card.encode()})
    model.push_to_hub("user/other")
    assert hub.contents("user/other")["README.md"].decode() == card


def test_a_card_in_another_encoding_stays_with_a_warning(hub, model, caplog):
    model.push_to_hub("user/name")
    card = "---\nlicense: mit\nmodel-index: []\n---\n# Café\r\n".encode("latin-1")
    hub.push("user/name", {"README.md": card})
    model.lm_head.weight.data += 1
    model.push_to_hub("user/name")
    assert hub.contents("user/name")["README.md"] == card
    assert "The card of user/name is not in UTF-8 and stays as it is" in caplog.text


def test_a_card_that_somebody_edits_during_a_push_is_not_lost(hub, model, card):
    def edit(method, path):
        if path.endswith("/README.md"):
            hub.rule = lambda method, path: None
            hub.push("user/name", {"README.md": b"meanwhile"})

    hub.rule = edit
    model.lm_head.weight.data += 1
    with pytest.raises(HfHubHTTPError, match="412"):
        model.push_to_hub("user/name")
    assert hub.contents("user/name")["README.md"] == b"meanwhile"


@pytest.mark.parametrize("python", TRANSFORMERS_VERSIONS.values(), ids=TRANSFORMERS_VERSIONS)
def test_remote_code_pushes_itself_and_what_it_pushes_loads(hub_folder, hub, tmp_path, python):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {**hub.environment, "HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 600}
    finished = subprocess.run([python, SCRIPT, hub_folder, "user/name"], **options)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert len(hub.repositories["user/name"].commits) == 3 and len(hub.repositories["user/name-encoder"].commits) == 2
    for repository in ("user/name", "user/name-encoder"):
        contents = hub.contents(repository)
        assert {name: text for name, text in contents.items() if name.endswith(".py")} == {
            name: text.encode() for name, text in read_code().items()
        }
    assert {path.name for path in hub_folder.iterdir()} - {"model.safetensors"} <= uploaded(hub)
