"""A chat template that loops or builds a huge text is one sentence, in every command that renders it."""

import json
import os
import shutil

import pytest
from PIL import Image

from hawaii.__main__ import main
from hawaii.evaluation.checkpoint import checkpoint_folder
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import FOLDER, adapt_chat_template, limits, load_chat_template
from hawaii.processing.chat_templates.limits import check_rendering
from hawaii.tests.tiny.endless_templates import ENDLESS
from hawaii.tests.tiny.language_models import FAMILIES
from hawaii.tests.tiny.training import save_stage, write_recipe
from hawaii.training.finished_stage import load_stage


NESTED, PRODUCT = ENDLESS["nested loops"], ENDLESS["a product"]


@pytest.fixture(autouse=True)
def one_second(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 1)


def test_ordinary_templates_are_within_the_limits():
    names = [path.stem for path in FOLDER.glob("[!_]*.jinja")]
    for template in [*map(load_chat_template, names), *(family.chat_template for family in FAMILIES.values())]:
        check_rendering(template)


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_template_is_refused(template):
    with pytest.raises(UserError, match="The chat template loops, or builds a huge text"):
        check_rendering(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages|length > 3 %}" + PRODUCT + "{% endif %}",
        "{% if messages[0].role == 'system' %}" + PRODUCT + "{% endif %}",
        "{% if add_generation_prompt %}" + PRODUCT + "{% endif %}",
        "{% if messages[0].content is string %}" + PRODUCT + "{% endif %}",
        "{{ bos_token + eos_token + pad_token + unk_token + '' }}" + PRODUCT,
    ],
)
def test_an_endless_branch_is_refused(template):
    with pytest.raises(UserError, match="loops, or builds a huge text"):
        check_rendering(template)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for", "{{ none.x.y }}", "{{ 1 // 0 }}"])
def test_an_error_of_a_template_is_for_those_who_use_it(template):
    check_rendering(template)


def test_a_range_that_jinja_refuses_is_one_sentence():
    with pytest.raises(UserError, match="The chat template loses the content of a message: .*Range too big"):
        adapt_chat_template("{% for i in range(10**9) %}x{% endfor %}")


def test_no_process_is_left(monkeypatch):
    fork, processes = os.fork, []
    monkeypatch.setattr(os, "fork", lambda: processes.append(fork()) or processes[-1])
    with pytest.raises(UserError):
        check_rendering(NESTED)
    check_rendering("short")
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize("template", [NESTED, PRODUCT, "{% for i in range(10**9) %}x{% endfor %}"])
def test_train_refuses_the_template_of_a_recipe_and_of_a_tokenizer(teacher_folders, tmp_path, capsys, template):
    (tmp_path / "endless.jinja").write_text(template)
    recipe = write_recipe(tmp_path, teacher_folders)
    shutil.copy(tmp_path / "endless.jinja", tmp_path / "tokenizer" / "chat_template.jinja")
    chat_template = f"chat_template={tmp_path / 'endless.jinja'}"
    for overrides in (["stages.pretrain." + chat_template], ["stages={first: {}}"]):
        capsys.readouterr()
        assert main(["train", str(recipe), f"output_dir={tmp_path / 'other'}", *overrides]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("hawaii train: The chat template l")


def set_template(folder, template, file):
    (folder / "chat_template.jinja").unlink()
    if file.endswith(".jinja"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(template)
        return
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, "chat_template": template}))


@pytest.mark.parametrize("template", [NESTED, PRODUCT])
@pytest.mark.parametrize(
    "file",
    [
        "chat_template.jinja",
        "additional_chat_templates/default.jinja",
        "chat_template.json",
        "processor_config.json",
        "tokenizer_config.json",
    ],
)
def test_a_checkpoint_with_an_endless_template_is_refused(hub_folder, tmp_path, file, template):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    set_template(folder, template, file)
    with pytest.raises(UserError, match=f"The chat template in {folder / file} loops, or builds a huge text"):
        checkpoint_folder(folder)


def test_one_of_several_templates_of_a_tokenizer_is_refused(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    named = [{"name": "default", "template": "x"}, {"name": "other", "template": PRODUCT}]
    set_template(folder, named, "tokenizer_config.json")
    with pytest.raises(UserError, match="The chat template in .*tokenizer_config.json loops"):
        checkpoint_folder(folder)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (NESTED, "loops, or builds a huge text"),
        (PRODUCT, "loops, or builds a huge text"),
        ("{% if 'shape' in messages[0].content[1].text %}" + NESTED + "{% endif %}", "loops, or builds a huge text"),
        ("{% for i in range(10**9) %}x{% endfor %}", "fails: Range too big"),
        ("{{ 1 // 0 }}", "fails: "),
        ("{{ raise_exception('no images') }}", "fails: no images"),
    ],
)
def test_chat_refuses_the_template_of_a_checkpoint(hub_folder, tmp_path, capsys, template, problem):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / "chat_template.jinja").write_text(template)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    words = ["chat", str(folder), "--image", str(tmp_path / "red.png"), "--question", "what shape ?"]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hawaii chat: ") and f"{folder}" in error and problem in error


def test_the_figures_refuse_the_template_of_a_stage(teacher_folders, tmp_path):
    save_stage(tmp_path / "model", teacher_folders)
    (tmp_path / "model" / "chat_template.jinja").write_text(PRODUCT)
    with pytest.raises(UserError, match="The chat template loops, or builds a huge text"):
        load_stage(tmp_path / "model")
