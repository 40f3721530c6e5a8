"""One question about one image."""

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii.evaluation.chat import chat


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 10), "red").save(path)
    return path


def test_only_the_greedy_answer_is_printed(hub_folder, image, capsys):
    chat(hub_folder, image, "what color is the shape ?", max_new_tokens=5)
    processor = AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(hub_folder, trust_remote_code=True)
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": "what color is the shape ?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert capsys.readouterr().out == processor.decode(tokens, skip_special_tokens=True).strip() + "\n"


def test_a_missing_image_is_named(hub_folder):
    with pytest.raises(ValueError, match="There is no image nowhere.png"):
        chat(hub_folder, "nowhere.png", "what color is the shape ?")


def test_a_missing_checkpoint_is_named(image, tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        chat(tmp_path, image, "what color is the shape ?")
