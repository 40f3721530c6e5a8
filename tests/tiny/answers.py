"""Evaluation questions, and a tiny model with known answers."""

import json
from pathlib import Path

import torch

from hawaii import HawaiiForConditionalGeneration
from hawaii.training.data.questions import QuestionDataset

from .models import make_model, make_processor, make_tokenizer
from .training import make_image


QUESTIONS = ("what color is the shape ?", "is there a circle in the image ?", "what is a square ?")


def make_question(number: int, answer: str, image: bool = True, **fields) -> dict:
    """Makes a record with one question."""
    question = QUESTIONS[number % 3]
    record = {"id": f"q{number}", **fields}
    if image:
        record["image"] = f"q{number}.png"
    turns = [("human", f"<image>\n{question}" if image else question), ("gpt", answer)]
    return {**record, "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def save_questions(folder: Path, records: list[dict]) -> Path:
    """Writes `questions.json` and the images of the records in `images`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        if "image" in record:
            make_image(100 + number, 16, 16 + number % 3).save(folder / "images" / record["image"])
    path = folder / "questions.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def make_questions(folder: Path, records: list[dict], chat_template: str = "vicuna_v1") -> QuestionDataset:
    path = save_questions(folder, records)
    return QuestionDataset(str(path), str(folder / "images"), make_processor(chat_template=chat_template))


@torch.no_grad()
def make_parrot(word: str, **kwargs) -> HawaiiForConditionalGeneration:
    """
    Makes a model that answers every question of `vicuna_v1` with this word. Its layers are identities, so the next
    token depends only on the last one. Arguments as for [`make_config`].
    """
    model = make_model(**kwargs)
    for name, parameter in model.model.language_model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.zero_()
    model.lm_head.weight.zero_()
    colon, known, end = make_tokenizer().convert_tokens_to_ids([":", word, "</s>"])
    embeddings = model.get_input_embeddings().weight
    model.lm_head.weight[known] = embeddings[colon]  # a prompt ends with a colon
    model.lm_head.weight[end] = embeddings[known]
    return model
