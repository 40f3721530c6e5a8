"""Tests that the program reads words from features and from answers, for models of squares and of tiles."""

import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from hawaii.tests.tiny.models import make_model, make_processor, save_tiled_folder


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reading.py"


def test_a_word_that_is_a_color_is_in_the_features_of_both_models(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    for name, count in (("finetune", 64), ("validation", 8)):
        records = []
        for number in range(count):
            color, image = ("red", "blue")[number % 2], f"{name}-{number}.png"
            Image.new("RGB", (32, 32), color).save(tmp_path / "data/images" / image)
            question, answer = (
                {"from": "human", "value": "<image>\nwhat word is written?"},
                {"from": "gpt", "value": color},
            )
            records.append({"id": image, "image": image, "conversations": [question, answer]})
        (tmp_path / f"data/{name}.json").write_text(json.dumps(records))
    make_model().save_pretrained(tmp_path / "squares")
    make_processor().save_pretrained(tmp_path / "squares")
    save_tiled_folder(tmp_path / "tiles")
    folders = [tmp_path / "squares", tmp_path / "tiles"]
    finished = subprocess.run([sys.executable, SCRIPT, tmp_path / "data", *folders], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "64 training pictures with a word, 8 others" in finished.stdout
    for folder in folders:
        pattern = rf"{folder}: 100\.0% of the others are in its features; it answers \d+\.\d% of them and \d+\.\d%"
        assert re.search(pattern, finished.stdout), finished.stdout
