"""Tests of the model class for lmms-eval with a tiny checkpoint."""

import base64
import subprocess
import sys

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.protocol import ChatMessages
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii.evaluation.lmms.model import Hawaii, StopStrings, generation_arguments
from hawaii.evaluation.lmms.plugin import hawaii
from hawaii.files.user_error import UserError
from hawaii.tests.evaluation.answering_models import save_llava
from hawaii.tests.tiny.models import save_tiled_folder


RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))


def images_and_text(document):
    """Returns the chat messages of a document: its images, then its text."""
    content = [{"type": "image", "url": image} for image in document["images"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["text"]}]}]


DOCUMENTS = [
    {"images": [RED], "text": "what color is the shape ?"},
    {"images": [], "text": "is there a circle ?"},
    {"images": [BLUE], "text": "yes"},
    {"images": [RED, BLUE], "text": "what is in the image ? is there no square and no circle ?"},
    {"images": [BLUE], "text": "what color is the shape ?"},
]
# A model with random weights may stop at once, and empty answers would all be equal.
ARGUMENTS = {"max_new_tokens": 6, "min_new_tokens": 6, "until": ["\n\n"], "do_sample": False}


def load(folder, batch_size=1, documents=DOCUMENTS):
    model = Hawaii(str(folder), batch_size=batch_size, device="cpu")
    model.task_dict["colors"] = {"test": documents}
    return model


def instance(request_type, arguments, doc_id):
    metadata = {"task": "colors", "doc_id": doc_id, "repeats": 1}
    return Instance(
        request_type=request_type, arguments=(*arguments, doc_id, "colors", "test"), idx=0, metadata=metadata
    )


def chat_requests(documents=DOCUMENTS, arguments=ARGUMENTS):
    return [
        instance("generate_until", (document["text"], images_and_text, dict(arguments)), doc_id)
        for doc_id, document in enumerate(documents)
    ]


@pytest.fixture(scope="module")
def single(hub_folder):
    return load(hub_folder)


def test_the_plugin_names_a_class_that_lmms_eval_accepts():
    registry = ModelRegistryV2()
    registry.register_manifest(hawaii())
    assert registry.get_model_class("hawaii") is Hawaii


def test_the_plugin_imports_no_torch():
    code = "import sys, hawaii.evaluation.lmms.plugin as plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_batches_of_three_answer_as_batches_of_one(hub_folder, single):
    answers = single.generate_until(chat_requests())
    assert load(hub_folder, batch_size=3).generate_until(chat_requests()) == answers
    assert len(answers) == len(DOCUMENTS) and len(set(answers)) > 1


def test_answers_come_in_the_order_of_the_requests(single):
    requests = chat_requests()
    assert single.generate_until(requests[::-1]) == single.generate_until(requests)[::-1]


def test_images_and_texts_keep_their_order(single, monkeypatch):
    seen = []
    monkeypatch.setattr(single, "_generate", lambda conversations, _: seen.extend(conversations) or [""])

    def interleaved(document):
        kinds = [{"type": "text", "text": "red"}, {"type": "image", "url": RED}, {"type": "text", "text": "blue"}]
        return [{"role": "user", "content": [*kinds, {"type": "image", "url": BLUE}]}]

    single.generate_until([instance("generate_until", ("", interleaved, {}), 0)])
    ((text, images),) = seen
    assert [word for word in text.split() if word in ("red<image>", "blue<image>")] == ["red<image>", "blue<image>"]
    assert images == [RED, BLUE]


def test_swapping_two_images_changes_the_input(single):
    inputs = [
        single._inputs(["<image> and <image>"], [images])["pixel_values"] for images in ([RED, BLUE], [BLUE, RED])
    ]
    torch.testing.assert_close(inputs[0], inputs[1].flip(0))
    assert not torch.equal(inputs[0], inputs[1])


def test_each_image_is_encoded_once(single):
    seen = []
    tower = single.model.model.vision_tower
    hook = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    single.generate_until(chat_requests())
    hook.remove()
    assert sum(seen) == sum(len(document["images"]) for document in DOCUMENTS)


def test_an_answer_ends_before_a_stop_string(single, monkeypatch):
    def generate(input_ids, **kwargs):
        answer = single.tokenizer("red circle blue circle", return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, answer.expand(len(input_ids), -1)], dim=-1)

    monkeypatch.setattr(single.model, "generate", generate)
    assert single.generate_until(chat_requests(DOCUMENTS[:1])) == ["red circle blue circle"]
    assert single.generate_until(chat_requests(DOCUMENTS[:1], {"until": ["blue", "square"]})) == ["red circle"]


def test_each_row_stops_at_its_own_stop_string(single):
    rows = ["is there red circle", "is there no circle", "red there blue circle"]
    input_ids = single.tokenizer(rows, return_tensors="pt")["input_ids"]
    is_done = StopStrings(single.tokenizer, ["red c", "blue"], prompt_length=2)(input_ids, scores=None)
    assert is_done.tolist() == [True, False, True]


def test_a_stop_string_ends_the_generation(single):
    steps = []
    hook = single.model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    (answer,) = single.generate_until(chat_requests(DOCUMENTS[:1]))
    single.generate_until(chat_requests(DOCUMENTS[:1], {**ARGUMENTS, "until": [answer.split()[0]]}))
    hook.remove()
    assert len(steps) == ARGUMENTS["max_new_tokens"] + 1


def test_requests_with_different_arguments_are_not_batched_together(hub_folder):
    requests = chat_requests()
    for request in requests[::2]:
        request.arguments[2].update(max_new_tokens=1, min_new_tokens=1)
    model = load(hub_folder, batch_size=8)
    short, long = model.generate_until(requests)[::2], model.generate_until(chat_requests())[::2]
    assert short == [answer.split()[0] for answer in long]


def test_greedy_unless_the_task_asks_for_sampling():
    assert generation_arguments({}, 7)[0]["do_sample"] is False
    assert generation_arguments({"temperature": 0.0, "do_sample": True}, 7)[0]["do_sample"] is False
    assert generation_arguments({"temperature": 0.5}, 7)[0]["do_sample"] is True
    assert generation_arguments({"temperature": 0.5, "do_sample": False}, 7)[0]["temperature"] is None


def test_the_models_answer_length_is_the_default():
    assert generation_arguments({}, 7)[0]["max_new_tokens"] == 7
    assert generation_arguments({"max_new_tokens": 3}, 7)[0]["max_new_tokens"] == 3


def test_batches_that_do_not_fit_into_memory_are_halved(hub_folder, single, monkeypatch):
    expected = single.generate_until(chat_requests())
    model, sizes, whole = load(hub_folder, batch_size=5), [], Hawaii._generate_batch

    def generate_batch(self, conversations, task_arguments):
        sizes.append(len(conversations))
        if len(conversations) > 2:
            raise torch.OutOfMemoryError("too large")
        return whole(self, conversations, task_arguments)

    monkeypatch.setattr(Hawaii, "_generate_batch", generate_batch)
    with pytest.warns(UserWarning, match="5 questions do not fit into memory at once; continuing with half"):
        assert model.generate_until(chat_requests()) == expected
    assert sizes == [5, 2, 1, 2]
    sizes.clear()
    model.generate_until(chat_requests())  # it remembers the size that fits
    assert max(sizes) == 2


def test_a_single_question_that_does_not_fit_into_memory_is_an_error(single, monkeypatch):
    def generate_batch(*_):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(single, "_generate_batch", generate_batch)
    with pytest.raises(torch.OutOfMemoryError):
        single.generate_until(chat_requests())


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    """A LLaVA of transformers with random weights, in the format of the llava-hf repositories."""
    return save_llava(tmp_path_factory.mktemp("llava") / "llava", num_steps=0)


def answer_without_lmms_eval(folder, documents):
    """The answers of the processor and `generate`, one by one."""
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    answers = []
    for document in documents:
        messages = ChatMessages(messages=images_and_text(document)).to_hf_messages()
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=document["images"] or None, text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        answers.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


def test_llava_of_transformers_answers_as_without_lmms_eval(llava_folder):
    expected = answer_without_lmms_eval(llava_folder, DOCUMENTS)
    assert len(set(expected)) > 1
    for batch_size in (1, 3):
        assert load(llava_folder, batch_size).generate_until(chat_requests()) == expected


@pytest.fixture(scope="module")
def tiled_folder(tmp_path_factory):
    """A published folder of a model with tiles."""
    torch.manual_seed(0)
    return save_tiled_folder(tmp_path_factory.mktemp("published") / "tiles")


TINY, WIDE, HIGH, HUGE = (
    Image.effect_noise(size, 80).convert("RGB") for size in ((1, 1), (150, 9), (8, 70), (900, 700))
)
DOCUMENTS_OF_TILES = [
    {"images": [WIDE], "text": "what color is the shape ?"},
    {"images": [], "text": "is there a circle ?"},
    {"images": [HIGH, HUGE, TINY], "text": "what is in the image ? is there no square and no circle ?"},
    {"images": [TINY], "text": "yes"},
    {"images": [HUGE], "text": "what color is the shape ?"},
    {"images": [WIDE, WIDE], "text": "is there a circle in the image ?"},
]


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_a_model_with_tiles_answers_as_without_lmms_eval(tiled_folder, batch_size):
    expected = answer_without_lmms_eval(tiled_folder, DOCUMENTS_OF_TILES)
    model = load(tiled_folder, batch_size, DOCUMENTS_OF_TILES)
    assert model.generate_until(chat_requests(DOCUMENTS_OF_TILES)) == expected
    assert len(set(expected)) == len(expected)


def test_all_tiles_of_a_batch_are_encoded_in_one_pass(tiled_folder):
    model, sizes = load(tiled_folder, 6, DOCUMENTS_OF_TILES), []
    hook = model.model.model.vision_tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    model.generate_until(chat_requests(DOCUMENTS_OF_TILES))
    hook.remove()
    images = [image for document in DOCUMENTS_OF_TILES for image in document["images"]]
    assert sizes == [sum(model.processor.count_tiles([(image.height, image.width) for image in images]))]


def test_the_few_shot_delimiter_is_not_a_stop_string():
    assert generation_arguments({"until": ["\n\n", "USER"]}, 7)[1] == ["USER"]
    assert generation_arguments({"until": "USER"}, 7)[1] == ["USER"]
    assert generation_arguments({"until": None}, 7)[1] == []


def test_arguments_that_generate_does_not_have_are_ignored():
    with pytest.warns(UserWarning, match="image_aspect_ratio"):
        arguments, _ = generation_arguments({"image_aspect_ratio": "original"}, 7)
    assert "image_aspect_ratio" not in arguments


def test_an_error_is_not_an_empty_answer(hub_folder):
    model = load(hub_folder, documents=[{"images": ["nowhere.png"], "text": "yes"}])
    with pytest.raises(ValueError, match="nowhere.png"):
        model.generate_until(chat_requests(model.task_dict["colors"]["test"]))


def test_an_image_token_in_a_question_does_not_end_the_evaluation(hub_folder):
    documents = [
        {"images": [RED], "text": "what color is the shape ?"},
        {"images": [RED], "text": "<image>\nwhat color is the shape ?"},
        {"images": [], "text": "is there a <image> circle ?"},
        {"images": [], "text": "is there a  circle ?"},
        {"images": [RED], "text": "<image> is there <image> a circle ?"},
        {"images": [RED], "text": " is there  a circle ?"},
    ]
    model = load(hub_folder, documents=documents)
    answers = model.generate_until(chat_requests(documents))
    assert answers[::2] == answers[1::2]


def test_images_of_a_question_are_read_in_every_form(single, monkeypatch, tmp_path):
    RED.save(tmp_path / "red.png")
    data = (tmp_path / "red.png").read_bytes()
    deep = Image.new("I;16", (16, 16), 128 * 256)
    seen = []
    monkeypatch.setattr(single, "_generate", lambda conversations, _: seen.extend(conversations) or [""])
    images = [str(tmp_path / "red.png"), "data:image/png;base64," + base64.b64encode(data).decode(), data, deep]
    monkeypatch.setitem(single.task_dict, "colors", {"test": [{"images": images, "text": ""}]})
    single.generate_until(chat_requests([{"text": ""}]))
    assert [image.getpixel((0, 0)) for image in seen[0][1]] == [(255, 0, 0)] * 3 + [(128, 128, 128)]


def test_several_rounds_are_not_supported(single):
    with pytest.raises(UserError, match="colors has several rounds"):
        single.generate_until_multi_round(chat_requests())


def test_log_likelihoods_are_not_supported(single):
    with pytest.raises(UserError, match="colors compares log-likelihoods, .* output_type is generate_until"):
        single.loglikelihood(chat_requests())
