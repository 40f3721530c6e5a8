"""A student works with any language model, keeps its scores, and is published without dependencies."""

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.modeling_hawaii.conversion.vocabulary import VOCABULARY_MULTIPLE
from hawaii.tests.hub_cards.test_loading import TRANSFORMERS_4
from hawaii.tests.tiny.language_models import FAMILIES, Family, make_tokenizer, save_language_model, text_config
from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.training import RAGGED, TEACHER_GRIDS, gradients, make_batch, make_messages, make_options
from hawaii.training.data.conversations import chat_messages, tokenize_conversation
from hawaii.training.recipes.arguments import DataArguments, ModelArguments
from hawaii.training.recipes.objectives import HawaiiObjective, StudentWithObjective
from hawaii.training.students.student import build_student


CASES = [(name, is_tied) for name, family in FAMILIES.items() for is_tied in family.can_be_tied]
QUESTION = [{"type": "image"}, {"type": "text", "text": "what color is the shape ?"}]
TURNS = make_messages("<image>\nwhat color is the shape ?", "it is red", "is there a circle ?", "yes , there is")
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


@dataclass
class Built:
    """A student that starts from a language model's folder."""

    family: Family
    is_tied: bool
    folder: Path
    student: HawaiiForConditionalGeneration
    processor: HawaiiProcessor


def build(folder=None, **kwargs):
    data_args = DataArguments(data_path="x", image_folder="x")
    fields = {"vision_config": VISION, "language_model": None if folder is None else str(folder), **kwargs}
    return build_student(ModelArguments(**fields), data_args, num_teachers=2)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def built(request, tmp_path_factory):
    name, is_tied = request.param
    torch.manual_seed(0)
    folder = save_language_model(tmp_path_factory.mktemp(name), FAMILIES[name], tie_word_embeddings=is_tied)
    student, processor = build(folder)
    with torch.no_grad():
        for parameter in student.model.multi_modal_projector.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return Built(FAMILIES[name], is_tied, folder, student.eval(), processor)


def save(built, folder):
    built.student.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    return folder


def make_inputs(processor, *questions):
    """Makes a batch of one question about an image of one colour each."""
    images = [Image.new("RGB", (16, 20), color) for color in ("red", "blue")[: len(questions)]]
    messages = [[{"role": "user", "content": [{"type": "image"}, *question]}] for question in questions]
    text = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    return processor(images=images, text=text, padding=True, return_tensors="pt")


SHORT, LONG = [{"type": "text", "text": "a ?"}], [{"type": "text", "text": "is there a circle in the image ?"}]


def assert_tied(student, is_tied):
    head, embeddings = student.lm_head.weight, student.get_input_embeddings().weight
    assert (head is embeddings) == (head.data_ptr() == embeddings.data_ptr()) == is_tied
    assert student.config.tie_word_embeddings == is_tied


@torch.no_grad()
def test_scores_of_text_equal_the_language_models(built):
    language_model = AutoModelForCausalLM.from_pretrained(built.folder).eval()
    ids = torch.tensor([make_tokenizer(built.family)("what color is it ?")["input_ids"]])
    expected = language_model(ids).logits
    torch.testing.assert_close(built.student(ids).logits[..., : expected.shape[-1]], expected)


def test_new_embeddings_are_the_mean_of_the_old_and_their_number_is_rounded_up(built):
    student, old = built.student, len(make_tokenizer(built.family))
    assert built.processor.image_token_id == old
    rows = student.config.text_config.vocab_size
    assert rows == student.get_input_embeddings().num_embeddings == student.lm_head.out_features
    assert rows % VOCABULARY_MULTIPLE == 0 and old < rows <= old + VOCABULARY_MULTIPLE
    for parameter in (student.get_input_embeddings().weight, *student.lm_head.parameters()):
        assert len(parameter) == rows
        mean = parameter[:old].mean(dim=0)
        torch.testing.assert_close(parameter[old:], mean.expand_as(parameter[old:]))


def test_a_tied_head_stays_tied(built, tmp_path):
    assert_tied(built.student, built.is_tied)
    built.student.save_pretrained(tmp_path)
    assert_tied(HawaiiForConditionalGeneration.from_pretrained(tmp_path), built.is_tied)


def test_every_parameter_gets_a_gradient(built, tmp_path, teachers):
    student = built.student
    objective = HawaiiObjective(make_options(), student, TEACHER_GRIDS)
    module = StudentWithObjective(student.train(), objective)
    batch = make_batch(tmp_path, RAGGED, built.processor)
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    loss, _ = module(features, batch)
    found = gradients(module, loss)
    # New adapters add nothing because B is zero, so A has no gradient yet.
    without = {name for name, gradient in found.items() if gradient is None or not gradient.any()}
    assert {name for name in without if "adapters.down" not in name} == set()
    assert all(gradient.isfinite().all() for gradient in found.values() if gradient is not None)
    student.zero_grad(set_to_none=True)
    student.eval()


def test_a_cache_does_not_change_answers(built):
    inputs = make_inputs(built.processor, LONG)
    answers = [built.student.generate(**inputs, use_cache=use_cache, **GREEDY) for use_cache in (True, False)]
    assert answers[0].tolist() == answers[1].tolist()


def test_a_padded_batch_gets_the_answers_of_each_question_alone(built):
    inputs = make_inputs(built.processor, LONG, SHORT)
    assert not inputs["attention_mask"].all()
    together = built.student.generate(**inputs, **GREEDY)[:, -8:]
    alone = built.student.generate(**make_inputs(built.processor, LONG), **GREEDY)[:, -8:]
    assert together[0].tolist() == alone[0].tolist()
    short = {
        name: inputs[name][1:, inputs["attention_mask"][1].argmax() :] for name in ("input_ids", "attention_mask")
    }
    alone = built.student.generate(**short, pixel_values=inputs["pixel_values"][1:], **GREEDY)[:, -8:]
    assert together[1].tolist() == alone[0].tolist()


def test_generation_stops_where_an_answer_ends(built):
    end = built.processor.tokenizer.convert_tokens_to_ids(built.family.end)
    ids = built.student.generation_config.eos_token_id
    assert end in (ids if isinstance(ids, list) else [ids])
    inputs = make_inputs(built.processor, LONG)
    answer = built.student.generate(**inputs, do_sample=False, max_new_tokens=8, sequence_bias=[[[end], 1e4]])
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 1


@torch.no_grad()
def test_a_published_folder_gives_the_same_scores_and_tokens(built, tmp_path):
    save(built, tmp_path)
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = HawaiiProcessor.from_pretrained(tmp_path)
    inputs = make_inputs(processor, LONG)
    torch.testing.assert_close(student(**inputs).logits, built.student(**inputs).logits)
    assert student.generation_config.eos_token_id == built.student.generation_config.eos_token_id
    learned = tokenize_conversation(TURNS, built.processor).input_ids
    messages = chat_messages(TURNS)
    messages[0]["content"][0] = {"type": "image", "image": Image.new("RGB", (16, 16))}
    assert processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"] == [learned]
    prompt = make_inputs(processor, QUESTION[1:])["input_ids"][0].tolist()
    assert prompt == learned[: len(prompt)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_language_model_with_random_weights_is_saved_and_loaded(name, tmp_path):
    family = FAMILIES[name]
    make_tokenizer(family).save_pretrained(tmp_path / "tokenizer")
    student, processor = build(text_config=text_config(family), tokenizer=str(tmp_path / "tokenizer"))
    assert student.config.text_config.model_type == family.model_type
    assert student.config.text_config.vocab_size == len(processor.tokenizer)
    student.save_pretrained(tmp_path / "student")
    loaded = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student").eval()
    inputs = make_inputs(processor, LONG)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, student.eval()(**inputs).logits)


def test_unused_embeddings_are_used_before_new_ones_are_added(tmp_path):
    family = FAMILIES["qwen2"]
    num_tokens = len(make_tokenizer(family))
    save_language_model(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(num_tokens + 7)
    model.save_pretrained(tmp_path)
    student, processor = build(tmp_path)
    assert processor.image_token_id == num_tokens
    assert student.config.text_config.vocab_size == num_tokens + 7
    torch.testing.assert_close(student.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_end_token_gets_a_gradient_even_if_it_is_the_padding_token(tmp_path, is_tied):
    family = replace(FAMILIES["qwen2"], pad_token="<|endoftext|>")
    end = make_tokenizer(family).eos_token_id
    save_language_model(tmp_path / "text", family, tie_word_embeddings=is_tied)
    student, _ = build(tmp_path / "text")
    student.save_pretrained(tmp_path / "student")
    for model in (student, HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student")):
        embeddings = model.get_input_embeddings()
        embeddings(torch.tensor([end])).sum().backward()
        assert embeddings.weight.grad[end].all()


def test_the_language_models_special_tokens_stay_special(tmp_path):
    _, processor = build(save_language_model(tmp_path, FAMILIES["qwen2"]))
    tokenizer = processor.tokenizer
    assert {"<|im_start|>", "<|im_end|>", "<image>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer("red<|im_end|>")["input_ids"], skip_special_tokens=True) == "red"


def test_a_model_that_takes_images_is_refused(tmp_path):
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    make_tokenizer(FAMILIES["gemma3"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a gemma3, a model that takes images or sound already"):
        build(tmp_path)


# For each folder: the largest difference from its reference logits, and whether greedy answers and prompts agree.
COMPARE = """
import json, sys
sys.modules["hawaii"] = None
import torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
chat = json.loads(Path(sys.argv[2]).read_text())
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    expected = load_file(folder / "reference.st")
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    both = processor.apply_chat_template([chat, chat], add_generation_prompt=True, tokenize=True, return_dict=True)
    (prompt,) = expected["input_ids"].tolist()
    same_prompt = both["input_ids"] == [*inputs["input_ids"].tolist(), prompt] == [prompt] * 2
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"], pixel_values=expected["pixel_values"]).logits
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=8, min_new_tokens=8)[0, -8:]
    found[folder.name] = {
        "difference": float((logits - expected["logits"]).abs().max()),
        "pixels": float((inputs["pixel_values"] - expected["pixel_values"]).abs().max()),
        "prompt": same_prompt,
        "answer": answer.tolist() == expected["answer"].tolist(),
        "ends": model.generation_config.eos_token_id,
    }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_published_folders_work_in_transformers_4_too(tmp_path):
    """
    transformers 4.57 has all of these families. Messages may be strings, which transformers' own processors do not
    accept.
    """
    folders, ends = tmp_path / "folders", {}
    Image.new("RGB", (16, 20), "red").save(tmp_path / "red.png")
    images = [{"type": "image", "path": str(tmp_path / "red.png")}] * 2
    chat = [
        {"role": "user", "content": [*images, *SHORT]},
        {"role": "assistant", "content": "it is red"},
        {"role": "user", "content": "is there a circle ?"},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    for name, family in FAMILIES.items():
        for is_tied in family.can_be_tied:
            case = f"{name}-{is_tied}"
            torch.manual_seed(0)
            save_language_model(tmp_path / case, family, tie_word_embeddings=is_tied)
            student, processor = build(tmp_path / case)
            save(Built(family, is_tied, tmp_path / case, student.eval(), processor), folders / case)
            inputs = processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            with torch.no_grad():
                reference = {
                    "input_ids": inputs["input_ids"],
                    "pixel_values": inputs["pixel_values"],
                    "logits": student(**inputs).logits,
                    "answer": student.generate(**inputs, **GREEDY)[0, -8:].clone(),
                }
            save_file(reference, folders / case / "reference.st")
            ends[case] = student.generation_config.eos_token_id
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [TRANSFORMERS_4, "-c", COMPARE, folders, tmp_path / "chat.json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert {case: result.pop("ends") for case, result in found.items()} == ends
    assert {case for case, result in found.items() if result["difference"] > 1e-4 or result["pixels"] > 1e-5} == set()
    assert {case for case, result in found.items() if not (result["prompt"] and result["answer"])} == set()
