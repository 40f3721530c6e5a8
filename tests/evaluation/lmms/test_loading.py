"""A HAWAII runs the installed classes; the code of others runs only if it is trusted."""

import json
import shutil

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaProcessor

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.__main__ import main
from hawaii.evaluation.lmms.loading import load_checkpoint
from hawaii.tests.tiny.llava import make_llava
from hawaii.tests.tiny.models import make_tokenizer
from hawaii.tests.tiny.strangers import add_code, change_json


CLASSES = {
    "AutoConfig": "strange.StrangeConfig",
    "AutoModel": "strange.StrangeModel",
    "AutoModelForImageTextToText": "strange.StrangeModel",
    "AutoProcessor": "strange.StrangeModel",
    "AutoImageProcessor": "strange.StrangeModel",
    "AutoTokenizer": ["strange.StrangeTokenizer", "strange.StrangeTokenizer"],
}


@pytest.fixture
def no_terminal(monkeypatch):
    """Fails if a question is asked on the terminal."""

    def ask(prompt=""):
        raise AssertionError(prompt)

    monkeypatch.setattr("builtins.input", ask)


def name_code(folder, names=CLASSES):
    """Lets every configuration of a folder name `strange.py`."""
    for path in folder.glob("*config.json"):
        if "generation" not in path.name:
            change_json(path, auto_map={name: CLASSES[name] for name in names})


@pytest.fixture
def stranger(tmp_path):
    """A LLaVA of another type with its own code."""
    folder = tmp_path / "stranger"
    size = {"height": 16, "width": 16}
    tokenizer = make_tokenizer()
    make_llava(text={"vocab_size": len(tokenizer)}, image_token_index=4).save_pretrained(folder)
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size)
    template = "{% for turn in messages %}<image> what{% endfor %}"
    LlavaProcessor(image_processor, tokenizer, patch_size=4, chat_template=template).save_pretrained(folder)
    trace = add_code(folder, "LlavaConfig", "LlavaForConditionalGeneration")
    change_json(folder / "config.json", model_type="strange")
    name_code(folder, ["AutoConfig", "AutoModelForImageTextToText"])
    return folder, trace


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_hawaii_runs_the_installed_classes(hub_folder, tmp_path, no_terminal, trust_remote_code):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    trace = add_code(folder, "LlavaConfig", "LlavaForConditionalGeneration")
    (folder / "modeling_hawaii.py").write_text("raise SystemExit('changed')")
    name_code(folder)
    model, processor = load_checkpoint(str(folder), trust_remote_code)
    assert type(model) is HawaiiForConditionalGeneration and type(processor) is HawaiiProcessor
    assert not trace.exists()


def test_the_code_of_others_is_refused_without_a_question(stranger, no_terminal):
    folder, trace = stranger
    with pytest.raises(ValueError, match="custom code"):
        load_checkpoint(str(folder))
    assert not trace.exists()


def test_the_code_of_others_runs_if_it_is_trusted(stranger, no_terminal):
    folder, trace = stranger
    model, processor = load_checkpoint(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "StrangeModel" and type(processor) is LlavaProcessor
    assert trace.exists()


def test_every_command_refuses_the_code_of_others(stranger, no_terminal, tmp_path, capsys):
    folder, trace = stranger
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    output = ["--output_dir", str(tmp_path / "output")]
    for command in (
        ["chat", str(folder), "--image", str(tmp_path / "red.png"), "--question", "what ?"],
        ["evaluate", str(folder), "--tasks", "easy_vqa", *output],
        ["figures", "routing", str(folder), "--images", f"a={tmp_path}", *output],
    ):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"strange.py in the folder {folder}" in error
        assert "--trust-remote-code" in error
    assert not trace.exists()


def test_chat_runs_trusted_code(stranger, tmp_path, capsys):
    folder, trace = stranger
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    words = ["chat", str(folder), "--image", str(tmp_path / "red.png"), "--question", "what ?"]
    assert main([*words, "--trust-remote-code"]) == 0
    assert trace.exists()


def test_a_hawaii_with_other_code_answers_as_before(hub_folder, tmp_path, capsys):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    trace = add_code(folder, "LlavaConfig", "LlavaForConditionalGeneration")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    answers = []
    for _ in range(2):
        assert main(["chat", str(folder), "--image", str(tmp_path / "red.png"), "--question", "what color ?"]) == 0
        answers.append(capsys.readouterr().out)
        name_code(folder)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == CLASSES
    assert answers[0] == answers[1]
    assert not trace.exists()
