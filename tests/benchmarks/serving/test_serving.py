"""The two folders that the benchmark compares give the same answers, and it prints the ratio of their seconds."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.benchmarks.serving import serving


# Answers like `serve_requests.py`: the longer the folder's name, the more seconds.
STUB = """
import json, sys
from pathlib import Path
print(json.dumps({"answers": ANSWERS}), flush=True)
for _ in sys.stdin:
    print(json.dumps({"seconds": 2.0 * len(Path(sys.argv[1]).name)}), flush=True)
"""


@pytest.mark.parametrize("feature_layer", [-2, -1])
def test_both_folders_give_the_same_answers(tmp_path, feature_layer):
    llava, hawaii = tmp_path / "llava", tmp_path / "hawaii"
    serving.save_llava(llava, "tiny", feature_layer)
    serving.save_hawaii(hawaii, llava)
    theirs = AutoModelForImageTextToText.from_pretrained(llava).eval()
    ours = HawaiiForConditionalGeneration.from_pretrained(hawaii).eval()
    assert ours.config.vision_config.num_hidden_layers == 2 and ours.config.vision_config.num_teacher_adapters == 3
    assert theirs.config.vision_config.num_hidden_layers == 1 - feature_layer
    arguments = {"images": Image.effect_noise((40, 40), 60).convert("RGB"), "text": "USER: <image>\nred ? ASSISTANT:"}
    inputs, expected = (
        processor(**arguments, return_tensors="pt")
        for processor in (HawaiiProcessor.from_pretrained(hawaii), AutoProcessor.from_pretrained(llava))
    )
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**expected).logits, rtol=1e-4, atol=1e-3)


@pytest.fixture
def answer(monkeypatch, tmp_path):
    """Lets processes without vLLM answer."""

    def answer(answers):
        (tmp_path / "stub.py").write_text(STUB.replace("ANSWERS", answers))
        monkeypatch.setattr(serving, "WORKER", tmp_path / "stub.py")

    return answer


def test_the_seconds_of_a_request_are_compared(answer, run_command):
    answer("[[1, 2]]")
    (found,) = run_command(serving, size="tiny", requests=4, rounds=2)
    assert (found["first"], found["second"], found["ratio"]) == ("HAWAII", "LLaVA", "1.200")
    assert found["costs"] == "3,000 / 2,500 ms, medians of 2 rounds whose ratios are 1.200 to 1.200"


def test_different_answers_are_an_error(answer, run_command):
    answer("[sys.argv[1][-5:]]")
    with pytest.raises(SystemExit, match="The answers differ"):
        run_command(serving, size="tiny", requests=4, rounds=2)
