"""The published recipe has every option with an effect, and nothing that must not leave the machine."""

import json
import re

import pytest
import yaml

from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.training import save_recipe
from hawaii.training.publishing import public_recipe
from hawaii.training.publishing.public_recipe import write_public_recipe
from hawaii.training.recipes.built_in import BUILT_IN
from hawaii.training.recipes.recipe import first_difference, read_recipe


USER = "alicexyz"
TOKEN = "hf_" + "aB3" * 12


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publishes a recipe with these keys; returns its text and its content."""
    monkeypatch.setattr(public_recipe.getpass, "getuser", lambda: USER)
    monkeypatch.chdir(tmp_path)

    def publish(**changes):
        recipe = {
            "output_dir": f"/home/{USER}/runs/my_run",
            "vision_config": VISION,
            "language_model": "lmsys/vicuna-7b-v1.5",
            "teachers": ["clip"],
            "data_path": "data.json",
            "image_folder": "images",
            "use_cpu": True,
            "report_to": "none",
            "stages": {"only": {}},
        }
        plan = read_recipe(save_recipe(tmp_path, {**recipe, **changes}))
        write_public_recipe(plan, tmp_path / "public.yaml")
        text = (tmp_path / "public.yaml").read_text()
        return text, yaml.safe_load(text)

    return publish


@pytest.mark.parametrize(
    ("path", "public"),
    [
        ("data/acme-merger/llava.json", "./llava.json"),
        ("owner/data", "owner/data"),
        (f"/home/{USER}/secret/llava.json", "./llava.json"),
        (f"~{USER}/llava.json", "./llava.json"),
        ("~/llava.json", "./llava.json"),
        ("../other/llava.json", "./llava.json"),
        (f"projects/{USER}/llava.json", "./llava.json"),
        (f"C:\\Users\\{USER}\\llava.json", "./llava.json"),
        ("\\\\server\\share\\llava.json", "./llava.json"),
        (f"file:///home/{USER}/llava.json", "./llava.json"),
        (f"/home/{USER}/runs/my_run/data/llava.json", "runs/my_run/data/llava.json"),
    ],
)
def test_a_path_keeps_what_is_not_of_this_machine(publish, path, public):
    text, content = publish(data_path=path)
    assert content["data_path"] == public and content["output_dir"] == "runs/my_run"
    assert USER not in text and "/home" not in text and "Users" not in text and "server" not in text


def test_a_folder_that_is_named_like_the_user_is_not_named(publish):
    text, content = publish(image_folder=f"/home/{USER}")
    assert content["image_folder"] == "./private" and USER not in text


def test_repositories_of_the_hub_are_kept(publish):
    _, content = publish(teachers=["clip", f"{USER}/my-teacher"], vision_config={**VISION})
    assert (
        content["teachers"] == ["clip", f"{USER}/my-teacher"] and content["language_model"] == "lmsys/vicuna-7b-v1.5"
    )


def test_an_address_has_no_login_and_no_query(publish):
    _, content = publish(data=[{"path": f"https://{USER}:pw@example.org/data.parquet?token={TOKEN}"}], data_path="")
    assert content["data"][0]["path"] == "https://example.org/data.parquet"


def test_a_repository_name_that_is_a_folder_here_is_shortened(publish, tmp_path):
    (tmp_path / "acme" / "vit").mkdir(parents=True)
    _, content = publish(teachers=["clip", "acme/vit"])
    assert content["teachers"] == ["clip", "./vit"]


def test_a_word_that_is_the_name_of_the_user_is_kept(publish, monkeypatch):
    monkeypatch.setattr(public_recipe.getpass, "getuser", lambda: "hawaii")
    _, content = publish(objective="hawaii")
    assert content["objective"] == "hawaii"


@pytest.mark.parametrize("name", ["owner/multitask-instruction-tuning-v2-of-the-complete-mixture", "0123456789" * 4])
def test_a_name_or_a_commit_is_no_token(publish, name):
    _, content = publish(language_model=name)
    assert content["language_model"] == name


def test_an_address_keeps_its_port(publish):
    _, content = publish(data=[{"path": "https://me:pw@example.org:8443/data.parquet"}], data_path="")
    assert content["data"][0]["path"] == "https://example.org:8443/data.parquet"


def test_secrets_and_accounts_are_left_out(publish):
    text, content = publish(
        hub_token=TOKEN,
        hub_model_id=f"{USER}/private",
        run_name=f"run of {USER}",
        project="secret project",
        report_to=["wandb"],
        chat_template=f"/x/{TOKEN}.jinja",
        stages={"only": {"neftune_noise_alpha": 5}},
    )
    assert not {"hub_token", "hub_model_id", "run_name", "project", "report_to", "use_cpu"} & {*content}
    assert TOKEN not in text and USER not in text and "secret" not in text
    assert content["chat_template"] == "./hidden.jinja" and content["neftune_noise_alpha"] == 5


def test_an_inline_template_is_kept(publish, monkeypatch):
    monkeypatch.setattr(public_recipe.Path, "home", lambda: public_recipe.Path(f"/home/{USER}"))
    _, content = publish(chat_template=f"{{# /home/{USER}/x #}}\n{{% for m in messages %}}{{% endfor %}}\n")
    assert content["chat_template"] == "{# ~/x #}\n{% for m in messages %}{% endfor %}\n"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_published_built_in_recipe_trains_the_same(name, tmp_path):
    plan = read_recipe(name, use_cpu=True)
    write_public_recipe(plan, tmp_path / "recipe.yaml")
    public = read_recipe(tmp_path / "recipe.yaml", use_cpu=True)
    for stage in [*plan.stages.values(), *public.stages.values()]:
        for option in public_recipe.WITHOUT_EFFECT:
            stage.given.pop(option, None)
        for option, value in stage.given.items():  # folders of teachers and models keep their name only
            stage.given[option] = json.loads(re.sub(r'"(?:\./|runs/)[^"]*?([^"/]+)"', r'"\1"', json.dumps(value)))
    assert first_difference(plan, public) is None
    assert public.card == plan.card and public.eval_tasks == plan.eval_tasks
