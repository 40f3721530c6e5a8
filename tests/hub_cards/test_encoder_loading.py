"""
A published encoder is self-contained: it loads in a new process that cannot import the package, in both supported
versions of transformers, computes the same features, and saving it again gives another such folder.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import AutoImageProcessor

from hawaii.configuration.hub_hawaii import VISION_AUTO_MAP
from hawaii.files.manifest import write_manifest
from hawaii.files.user_error import UserError
from hawaii.hub_cards.card import add_results, write_card
from hawaii.hub_cards.export import export
from hawaii.tests.hub_cards.test_loading import TRANSFORMERS_4, VERSIONS
from hawaii.tests.tiny.encoders import make_encoder_processor, save_encoder_folder
from hawaii.tests.tiny.models import FACTS, make_model
from hawaii.tests.tiny.training import make_image


PYTHON = dict(zip(VERSIONS, (TRANSFORMERS_4, Path(sys.executable))))
# Loads, compares, saves again and loads the result; transformers 4 also loads the folder that 5 saved.
LOAD = """
import json, sys
sys.modules["hawaii"] = None
import torch, transformers
from pathlib import Path
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel
folder, output, *others = map(Path, sys.argv[1:])
reference = load_file(folder.parent / "reference.safetensors")
image = Image.open(folder.parent / "image.png")
report = {"version": transformers.__version__, "differences": {}}
report["config"] = type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__
for name in (folder, output, *others):
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(name)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = {
            "pixel_values": pixel_values,
            "features": model(reference["pixel_values"]).last_hidden_state,
            "alone": model(reference["pixel_values"], adapters=torch.tensor([1])).last_hidden_state,
        }
    for key, tensor in found.items():
        report["differences"][f"{key}, {name.name}"] = float((tensor - reference[key]).abs().max())
    if name == folder:
        report["model"] = type(model).__name__
        model.save_pretrained(output)
        processor.save_pretrained(output)
pipe = transformers.pipeline("image-feature-extraction", model=str(folder), trust_remote_code=True, device="cpu")
with torch.no_grad():
    report["differences"]["pipeline"] = float((torch.tensor(pipe(image)) - reference["features"]).abs().max())
report["package_modules"] = [name for name, module in sys.modules.items() if name.startswith("hawaii") and module]
print(json.dumps(report))
"""


def run(python, code, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    finished = subprocess.run(
        [python, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A published encoder, an image, and the features that this process computes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    model = save_encoder_folder(folder / "hub")
    image = make_image(0, 30, 20)
    image.save(folder / "image.png")
    pixel_values = AutoImageProcessor.from_pretrained(folder / "hub")(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        reference = {
            "pixel_values": pixel_values,
            "features": model(pixel_values).last_hidden_state,
            "alone": model(pixel_values, adapters=torch.tensor([1])).last_hidden_state,
        }
    save_file(reference, folder / "reference.safetensors")
    return folder / "hub"


@pytest.fixture(scope="module")
def reports(hub):
    """The report of each version of transformers; 4 also loads the folder that 5 saved."""
    outputs = {version: hub.parent / version for version in VERSIONS}
    new = run(PYTHON["transformers5"], LOAD, hub.parent, hub, outputs["transformers5"])
    old = run(PYTHON["transformers4"], LOAD, hub.parent, hub, outputs["transformers4"], outputs["transformers5"])
    return {"transformers5": json.loads(new), "transformers4": json.loads(old)}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_encoder_loads_without_the_package(reports, version):
    report = reports[version]
    assert report["version"].startswith(version[-1] + ".") and report["package_modules"] == []
    assert (report["config"], report["model"]) == ("HawaiiVisionConfig", "HawaiiVisionModel")


@pytest.mark.parametrize("version", VERSIONS)
def test_features_equal_the_publishers_before_and_after_saving_again(reports, version):
    differences = reports[version]["differences"]
    assert len(differences) == (10 if version == "transformers4" else 7)
    assert {name: value for name, value in differences.items() if not value <= 1e-5} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_encoder_saved_without_the_package_contains_its_code(reports, hub, version):
    saved = hub.parent / version
    assert json.loads((saved / "config.json").read_text())["auto_map"] == VISION_AUTO_MAP
    assert {"configuration_hawaii.py", "vision_hawaii.py"} <= {path.name for path in saved.glob("*.py")}


def test_the_card_describes_an_encoder(hub):
    data = ModelCard.load(hub / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    card = (hub / "README.md").read_text()
    assert "distilled from frozen teachers (convnext, vit), on images only" in card
    assert "| Encoder | 2 layers of width 32, 16 px in patches of 4 px |" in card
    assert "| Adapters per layer | 2 teacher-specific and 3 general, rank 4 |" in card
    assert "Language model |" not in card and "Ask a question" not in card and "vllm serve" not in card
    assert data.license == "llama2" and "Its features are limited to what the teachers extract" in card


@pytest.mark.parametrize(("version", "has_class_token"), list(zip(VERSIONS, (True, False))))
def test_the_code_of_the_card_runs_without_the_package(tmp_path, version, has_class_token):
    save_encoder_folder(tmp_path / "hub", has_class_token=has_class_token)
    (code,) = re.findall(r"^```python\n(.*?)^```", (tmp_path / "hub" / "README.md").read_text(), re.MULTILINE | re.S)
    make_image(0, 30, 20).save(tmp_path / "hub" / "image.png")
    code = "import sys\nsys.modules['hawaii'] = None\n" + code
    assert run(PYTHON[version], code, tmp_path / "hub") == "torch.Size([1, 4, 4, 32])"


def test_the_card_of_an_encoder_without_adapters_does_not_mention_routers(tmp_path):
    save_encoder_folder(tmp_path / "hub", num_teacher_adapters=0, num_general_adapters=0)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "routers" not in card and "| 0 teacher-specific and 0 general," in card


def test_scores_are_in_the_card(hub):
    add_results(hub, [{"task": "imagenet", "metric": "accuracy", "value": 0.5, "num_questions": 10}])
    (result,) = ModelCard.load(hub / "README.md").data.eval_results
    assert (result.task_type, result.dataset_name, result.metric_value) == (
        "image-feature-extraction",
        "imagenet",
        0.5,
    )
    write_card(hub)


def test_an_encoder_without_its_image_processor_is_not_published(tmp_path):
    make_model().model.vision_tower.save_pretrained(tmp_path / "stage")
    write_manifest(tmp_path / "stage", {})
    with pytest.raises(UserError, match=r"stage is not a saved HAWAII: it has no preprocessor_config\.json"):
        export(tmp_path / "stage", tmp_path / "hub", FACTS)
    make_encoder_processor().save_pretrained(tmp_path / "stage")
    write_manifest(tmp_path / "stage", {})
    export(tmp_path / "stage", tmp_path / "hub", FACTS)
    assert (tmp_path / "hub" / "README.md").is_file()
