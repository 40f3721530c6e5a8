"""The two folders that the benchmark compares give the same answers, and it prints the ratio of their seconds."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.benchmarks import serving


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


def run(monkeypatch, tmp_path, answers):
    (tmp_path / "stub.py").write_text(STUB.replace("ANSWERS", answers))
    monkeypatch.setattr(serving, "WORKER", Path(tmp_path / "stub.py"))
    monkeypatch.setattr(sys, "argv", ["serving.py", "--size", "tiny", "--requests", "4", "--rounds", "2"])
    serving.main()


def test_the_seconds_of_a_request_and_their_ratio_are_printed(monkeypatch, tmp_path, capsys):
    run(monkeypatch, tmp_path, "[[1, 2]]")
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "Least CPU seconds of a request: 3.0000 of HAWAII, 2.5000 of LLaVA",
        "HAWAII / LLaVA: 1.200",
        "HAWAII / LLaVA, medians: 1.200 (of 2 pairs 1.200 to 1.200)",
    ]


def test_different_answers_are_an_error(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="The answers differ"):
        run(monkeypatch, tmp_path, "[sys.argv[1][-5:]]")
