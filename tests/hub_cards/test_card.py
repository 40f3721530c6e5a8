"""The model card contains the recorded facts, and its code runs as shown."""

import copy
import json
import re
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hawaii.files.user_error import UserError
from hawaii.hub_cards.card import write_card
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


def test_the_front_matter_has_the_metadata_that_the_hub_reads(folder):
    results = [{"task": "easy_vqa", "metric": "accuracy", "value": 0.975, "num_questions": 9673}]
    write_card(folder, results)
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "image-text-to-text", "tiny")
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("easy_vqa", "accuracy", 0.975)


def test_the_tables_contain_the_recorded_facts(folder):
    write_card(folder, [{"task": "easy_vqa", "metric": "accuracy", "value": 0.975, "num_questions": 9673}])
    card = (folder / "README.md").read_text()
    assert "| Parameters | 49,000 |" in card
    assert "| Encoder | 2 layers of width 32, 16 px in patches of 4 px |" in card
    assert "| Language model | llama, 2 layers of width 32 |" in card
    assert "| finetune | hawaii | 12 | 1.0 | 6 | 2 | 0.001 | 0.5 |" in card
    assert "| easy_vqa | accuracy | 0.975 | 9673 |" in card
    assert "distilled from frozen teachers (vit)" in card


def test_a_card_without_scores_says_not_evaluated(folder):
    write_card(folder)
    assert "Not evaluated yet." in (folder / "README.md").read_text()
    assert ModelCard.load(folder / "README.md").data.eval_results is None


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


EVIL = "x\n# <b>y</b> [z](https://evil.example) | **w** `v`"


def test_names_are_escaped_in_the_card(folder):
    """The names of the model, the stages, the teachers, the objective, the tasks, the data sets and the metrics."""

    def change(facts):
        facts["name"] = f"name {EVIL}"
        stage = facts["stages"].pop("finetune")
        facts["stages"][f"stage {EVIL}"] = stage | {"teachers": {f"teacher {EVIL}": {}}, "objective": f"o {EVIL}"}

    with_facts(folder, change)
    row = {"value": 0.5, "num_questions": f"n {EVIL}", "metric": f"metric {EVIL}"}
    write_card(folder, [{**row, "task": f"task {EVIL}"}, {**row, "task": "a", "data_set": f"data {EVIL}"}])
    card = ModelCard.load(folder / "README.md")
    assert (card.data.model_name, len(card.data.eval_results)) == (f"name {' '.join(EVIL.split())}", 2)
    body, escaped = card.text, r"x \# &lt;b&gt;y&lt;/b&gt; \[z\](https&#58;//evil.example) \| \*\*w\*\* \`v\`"
    for noun in ("name", "stage", "teacher", "o", "task", "data", "metric", "n"):
        assert f"{noun} {escaped}" in body
    assert "<b>" not in body and "**w**" not in body and "\n# <" not in body and "`v`" not in body
    assert body.count("\n# ") == 1


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
