"""
A published folder is self-contained: it loads in a new process that cannot import the package, in both supported
versions of transformers, gives the same numbers, and saving it again gives another such folder.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.configuration.hub_hawaii import AUTO_MAP, PROCESSOR_AUTO_MAP, VISION_AUTO_MAP, read_code
from hawaii.tests.folders import TRANSFORMERS_VERSIONS
from hawaii.tests.tiny.models import make_model


SCRIPT = Path(__file__).with_name("load_published.py")
TRANSFORMERS_4 = TRANSFORMERS_VERSIONS["transformers4"]
VERSIONS = ["transformers4", "transformers5"]


def make_reference(hub_folder, folder):
    """Writes an image, and the outputs of this process for it and a question."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "image.png")
    model = HawaiiForConditionalGeneration.from_pretrained(hub_folder).eval()
    processor = HawaiiProcessor.from_pretrained(hub_folder)
    content = [{"type": "image"}, {"type": "text", "text": "what color is the shape ?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.open(folder / "image.png"), text=prompt, return_tensors="pt")
    adapters = torch.tensor([1])
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        reference = {
            **inputs,
            "adapters": adapters,
            "logits": model(**inputs).logits,
            "last_hidden_state": model.model(**inputs).last_hidden_state,
            "vision_features": model.model.vision_tower(inputs["pixel_values"], adapters=adapters).last_hidden_state,
        }
    save_file(reference, folder / "reference.safetensors")
    return {"tokens": answer.tolist(), "text": processor.decode(answer, skip_special_tokens=True)}


def load_elsewhere(python, base, output, *other):
    """Runs the script in a process with a separate home, module path and working directory."""
    output.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(output / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    finished = subprocess.run(
        [python, SCRIPT, base / "copied", base / "vision", base, output, *other],
        cwd=output,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reports(hub_folder, tmp_path_factory):
    """The report of each version of transformers, and the expected answer."""
    if not TRANSFORMERS_4.exists():
        pytest.fail(
            f"There is no {TRANSFORMERS_4}. Published folders must load in transformers 4 as well: `make test` makes "
            "an environment that has it; or name another one's Python in HAWAII_TRANSFORMERS4_PYTHON."
        )
    base = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(hub_folder, base / "copied")
    model = HawaiiForConditionalGeneration.from_pretrained(hub_folder)
    model.model.vision_tower.save_pretrained(base / "vision")
    answer = make_reference(hub_folder, base)
    return {
        "folder": base,
        "answer": answer,
        "transformers5": load_elsewhere(sys.executable, base, base / "transformers5"),
        "transformers4": load_elsewhere(TRANSFORMERS_4, base, base / "transformers4", base / "transformers5"),
    }


def test_the_folder_contains_all_files_that_a_user_needs(hub_folder):
    names = {path.name for path in hub_folder.iterdir()}
    assert names == set(read_code()) | {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_files_name_every_auto_class(hub_folder):
    assert json.loads((hub_folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert json.loads((hub_folder / "processor_config.json").read_text())["auto_map"] == PROCESSOR_AUTO_MAP


def test_the_tensor_names_are_those_of_a_model_built_from_the_configuration(hub_folder):
    built = HawaiiForConditionalGeneration(HawaiiConfig.from_pretrained(hub_folder)).state_dict()
    saved = load_file(hub_folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in saved.items()} == {name: t.shape for name, t in built.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_process_had_its_version_and_not_the_package(reports, version):
    assert reports[version]["version"].startswith(version[-1] + ".")
    assert reports[version]["package_modules"] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_auto_class_finds_its_class(reports, version):
    expected = {
        "AutoConfig": "HawaiiConfig",
        "AutoModel": "HawaiiModel",
        "AutoModelForImageTextToText": "HawaiiForConditionalGeneration",
        "AutoProcessor": "HawaiiProcessor",
        "vision AutoModel": "HawaiiVisionModel",
    }
    name = "AutoModelForVision2Seq" if version == "transformers4" else "AutoModelForMultimodalLM"
    expected[name] = "HawaiiForConditionalGeneration"
    assert reports[version]["classes"] == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_inputs_logits_and_features_equal_the_publishers_before_and_after_saving_again(reports, version):
    differences = reports[version]["differences"]
    assert len(differences) == (16 if version == "transformers4" else 13)
    assert {name: value for name, value in differences.items() if not value <= 1e-5} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answers_equal_the_publishers(reports, version):
    answers = reports[version]["answers"]
    assert answers["pipeline"].strip() == reports["answer"]["text"]
    for decoding in ("greedy", "static_cache", "prompt_lookup", "no_cache", "assisted"):
        assert answers[decoding] == reports["answer"]["tokens"], decoding
    assert answers["beams"] == reports["transformers5"]["answers"]["beams"]


def test_a_folder_that_transformers_4_saved_loads_in_5(reports):
    reference = load_file(reports["folder"] / "reference.safetensors")
    model = HawaiiForConditionalGeneration.from_pretrained(reports["folder"] / "transformers4" / "complete").eval()
    with torch.no_grad():
        logits = model(**{name: reference[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits
    torch.testing.assert_close(logits, reference["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_saved_without_the_package_names_every_auto_class_and_contains_the_code(reports, version):
    complete, vision = dict.fromkeys(("complete", "base", "part"), AUTO_MAP), ("vision", "vision part")
    for name, auto_map in {**complete, **dict.fromkeys(vision, VISION_AUTO_MAP)}.items():
        folder = reports["folder"] / version / name
        assert json.loads((folder / "config.json").read_text())["auto_map"] == auto_map
        code = {path.name for path in folder.glob("*.py")}
        assert code == set(read_code())


LANGUAGE_MODELS = {
    "llama, another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "llama 3's scaling": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "qwen2, tied": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "gemma3, two types of layers": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5},
        },
    },
    "phi, partially rotary": {
        "model_type": "phi3",
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
    },
    "gpt2": {"model_type": "gpt2"},
    "mixtral, a mixture of experts": {"model_type": "mixtral", "num_local_experts": 2},
}
MODELS = {name: {"text": text} for name, text in LANGUAGE_MODELS.items()} | {
    "an encoder like SigLIP's": {
        "vision": {"has_class_token": False, "has_pre_layer_norm": False, "has_patch_bias": True, "image_size": 18}
    },
    "adapters and head with biases": {"vision": {"lora_bias": True}, "head_bias": True},
}
# Prints the largest difference from the logits saved in each folder. In float64, because the number of threads changes
# the order of summation; the default experts implementation of transformers 5 does not support float64.
COMPARE = """
import json, sys
sys.modules["hawaii"] = None
import torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval().double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    reference = load_file(folder / "reference.st")
    with torch.no_grad():
        logits = model(reference["input_ids"], reference["pixel_values"]).logits
    found[folder.name] = float((logits - reference["logits"]).abs().max())
print(json.dumps(found))
"""


@pytest.mark.parametrize("python", [TRANSFORMERS_4, Path(sys.executable)], ids=VERSIONS)
def test_logits_are_the_same_in_either_version_for_all_parts(tmp_path, python):
    folders = tmp_path / "folders"
    for name, parts in MODELS.items():
        model = make_model(**parts)
        model.save_pretrained(folders / name)
        model.double().set_experts_implementation("eager")
        image_size = model.config.vision_config.image_size
        reference = {
            "input_ids": torch.tensor([[2, *[4] * 16, *range(5, 25)]]),
            "pixel_values": torch.randn(1, 3, image_size, image_size, dtype=torch.float64),
        }
        with torch.no_grad():
            reference["logits"] = model(**reference).logits
        save_file(reference, folders / name / "reference.st")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [python, "-c", COMPARE, folders], env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found.keys() == MODELS.keys()
    assert {name: difference for name, difference in found.items() if difference > 1e-5} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_of_the_second_turn_is_seen_with_the_cache_of_the_first(reports, version):
    second_turn = reports[version]["second_turn"]
    assert second_turn["difference"] <= 1e-4 < 1e-2 < second_turn["difference_of_another_image"]
