"""The facts of a card: origins without paths, and a license only if there is exactly one possible."""

import json
import shutil

import pytest

from hawaii.files.user_error import UserError
from hawaii.hub_cards import origins
from hawaii.hub_cards.card_options import CardOptions
from hawaii.hub_cards.licenses import License
from hawaii.hub_cards.origins import Origin
from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.training import save_recipe
from hawaii.training.publishing.card_facts import choose_license, describe_card
from hawaii.training.publishing.recorded_origins import record_origins
from hawaii.training.recipes.built_in import BUILT_IN
from hawaii.training.recipes.recipe import read_recipe


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(origins, "try_to_load_from_cache", lambda *args, **kwargs: None)


@pytest.fixture
def describe(tmp_path):
    """Describes a recipe with these keys."""

    def describe(**changes):
        recipe = {
            "output_dir": str(tmp_path / "run"),
            "vision_tower": "openai/clip-vit-large-patch14-336",
            "language_model": "lmsys/vicuna-7b-v1.5",
            "teachers": "hawaii",
            "data_path": str(tmp_path / "data.json"),
            "image_folder": "images",
            "stages": {"only": {}},
        }
        return describe_card(read_recipe(save_recipe(tmp_path, {**recipe, **changes}), use_cpu=True))

    return describe


def test_the_parts_of_a_model_have_their_origins_and_licenses(describe, tmp_path):
    facts = describe(card={"license": "llama2", "language": "en", "datasets": ["a/b"]})
    assert facts["base_model"] == ["openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5"]
    assert facts["models"]["language model"]["license"]["identifier"] == "llama2"
    assert list(facts["teachers"]) == ["clip", "convnext", "eva02"]
    assert facts["teachers"]["eva02"]["license"]["identifier"] == "mit"
    assert (facts["license"]["license"], facts["language"]) == ("llama2", ["en"])
    assert [each["repository"] for each in facts["datasets"]] == ["a/b"]
    assert str(tmp_path) not in json.dumps(facts)


def test_local_folders_are_no_base_models_unless_the_recipe_says_their_origin(describe, tmp_path):
    for name in ("vit", "tower"):
        (tmp_path / name).mkdir()
    local = {"vision_tower": str(tmp_path / "tower"), "teachers": [str(tmp_path / "vit")]}
    facts = describe(**local, vision_config=None, language_model=None)
    assert facts["base_model"] == [] and facts["license"] is None
    assert facts["models"] == {"encoder": {"name": "tower", "repositories": [], "license": None}}
    assert str(tmp_path) not in json.dumps(facts)
    assert describe(**local, language_model=None, card={"base_model": "a/b"})["base_model"] == ["a/b"]


def test_random_weights_have_no_origin(describe):
    facts = describe(
        vision_tower=None,
        vision_config=VISION,
        text_config={"model_type": "llama"},
        language_model=None,
        tokenizer="a/b",
    )
    assert facts["models"] == {"encoder": None, "language model": None}


def test_an_objective_without_teachers_names_none(describe):
    assert describe(objective="llava")["teachers"] == {}


def test_data_of_the_hub_are_named_and_local_files_are_not(describe, tmp_path):
    facts = describe(data=[{"path": "owner/data"}, {"path": str(tmp_path / "data.json")}], data_path="")
    assert [(each["name"], each["repository"]) for each in facts["datasets"]] == [("owner/data", "owner/data")]


def test_local_data_with_a_data_card_have_its_license(describe, tmp_path):
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (data,) = describe()["datasets"]
    assert data == {"name": "data.json", "repository": None, "license": "cc-by-4.0", "url": None}


def with_license(folder, license, **files):
    """A folder of data with a card, and these files."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n" if license else "")
    for name in files or {"train.json": ""}:
        (folder / name).write_text("[]")
    return str(folder / "train.json")


@pytest.mark.parametrize("other", [None, "cc-by-nc-4.0", "apache-2.0"])
def test_the_license_of_every_data_file_counts_even_of_one_name(describe, tmp_path, other):
    paths = [with_license(tmp_path / "a", "apache-2.0"), with_license(tmp_path / "b", other)]
    towers = {"vision_tower": "google/siglip2-base-patch16-384", "language_model": "Qwen/Qwen3-0.6B"}
    facts = describe(**towers, data=[{"path": path} for path in paths], data_path="")
    assert facts["license"] == (License("apache-2.0").metadata if other == "apache-2.0" else None)
    assert [each["license"] for each in facts["datasets"]] == [each for each in ("apache-2.0", other) if each]


def test_data_in_the_cache_of_the_hub_are_their_repository(describe, tmp_path):
    snapshot = tmp_path / "datasets--owner--data" / "snapshots" / "1"
    path = with_license(snapshot, "mit")
    (data,) = describe(data_path=path)["datasets"]
    page = "https://huggingface.co/datasets/owner/data"
    assert data == {"name": "owner/data", "repository": "owner/data", "license": "mit", "url": page}


def test_an_encoder_that_learns_from_a_folder_of_images_has_its_license(describe, tmp_path):
    with_license(tmp_path / "pictures", "mit")
    alone = {"language_model": None, "data_path": "", "image_folder": str(tmp_path / "pictures")}
    facts = describe(**alone)
    assert [(each["name"], each["license"]) for each in facts["datasets"]] == [("pictures", "mit")]
    assert facts["license"]["license"] == "mit"


def test_what_was_removed_after_training_has_its_recorded_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = with_license(tmp_path / "data", "mit")
    tower = with_license(tmp_path / "acme" / "tower", "mit").rpartition("/")[0]
    recipe = {
        "output_dir": "run",
        "vision_tower": "acme/tower",
        "teachers": ["acme/tower"],
        "language_model": None,
        "data_path": path,
        "image_folder": "images",
        "stages": {"only": {}},
    }
    plan = read_recipe(save_recipe(tmp_path, recipe), use_cpu=True)
    facts = describe_card(plan)
    assert facts["base_model"] == []
    recorded = json.loads(json.dumps([record_origins(plan.stages["only"])]))
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tower)
    assert describe_card(plan, recorded) == facts


MIT, APACHE = (Origin(name, [], License(name)) for name in ("mit", "apache-2.0"))


@pytest.mark.parametrize(
    ("models", "datasets", "expected"),
    [
        ([MIT, MIT], ["mit"], "mit"),
        ([MIT, APACHE], ["mit"], None),
        ([MIT], ["cc-by-4.0"], None),
        ([MIT], [None], None),
        ([MIT], [], None),
        ([Origin("a", [], None), MIT], ["mit"], None),
        ([], ["mit"], None),
    ],
)
def test_a_license_is_chosen_only_if_all_parts_have_the_same(models, datasets, expected):
    chosen = choose_license(models, datasets)
    assert (chosen and chosen.identifier) == expected


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ({"licence": "mit"}, "card: there is no field 'licence'. Did you mean license?"),
        ({"license": "MIT"}, "card: license is 'MIT'; .* Did you mean mit"),
        ({"language": "english"}, "card: language names 'english'"),
        ("mit", "card: it is 'mit'; it must be a mapping"),
    ],
)
def test_a_recipe_with_an_invalid_card_is_refused_before_training(describe, card, problem):
    with pytest.raises(UserError, match=problem):
        describe(card=card)


def test_the_card_belongs_to_the_complete_run(describe):
    with pytest.raises(UserError, match="stage only: card belongs to the complete run"):
        describe(stages={"only": {"card": {"license": "mit"}}})


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_recipe_gives_a_license_and_its_data(name):
    options = CardOptions(**read_recipe(name, use_cpu=True).card)
    assert options.checked_license is not None and all(each.license for each in options.datasets)
    assert options.datasets
