"""The code of a language model or a tokenizer runs only if the recipe trusts it, without a question to the user."""

import shutil

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from hawaii import HawaiiForConditionalGeneration
from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.strangers import add_code, change_json
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.recipes.arguments import DataArguments, ModelArguments
from hawaii.training.students.student import build_student
from hawaii.training.students.tokenizer import load_tokenizer


MODEL_CLASSES = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"}
TOKENIZER_CLASSES = {"AutoTokenizer": [None, "strange.StrangeTokenizer"]}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Fails if a question is asked on the terminal, and forgets the classes that a test registers."""

    def ask(prompt=""):
        raise AssertionError(prompt)

    monkeypatch.setattr("builtins.input", ask)
    for mapping in (CONFIG_MAPPING, AutoModel._model_mapping, AutoModelForCausalLM._model_mapping):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))


@pytest.fixture
def plain(tmp_path):
    return save_language_model(tmp_path / "plain", FAMILIES["smollm2"], tie_word_embeddings=True)


@pytest.fixture
def strange_model(plain, tmp_path):
    """A language model of a type that transformers does not have, and the trace of its code."""
    folder = shutil.copytree(plain, tmp_path / "strange")
    change_json(folder / "config.json", model_type="strange", auto_map=MODEL_CLASSES)
    return folder, add_code(folder, "LlamaConfig", "LlamaForCausalLM")


@pytest.fixture
def strange_tokenizer(plain, tmp_path):
    """A tokenizer of a class that transformers does not have, and the trace of its code."""
    folder = shutil.copytree(plain, tmp_path / "strange_tokenizer")
    change_json(folder / "tokenizer_config.json", tokenizer_class="StrangeTokenizer", auto_map=TOKENIZER_CLASSES)
    return folder, add_code(folder, "LlamaConfig", "LlamaForCausalLM")


def build(**options):
    return build_student(
        ModelArguments(vision_config=VISION, **options), DataArguments(data_path="x", image_folder="x"), num_teachers=2
    )


def refusal(**options):
    with pytest.raises(UserError) as caught:
        build(**options)
    return str(caught.value)


def test_the_code_of_a_language_model_is_named_and_refused(strange_model, plain):
    folder, trace = strange_model
    assert refusal(language_model=str(folder), tokenizer=str(plain)) == (
        f"The language_model {folder} needs code that neither transformers nor hawaii-vlm has: strange.py in the "
        f"folder {folder}. It would run on this machine with all your rights: read it, and set trust_remote_code: "
        "true in the recipe if you trust its authors."
    )
    assert not trace.exists()


def test_the_code_of_a_tokenizer_is_named_and_refused(strange_tokenizer, plain):
    folder, trace = strange_tokenizer
    error = refusal(language_model=str(plain), tokenizer=str(folder))
    assert error.startswith(f"The tokenizer {folder} needs code that neither")
    assert f"strange.py in the folder {folder}." in error and "set trust_remote_code: true in the recipe" in error
    assert not trace.exists()


def test_the_repository_of_the_code_is_named(strange_model, plain):
    folder, _ = strange_model
    classes = {name: f"evil/code--{value}" for name, value in MODEL_CLASSES.items()}
    change_json(folder / "config.json", auto_map=classes)
    error = refusal(language_model=str(folder), tokenizer=str(plain))
    assert "strange.py in the repository evil/code of the Hub" in error


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_type_that_transformers_has_runs_its_class(plain, trust_remote_code):
    change_json(plain / "config.json", auto_map=MODEL_CLASSES)
    trace = add_code(plain, "LlamaConfig", "LlamaForCausalLM")
    student, _ = build(language_model=str(plain), trust_remote_code=trust_remote_code)
    assert type(student.model.language_model).__module__.startswith("transformers.models.llama")
    assert not trace.exists()


@torch.no_grad()
def test_trusted_code_builds_a_student_that_can_be_saved_and_loaded(strange_model, plain, tmp_path):
    folder, trace = strange_model
    student, _ = build(language_model=str(folder), tokenizer=str(plain), trust_remote_code=True)
    assert trace.exists() and type(student.config.text_config).__name__ == "StrangeConfig"
    ids = torch.tensor([[5, 6, 7]])
    expected = AutoModelForCausalLM.from_pretrained(plain)(ids).logits
    torch.testing.assert_close(student.eval()(ids).logits[..., : expected.shape[-1]], expected)
    student.save_pretrained(tmp_path / "student")
    loaded = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert torch.equal(loaded(ids).logits, student(ids).logits)


def test_a_trusted_tokenizer_is_loaded(strange_tokenizer):
    folder, trace = strange_tokenizer
    model_args = ModelArguments(vision_config=VISION, language_model=str(folder), trust_remote_code=True)
    assert type(load_tokenizer(model_args)).__name__ == "StrangeTokenizer"
    assert trace.exists()


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_train_refuses_the_code_of_others(strange_model, plain, teacher_folders, tmp_path, capsys, options):
    folder, trace = strange_model
    parts = {"language_model": str(folder), "tokenizer": str(plain), "text_config": None}
    recipe = write_recipe(tmp_path, teacher_folders, **parts)
    capsys.readouterr()
    assert main(["train", str(recipe), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hawaii train: ") and "trust_remote_code: true" in error
    assert not trace.exists()


def test_a_run_with_trusted_code_finishes_and_is_finished(
    strange_model, strange_tokenizer, teacher_folders, tmp_path, capsys
):
    (model, model_trace), (tokenizer, tokenizer_trace) = strange_model, strange_tokenizer
    parts = {"language_model": str(model), "tokenizer": str(tokenizer), "text_config": None, "max_steps": 1}
    recipe = write_recipe(tmp_path, teacher_folders, trust_remote_code=True, **parts)
    assert yaml.safe_load(recipe.read_text())["trust_remote_code"] is True
    assert main(["train", str(recipe), "--dry-run"]) == 0
    for state in ("started.", "already done."):
        assert main(["train", str(recipe)]) == 0
        assert f"finetune: {state}" in capsys.readouterr().out
    assert model_trace.exists() and tokenizer_trace.exists()
