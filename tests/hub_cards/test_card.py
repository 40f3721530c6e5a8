"""The model card contains the recorded facts, and its code runs as shown."""

import copy
import json
import re
import shutil
import subprocess
import sys
from datetime import date

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image

from hawaii.files.user_error import UserError
from hawaii.hub_cards.card import add_results, check_card, complete_card, fill_card, read_card, write_card
from hawaii.hub_cards.card_options import CardOptions
from hawaii.tests.tiny.models import FACTS, make_model


@pytest.fixture
def folder(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / "training.json").write_text(json.dumps(FACTS))
    return folder


def with_facts(folder, change):
    facts = copy.deepcopy(FACTS)
    change(facts)
    (folder / "training.json").write_text(json.dumps(facts))
    write_card(folder)
    return (folder / "README.md").read_text()


RESULT = {"task": "easy_vqa", "metric": "accuracy", "value": 0.975, "num_questions": 9673}
GQA = {**RESULT, "task": "gqa", "data_set": "GQA", "repository": "lmms-lab/GQA", "config": "testdev", "split": "test"}


def metadata(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_front_matter_has_the_metadata_that_the_hub_reads(folder):
    write_card(folder)
    assert metadata(folder) == {
        "language": ["en", "de"],
        "license": "llama2",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": ["openai/clip", "lmsys/vicuna"],
        "base_model_relation": "finetune",
        "datasets": ["owner/data"],
        "model_name": "tiny",
        "tags": ["hawaii", "knowledge-distillation", "mixture-of-lora", "custom_code"],
    }


def test_the_tables_contain_the_recorded_facts(folder):
    write_card(folder)
    card = (folder / "README.md").read_text()
    for row in (
        "| Parameters | 49,000 |",
        "| Encoder | 2 layers of width 32, 16 px in patches of 4 px |",
        "| Language model | llama, 2 layers of width 32 |",
        "| finetune | hawaii | vit | 12 | 1.0 | 6 | 2 | 0.001 | 0.5 |",
        "| finetune | 1 | 8 x NVIDIA H200 | python 3.11.7, torch 2.13.0 |",
        "| finetune | 4 | 4 x NVIDIA A100 | python 3.11.7, torch 2.14.0 |",
        "| encoder, at the start | [openai/clip](https://huggingface.co/openai/clip) | mit |",
        "| language model, at the start | random weights | - |",
        "| teacher vit | [my_vit (local), from owner/vit](https://huggingface.co/owner/vit) "
        "| [my-license](https://example.org/license) |",
        "| data | [owner/data](https://huggingface.co/datasets/owner/data) | cc-by-4.0 |",
        "| data | easy-VQA | not known |",
    ):
        assert row in card, row
    assert "distilled from frozen teachers (vit)" in card and "teacher unused" not in card
    assert "The license of this model is llama2." in card and "(languages: en, de)" in card


def test_the_card_names_the_code_that_it_runs(folder):
    write_card(folder)
    listed = re.search(r"```text\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    checked = subprocess.run(["sha256sum", "-c"], input=listed, cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked
    assert {line.split()[1] for line in listed.splitlines()} == {path.name for path in folder.glob("*.py")}


def test_the_card_shows_the_recipe_and_the_losses_if_the_folder_has_them(folder):
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "recipe.yaml" not in card and "loss_curves.png" not in card and "hawaii plot" not in card
    for name in ("recipe.yaml", "loss_curves.png"):
        (folder / name).touch()
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "[recipe.yaml](recipe.yaml)" in card and "](loss_curves.png)" in card


def test_facts_of_an_older_version_have_a_card_without_a_license(folder):
    def change(facts):
        del facts["card"], facts["stages"]["finetune"]["hardware"]

    card = with_facts(folder, change)
    assert "No license is given yet" in card and "hardware was not recorded" in card
    assert not {"license", "base_model", "datasets", "language"} & metadata(folder).keys()


def test_scores_are_added_to_the_metadata_the_text_and_the_leaderboards(folder):
    write_card(folder)
    assert "Not evaluated yet." in (folder / "README.md").read_text()
    add_results(folder, [RESULT, GQA])
    card = ModelCard.load(folder / "README.md")
    easy, gqa = card.data.eval_results
    assert (easy.dataset_type, easy.metric_type, easy.metric_value) == ("easy_vqa", "accuracy", 0.975)
    assert (gqa.dataset_type, gqa.dataset_name, gqa.dataset_config) == ("lmms-lab/GQA", "GQA", "testdev")
    assert "Not evaluated" not in card.text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if "| accuracy |" in line
    ]
    assert rows == [["easy_vqa", "", "accuracy", "0.975", "9,673"], ["GQA", "test", "accuracy", "0.975", "9,673"]]
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results/lmms_eval.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("lmms-lab/GQA", "testdev", 0.975)
    assert "gqa, 9673 questions" in entry.notes and date.fromisoformat(entry.date)


def test_a_new_score_replaces_the_old_one_and_others_stay(folder):
    add_results(folder, [RESULT, GQA])
    add_results(folder, [{**GQA, "value": 0.5}, {**GQA, "task": "x", "repository": "lmms-lab/x", "data_set": "X"}])
    values = {each.dataset_name: each.metric_value for each in ModelCard.load(folder / "README.md").data.eval_results}
    assert values == {"easy_vqa": 0.975, "GQA": 0.5, "X": 0.975}
    entries = yaml.safe_load((folder / ".eval_results/lmms_eval.yaml").read_text())
    assert {each["dataset"]["id"]: each["value"] for each in entries} == {"lmms-lab/GQA": 0.5, "lmms-lab/x": 0.975}


def test_scores_of_other_data_are_in_no_leaderboard(folder):
    add_results(folder, [RESULT])
    assert not (folder / ".eval_results").exists()


def test_a_card_that_is_written_again_has_the_scores_of_the_leaderboards(folder):
    mme = {**GQA, "task": "mme", "data_set": "MME", "config": None, "metric": "score", "repository": "lmms-lab/MME"}
    add_results(folder, [GQA, {**mme, "num_questions": ""}])
    before = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    write_card(folder)
    assert (folder / "README.md").read_text() == before
    add_results(folder, [{**GQA, "value": 0.5}])
    assert [each.metric_value for each in ModelCard.load(folder / "README.md").data.eval_results] == [0.5, 0.975]


def test_scores_that_somebody_else_wrote_are_not_in_a_new_card(folder):
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/lmms_eval.yaml").write_text("- {dataset: {id: a/b, task_id: c}, value: 1, notes: 5}\n")
    write_card(folder)
    assert "Not evaluated yet." in (folder / "README.md").read_text()


def test_the_mark_of_an_editor_of_windows_is_no_text(folder):
    (folder / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\ntext\r\n")
    assert read_card(folder).data.license == "mit"
    add_results(folder, [RESULT])
    text = (folder / "README.md").read_bytes()
    assert text.startswith(b"---\r\nlicense: mit\r\nmodel-index:") and text.endswith(b"\r\n---\r\ntext\r\n")


EDITED = "---\nlicense: mit\nmine: kept\ntags: [a]\n---\n# My model\r\n\r\n  Some *text*\n"


def test_the_text_of_an_edited_card_is_kept(folder):
    (folder / "README.md").write_text(EDITED, newline="")
    add_results(folder, [RESULT])
    text = (folder / "README.md").read_bytes().decode()
    assert text.endswith("---\n# My model\r\n\r\n  Some *text*\n")
    assert metadata(folder)["mine"] == "kept" and metadata(folder)["license"] == "mit"
    assert metadata(folder)["model-index"][0]["name"] == "tiny"


def test_text_around_the_marks_of_a_section_is_kept(folder):
    write_card(folder)
    path = folder / "README.md"
    path.write_text(path.read_text().replace("## Evaluation\n", "## My scores\n\nMeasured by me.\n"))
    before, after = path.read_text().split("Not evaluated yet.")
    add_results(folder, [RESULT])
    text = path.read_text()
    assert "## My scores\n\nMeasured by me.\n" in text and text.endswith(after)
    assert before.split("---\n", 2)[2] in text


@pytest.mark.parametrize("language, kept", [("no", "no"), ("[en, no]", ["en", "no"])])
def test_norwegian_stays_norwegian(folder, language, kept):
    """YAML 1.1 reads it as false."""
    (folder / "README.md").write_text(f"---\nlanguage: {language}\n---\ntext")
    add_results(folder, [RESULT])
    found = metadata(folder)
    assert found["language"] == kept and "model-index" in found


def test_a_damaged_metadata_block_is_named(folder):
    (folder / "README.md").write_text("---\na: [\n---\ntext")
    with pytest.raises(UserError, match=r"The metadata of .*README\.md cannot be read; correct it"):
        add_results(folder, [RESULT])
    assert (folder / "README.md").read_text() == "---\na: [\n---\ntext"


def test_damaged_scores_are_named(folder):
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/lmms_eval.yaml").write_text("- 5")
    with pytest.raises(UserError, match=r"lmms_eval\.yaml does not list scores; remove it"):
        add_results(folder, [GQA])


def test_a_recipe_fills_only_what_a_card_lacks(folder):
    (folder / "README.md").write_text(EDITED, newline="")
    assert fill_card(folder, FACTS["card"])
    found = metadata(folder)
    assert (found["license"], found["language"], found["datasets"]) == ("mit", ["en", "de"], ["owner/data"])
    once = (folder / "README.md").read_bytes()
    assert not fill_card(folder, FACTS["card"]) and (folder / "README.md").read_bytes() == once


def test_the_license_of_a_card_is_not_mixed_with_that_of_a_recipe(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    other = {"license": "other", "license_name": "x", "license_link": "https://example.org"}
    fill_card(folder, {"license": other})
    assert metadata(folder) == {"license": "mit"}


def test_an_author_completes_a_card(folder):
    write_card(folder)
    card = read_card(folder)
    complete_card(card, CardOptions(license="other", license_name="x-1.0", license_link="https://example.org/x"))
    complete_card(card, CardOptions(language="fr", datasets=["a/b", {"name": "c"}], base_model="d/e"))
    check_card(folder, card)
    found = card.data.to_dict()
    assert (found["license"], found["license_name"], found["language"]) == ("other", "x-1.0", ["fr"])
    assert (found["datasets"], found["base_model"]) == (["a/b"], ["d/e"])
    assert "The license of this model is [x-1.0](https://example.org/x)." in card.text and "llama2" not in card.text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("", "names no license, so nobody could use the model: give it with `--license mit`"),
        ("license: unknown", "says that the license is unknown, so nobody could use the model"),
        ("license: Apache 2.0", "license is 'Apache 2.0'.* Did you mean apache-2.0"),
        ("license: [mit, gpl]", "license is ..mit., .gpl.."),
        ("license: other", "a license_name, such as my-license-1.0, and a license_link are needed"),
        ("license: other\nlicense_name: x\nlicense_link: LICENSE", "license_link is 'LICENSE'; it must be an address"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_not_published(folder, given, problem):
    (folder / "README.md").write_text(f"---\nmine: kept\n{given}\n---\ntext")
    with pytest.raises(UserError, match=problem):
        check_card(folder, read_card(folder))


def test_a_model_without_teachers_names_none(folder):
    card = with_facts(folder, lambda facts: facts["stages"]["finetune"].update(teachers={}))
    assert "trained without teachers" in card and "distilled" not in card


def test_a_language_model_whose_fields_have_other_names_is_described(folder):
    make_model(text={"model_type": "gpt2"}).config.save_pretrained(folder)
    write_card(folder)
    assert re.search(r"\| Language model \| gpt2, \d+ layers of width 32 \|", (folder / "README.md").read_text())


def test_the_code_asks_a_question_from_training_and_runs_without_the_package(folder):
    card = with_facts(folder, lambda facts: facts["stages"]["finetune"].update(question='what is "a" shape ?'))
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    assert json.dumps('what is "a" shape ?') in code
    Image.new("RGB", (20, 30), "red").save(folder / "image.png")
    code = "import sys\nsys.modules['hawaii'] = None\n" + code
    finished = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()


EVILS = [
    "x\n# <b>y</b> [z](https://evil.example) | **w** `v`",
    "x\n---\nlicense: mit\n---\n",
    "x {{ 7 * 7 }} {% raw %} {# y #}",
    "x\n```\n| a | b |\n",
    "x <!-- hawaii: end of evaluation --> <script>alert(1)</script>",
    "x ![y](javascript:alert(1)) <javascript:alert(1)> [a]: https://evil.example",
    "x\u202e\u0000y &lt;b&gt; &#x3c; ~~s~~ $y$ _z_ *w*",
    "'x': \"y\" !!python/object:os.system [1, {",
]


def spoil(value, evil):
    """Nested facts in which every name is hostile."""
    if isinstance(value, dict):
        return {
            # A name that cannot be a repository's has no link, which would be another structure.
            name if name in SCHEMA else f"{name} {evil}": item if name == "repositories" else spoil(item, evil)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [spoil(item, evil) for item in value]
    return f"{value} {evil}" if isinstance(value, str) else value


SCHEMA = {*FACTS, *FACTS["stages"]["finetune"], *FACTS["card"], *FACTS["card"]["models"]["encoder"], "first_step"}
SCHEMA |= {"devices", "software", "repository", "url", "license_name", "license_link", "identifier", "link"}
SCHEMA |= {"image_size", "grid"}


@pytest.mark.parametrize("evil", EVILS)
def test_names_cannot_break_or_inject_into_the_card(folder, evil):
    """The names of the model, stages, teachers, devices, libraries, origins, licenses, data, tasks and metrics."""
    write_card(folder)
    add_results(folder, [GQA])
    expected = shape_of(folder)
    (folder / ".eval_results/lmms_eval.yaml").unlink()
    (folder / "training.json").write_text(json.dumps(spoil(FACTS, evil)))
    write_card(folder)
    texts = {name: f"{value} {evil}" for name, value in GQA.items() if isinstance(value, str)}
    add_results(folder, [{**GQA, **texts, "num_questions": f"n {evil}"}])
    assert shape_of(folder) == expected
    shown = rendered_text(folder)
    line = "".join(each for each in " ".join(evil.split()) if each.isprintable())
    for name in ("tiny", "finetune", "teacher vit", "NVIDIA H200", "python", "my_vit", "easy-VQA", "GQA", "accuracy"):
        assert f"{name} {line}" in shown, name
    write_card(folder)
    add_results(folder, [{**GQA, **texts, "repository": GQA["repository"]}])
    write_card(folder)  # with the scores of .eval_results
    assert shape_of(folder) == expected


def test_a_name_that_no_repository_can_have_is_not_linked(folder):
    def change(facts):
        facts["card"]["teachers"]["vit"]["repositories"] = ["x](https://evil.example)/y"]

    with_facts(folder, change)
    assert "evil.example" not in "".join(shape_of(folder)[1])


def tokens_of(folder):
    text = ModelCard.load(folder / "README.md").text
    return MarkdownIt("gfm-like", {"linkify": False}).parse(text)


def shape_of(folder):
    """What a program sees of a card: blocks, rows, cells, the hosts of links, and the fields of the metadata."""
    blocks = [
        (token.type, token.tag, token.info, [child.type for child in token.children or [] if child.type != "text"])
        for token in tokens_of(folder)
    ]
    links = [
        child.attrs.get("href", child.attrs.get("src")).partition("%20")[0].split("/")[2]
        for token in tokens_of(folder)
        for child in token.children or []
        if child.type in ("link_open", "image") and "//" in str(child.attrs.get("href", ""))
    ]
    return blocks, links, {name: type(value) for name, value in metadata(folder).items()}


def rendered_text(folder):
    """The text that a reader sees."""
    return "\n".join(
        "".join(child.content for child in token.children or [] if child.type in ("text", "text_special"))
        for token in tokens_of(folder)
    )


def test_a_question_stays_within_the_code(folder):
    question = '```\n# heading\n"quoted" <b> \\'
    card = with_facts(folder, lambda facts: facts["stages"]["finetune"].update(question=question))
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    (line,) = [line for line in code.splitlines() if line.startswith("content = ")]
    assert eval(line.removeprefix("content = "))[1]["text"] == question


@pytest.mark.parametrize(
    "facts", ["{}", '{"name": 1, "stages": {}}', '{"name": "a", "num_parameters": 1, "stages": {}}']
)
def test_facts_that_describe_no_training_are_named(folder, facts):
    (folder / "training.json").write_text(facts)
    with pytest.raises(UserError, match=r"training\.json does not describe a training"):
        write_card(folder)


@pytest.mark.parametrize("name", ["config.json", "training.json"])
def test_a_damaged_file_is_named(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name} is damaged: it is not JSON"):
        write_card(folder)
