"""The command line shows its help without heavy imports, and distinguishes users' errors from bugs."""

import argparse
import importlib
import io
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch

from hawaii import __main__ as command
from hawaii.files.user_error import UserError
from hawaii.training.sources.readers import read_table


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)


def fail_with(monkeypatch, function) -> None:
    """Makes `hawaii train` call `function` instead of training."""
    monkeypatch.setattr("hawaii.training.train.train", lambda **options: function())


def record_options(monkeypatch, function: str) -> dict:
    """Replaces a function of the package; returns a dictionary that gets the options of its call."""
    options = {}
    monkeypatch.setattr(f"hawaii.{function}", lambda **received: options.update(received))
    return options


@pytest.mark.parametrize("program", ["import hawaii", "import hawaii.__main__ as m; m.main(['--help'])"])
def test_neither_the_package_nor_its_help_imports_torch(program):
    finished = run(
        f"import sys\ntry:\n    {program}\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert finished.stdout.splitlines()[-1] == "[]", finished.stderr


def test_python_dash_m_is_the_same_command():
    finished = subprocess.run([sys.executable, "-m", "hawaii", "--help"], capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0
    assert finished.stdout.startswith("usage: hawaii ")


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "data easy_vqa",
        "data emoji_vqa",
        "data easy_clip",
        "data emoji_clip",
        "convert",
        "convert llava",
        "check",
        "train",
        "recipes",
        "teachers",
        "evaluate",
        "ablate",
        "figures importance",
        "figures attention",
        "figures routing",
        "chat",
        "publish",
    ],
)
def test_each_command_has_a_help_text(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([*name.split(), "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: hawaii {name} ")


@pytest.mark.parametrize("words", [[], ["tarin"], ["data", "hard_vqa"], ["train"], ["evaluate", "folder"]])
def test_a_wrong_command_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert "usage: hawaii" in capsys.readouterr().err


def test_arguments_reach_the_handler(monkeypatch):
    received = record_options(monkeypatch, "training.train.train")
    assert command.main(["train", "recipe.yaml", "seed=1", "stages.pretrain.max_steps=2"]) == 0
    assert received == {"recipe": "recipe.yaml", "overrides": ["seed=1", "stages.pretrain.max_steps=2"]}


@pytest.mark.parametrize(
    "words",
    [
        "recipe.yaml a=1 b.c=2 --tasks t --output_dir o --seeds 0 1 --rows llava hawaii",
        "recipe.yaml --tasks t --output_dir o --rows llava hawaii --seeds 0 1 a=1 b.c=2",
        "recipe.yaml --tasks t --seeds 0 1 a=1 --rows llava hawaii --output_dir o b.c=2",
        "--rows llava hawaii --seeds 0 1 --output_dir o --tasks t recipe.yaml a=1 b.c=2",
        "--rows llava hawaii --seeds 0 1 a=1 --output_dir o --tasks t recipe.yaml b.c=2",
        "--seeds 0 1 a=1 --rows llava hawaii b.c=2 --output_dir o --tasks t recipe.yaml",
    ],
)
def test_overrides_may_be_anywhere(monkeypatch, words):
    received = record_options(monkeypatch, "ablation.ablate.ablate")
    assert command.main(["ablate", *words.split()]) == 0
    assert received == {
        "recipe": "recipe.yaml",
        "overrides": ["a=1", "b.c=2"],
        "tasks": "t",
        "output_dir": "o",
        "rows": ["llava", "hawaii"],
        "seeds": [0, 1],
    }


def test_an_option_that_is_not_given_has_the_functions_default(monkeypatch):
    received = record_options(monkeypatch, "evaluation.evaluate.evaluate")
    assert command.main(["evaluate", "hub", "--tasks", "easy_vqa", "--output_dir", "out", "--limit", "3"]) == 0
    assert received == {"folder": "hub", "tasks": "easy_vqa", "output_dir": "out", "limit": 3}


@pytest.mark.parametrize(
    ("module", "function", "words"),
    [
        ("example_data.easy_vqa.prepare", "prepare_easy_vqa", "data easy_vqa --output_dir out --expert_steps 1"),
        ("example_data.emoji_vqa.prepare", "prepare_emoji_vqa", "data emoji_vqa --output_dir out --expert_steps 1"),
        ("example_data.easy_vqa.clip", "prepare_easy_clip", "data easy_clip --output_dir out --expert_steps 1"),
        ("example_data.emoji_vqa.clip", "prepare_emoji_clip", "data emoji_clip --output_dir out --expert_steps 1"),
        ("training.train", "train", "train recipe.yaml seed=1"),
        (
            "evaluation.evaluate",
            "evaluate",
            "evaluate hub --tasks t --output_dir out --limit 1 --batch_size 1 --data_file f --device d --dtype t",
        ),
        (
            "evaluation.evaluate",
            "evaluate",
            "evaluate hub --suite paper --output_dir out --data_folder d --num_processes 2",
        ),
        (
            "figures.importance",
            "importance_figure",
            "figures importance run --image i.png --question what --output_dir out",
        ),
        (
            "figures.attention",
            "attention_figure",
            "figures attention run --image i.png --start clip --layer 2 --output_dir out",
        ),
        (
            "figures.routing",
            "routing_figure",
            "figures routing hub --tasks t --images n=d --limit 1 --data_file f --data_folder d --output_dir out",
        ),
        (
            "ablation.ablate",
            "ablate",
            "ablate recipe.yaml seed=1 --tasks t --output_dir out --seeds 0 1 --rows llava hawaii --baseline llava "
            "--jobs 2 --launcher l --limit 1 --batch_size 1 --data_file f --data_folder d",
        ),
        ("training.counting.teachers", "describe_presets", "teachers"),
        ("figures.demo", "demo", "demo hub --run run --port 7900 --host 0.0.0.0 --trust-remote-code"),
        ("evaluation.chat", "chat", "chat hub --image i.png --image j.png --question what --max_new_tokens 5"),
        (
            "hub_cards.publish",
            "publish",
            "publish hub user/name --private --tag v1 --license other --license_name n --license_link l --language en "
            "--datasets a/b --base_model c/d",
        ),
    ],
)
def test_every_option_is_a_parameter_of_the_function(monkeypatch, module, function, words):
    module = importlib.import_module(f"hawaii.{module}")
    calls = create_autospec(getattr(module, function))
    monkeypatch.setattr(module, function, calls)
    assert command.main(words.split()) == 0
    calls.assert_called_once()


def test_train_help_describes_both_forms_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        command.main(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "RECIPE YAML file, or the name of a built-in recipe (see `hawaii recipes`)" in printed


def test_recipes_prints_the_table_of_built_in_recipes(monkeypatch, capsys):
    built_in = SimpleNamespace(describe_recipes=lambda: "| recipe | trains |")
    monkeypatch.setitem(sys.modules, "hawaii.training.recipes.built_in", built_in)
    assert command.main(["recipes"]) == 0
    assert capsys.readouterr().out == "| recipe | trains |\n"


def test_each_function_of_the_list_adds_the_command_with_its_name():
    for add in command.COMMANDS:
        commands = argparse.ArgumentParser().add_subparsers()
        add(commands)
        assert list(commands.choices) == [add.__name__]


def refuse():
    raise UserError("max_steps is 0;\n    it must be positive.")


def fail():
    raise ValueError("not enough values to unpack")


def test_an_error_of_a_user_is_one_sentence(monkeypatch, capsys):
    fail_with(monkeypatch, refuse)
    assert command.main(["train", "recipe.yaml"]) == 2
    assert capsys.readouterr().err == "hawaii train: max_steps is 0; it must be positive.\n"


def test_an_error_and_a_result_cannot_command_the_terminal(monkeypatch, capsys):
    def refuse():
        raise UserError("The template says \x1b]0;pwned\x07.")

    fail_with(monkeypatch, refuse)
    assert command.main(["train", "recipe.yaml"]) == 2
    assert capsys.readouterr().err == "hawaii train: The template says \\x1b]0;pwned\\x07.\n"
    fail_with(monkeypatch, lambda: "a name with \x1b[2J")
    assert command.main(["train", "recipe.yaml"]) == 0
    assert capsys.readouterr().out == "a name with \\x1b[2J\n"


def test_a_character_that_the_terminal_lacks_is_shown_by_its_number(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="latin-1"))
    fail_with(monkeypatch, lambda: "é or 你")
    assert command.main(["train", "recipe.yaml"]) == 0
    sys.stdout.flush()
    assert output.getvalue() == "é or \\u4f60\n".encode("latin-1")


def test_a_missing_file_is_an_error_of_a_user(monkeypatch, capsys):
    fail_with(monkeypatch, lambda: open("/there/is/no/recipe.yaml"))
    assert command.main(["train", "recipe.yaml"]) == 2
    assert capsys.readouterr().err == "hawaii train: No such file or directory: /there/is/no/recipe.yaml\n"


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "recipe.yaml"], "Interrupted: the same command continues from the last checkpoint."),
        (["train", "recipe.yaml", "--dry-run"], "Interrupted."),
        (["cache", "recipe.yaml"], "Interrupted: the same command computes the missing features."),
        (["ablate", "recipe.yaml"], "Interrupted: the same command continues the interrupted runs."),
        (["check", "recipe.yaml"], "Interrupted."),
        (["recipes"], "Interrupted."),
    ],
)
def test_ctrl_c_is_one_sentence(monkeypatch, capsys, words, message):
    monkeypatch.setattr(command, "import_module", lambda *names: interrupt())
    assert command.main(words) == 130
    assert capsys.readouterr().err == f"hawaii {words[0]}: {message}\n"


@pytest.mark.parametrize("name", ["file", "file/run", "file/run/stage"])
def test_a_file_at_the_place_of_a_folder_is_an_error_of_a_user(monkeypatch, capsys, tmp_path, name):
    (tmp_path / "file").touch()
    fail_with(monkeypatch, lambda: (tmp_path / name).mkdir(parents=True, exist_ok=True))
    assert command.main(["train", "recipe.yaml"]) == 2
    error = f"{tmp_path / 'file'} is not a folder, but one is needed there: move it, or name another folder."
    assert capsys.readouterr().err == f"hawaii train: {error}\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    fail_with(monkeypatch, fail)
    with pytest.raises(ValueError, match="not enough values"):
        command.main(["train", "recipe.yaml"])


def test_debug_shows_every_traceback(monkeypatch):
    monkeypatch.setenv("HAWAII_DEBUG", "1")
    fail_with(monkeypatch, lambda: open("/there/is/no/recipe.yaml"))
    with pytest.raises(FileNotFoundError):
        command.main(["train", "recipe.yaml"])
    fail_with(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.main(["train", "recipe.yaml"])


def load_in_a_worker(function) -> None:
    """Calls a function in a worker of a data loader."""

    class Records(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return function()

    next(iter(torch.utils.data.DataLoader(Records(), num_workers=1)))


def test_an_error_in_a_worker_is_one_sentence_too(monkeypatch, capsys):
    fail_with(monkeypatch, lambda: load_in_a_worker(lambda: open("/there/is/no/data.json")))
    # A missing file is no ValueError: the worker must not change the class of the error.
    assert command.main(["train", "recipe.yaml"]) == 2
    fail_with(monkeypatch, lambda: load_in_a_worker(lambda: read_table("data.tsv")))
    assert command.main(["train", "recipe.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "hawaii train: There is no data file data.tsv."


def test_a_bug_in_a_worker_keeps_its_traceback(monkeypatch):
    fail_with(monkeypatch, lambda: load_in_a_worker(fail))
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker"):
        command.main(["train", "recipe.yaml"])
