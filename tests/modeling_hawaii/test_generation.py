"""`generate`: every decoding method equals a plain loop, and each image is encoded once."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForCausalLM, GenerationConfig

from hawaii.tests.tiny.models import make_model, make_processor


IMAGE = [4] * 16  # The image token, once for each of the 4 x 4 patches.
# Eight tokens, without an end of sequence or image token.
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": [4]}


def prompt(*parts):
    return torch.tensor([[2, *(token for part in parts for token in part)]])


TWO_IMAGES, ONE_IMAGE, TEXT = prompt(IMAGE, [5, 6, 7], IMAGE, [8, 9]), prompt(IMAGE, [5, 6]), prompt([9, 8, 7])


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 16, 16)


@pytest.fixture
def batch(pixel_values):
    """Three prompts with two, one and no images, padded on the left."""
    length = TWO_IMAGES.shape[1]
    prompts = (TWO_IMAGES, ONE_IMAGE, TEXT)
    return {
        "input_ids": torch.cat([F.pad(text, (length - text.shape[1], 0)) for text in prompts]),
        "attention_mask": torch.cat([F.pad(torch.ones_like(text), (length - text.shape[1], 0)) for text in prompts]),
        "pixel_values": pixel_values,
    }


def answers_alone(model, pixel_values, **kwargs):
    """Answers of the three prompts of `batch`, each in a batch of one."""
    images = (pixel_values[:2], pixel_values[2:], None)
    return [
        model.generate(input_ids=text, attention_mask=torch.ones_like(text), pixel_values=pixels, **kwargs)
        for text, pixels in zip((TWO_IMAGES, ONE_IMAGE, TEXT), images)
    ]


def new_tokens(sequences):
    return sequences[:, -8:].tolist()


@torch.no_grad()
def greedy_loop(model, input_ids, pixel_values):
    """Runs the complete model for each token, without a cache."""
    for _ in range(8):
        scores = model(input_ids=input_ids, pixel_values=pixel_values).logits[:, -1]
        scores[:, [4, model.config.text_config.eos_token_id]] = -torch.inf
        input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
    return input_ids


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=["dynamic_cache", "no_cache", "static_cache", "prompt_lookup"],
)
def test_generation_equals_the_plain_loop(model, options):
    for _ in range(3):
        pixel_values = torch.randn(2, 3, 16, 16)
        expected = greedy_loop(model, TWO_IMAGES, pixel_values)
        answered = model.generate(TWO_IMAGES, pixel_values=pixel_values, **GREEDY, **options)
        assert answered.tolist() == expected.tolist()


def test_the_answers_depend_on_the_images(model):
    answers = {
        tuple(*new_tokens(model.generate(TWO_IMAGES, pixel_values=torch.randn(2, 3, 16, 16), **GREEDY)))
        for _ in range(4)
    }
    assert len(answers) == 4


def test_generation_returns_prompt_and_answer(model, pixel_values):
    sequences = model.generate(TWO_IMAGES, pixel_values=pixel_values[:2], **GREEDY)
    assert torch.equal(sequences[:, :-8], TWO_IMAGES)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic_cache", "static_cache"])
def test_a_left_padded_batch_equals_each_prompt_alone(model, batch, pixel_values, options):
    together = model.generate(**batch, **GREEDY, **options)
    assert new_tokens(together) == [new_tokens(alone)[0] for alone in answers_alone(model, pixel_values, **GREEDY)]


def test_beams_equal_each_prompt_alone(model, batch, pixel_values):
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    together = model.generate(**batch, **beams)
    alone = answers_alone(model, pixel_values, **beams)
    assert new_tokens(together) == [answer for answers in alone for answer in new_tokens(answers)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 4},
        {"use_cache": False},
    ],
    ids=["greedy", "beams", "returned_beams", "samples", "no_cache"],
)
def test_each_image_is_encoded_once(model, batch, options):
    encoded = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    model.generate(**batch, **{**GREEDY, **options})
    assert encoded == [3]


def test_text_without_images_is_answered_without_the_encoder(model):
    encoded = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    assert model.generate(TEXT, **GREEDY).tolist() == greedy_loop(model, TEXT, None).tolist()
    assert encoded == []


@pytest.mark.parametrize(
    "text",
    [prompt([5, 6, 7, 9, 8], IMAGE, [11, 5, 6]), prompt([5, 6], IMAGE, [11, 5, 6])],
    ids=["words", "image_tokens"],
)
def test_prompt_lookup_may_draft_before_the_first_forward_pass(model, pixel_values, text):
    # The prompt ends with two tokens that also occur earlier; the tokens after them there are the draft.
    options = {**GREEDY, "pixel_values": pixel_values[:1], "suppress_tokens": None}
    expected = model.generate(text, **options)
    lengths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    assert model.generate(text, prompt_lookup_num_tokens=3, **options).tolist() == expected.tolist()
    assert lengths[0] == text.shape[1] + 3


def test_a_second_turn_continues_from_the_cache_of_the_first(model, pixel_values):
    first = model.generate(ONE_IMAGE, pixel_values=pixel_values[:1], return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, torch.tensor([[7, 5, 9]])], dim=1)
    expected = greedy_loop(model, second, pixel_values[:1])
    assert model.generate(second, past_key_values=first.past_key_values, **GREEDY).tolist() == expected.tolist()


@pytest.mark.parametrize("only_new_tokens", [False, True])
def test_an_image_of_the_second_turn_is_seen(model, pixel_values, only_new_tokens):
    first = model.generate(ONE_IMAGE, pixel_values=pixel_values[:1], return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, prompt(IMAGE, [7, 5, 9])], dim=1)
    expected = greedy_loop(model, second, pixel_values[:2])
    num_cached = first.past_key_values.get_seq_length()
    inputs = {"input_ids": second, "pixel_values": pixel_values[:2], "attention_mask": torch.ones_like(second)}
    if only_new_tokens:
        inputs |= {"input_ids": second[:, num_cached:], "pixel_values": pixel_values[1:2]}
    answered = model.generate(**inputs, past_key_values=first.past_key_values, **GREEDY)
    assert new_tokens(answered) == new_tokens(expected)
    assert new_tokens(greedy_loop(model, second, pixel_values[[0, 2]])) != new_tokens(expected)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}], ids=["whole", "chunks"])
def test_new_tokens_may_be_more_than_the_cached_ones(model, pixel_values, options):
    first = model.generate(TEXT, return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, prompt([7, 5, 9], IMAGE, [8])], dim=1)
    num_cached = first.past_key_values.get_seq_length()
    assert num_cached < second.shape[1] - num_cached
    answered = model.generate(
        second[:, num_cached:],
        attention_mask=torch.ones_like(second),
        pixel_values=pixel_values[:1],
        past_key_values=first.past_key_values,
        **GREEDY,
        **options,
    )
    assert new_tokens(answered) == new_tokens(greedy_loop(model, second, pixel_values[:1]))


def test_images_in_the_cache_are_not_encoded_again(model, pixel_values):
    first = model.generate(ONE_IMAGE, pixel_values=pixel_values[:1], return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, torch.tensor([[7, 5, 9]])], dim=1)
    expected = greedy_loop(model, second, pixel_values[:1])
    model.model.vision_tower.register_forward_pre_hook(lambda *args: pytest.fail("the encoder ran"))
    cache = {"past_key_values": first.past_key_values}
    assert model.generate(second, pixel_values=pixel_values[:1], **cache, **GREEDY).tolist() == expected.tolist()


def test_use_cache_false_is_obeyed(model, pixel_values):
    lengths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model.generate(ONE_IMAGE, pixel_values=pixel_values[:1], use_cache=False, **GREEDY)
    assert lengths == [ONE_IMAGE.shape[1] + step for step in range(8)]


@pytest.mark.parametrize("chunk_size", [5, 16, 100])
def test_a_prompt_may_be_read_in_chunks(model, pixel_values, chunk_size):
    expected = greedy_loop(model, TWO_IMAGES, pixel_values[:2])
    answered = model.generate(TWO_IMAGES, pixel_values=pixel_values[:2], prefill_chunk_size=chunk_size, **GREEDY)
    assert answered.tolist() == expected.tolist()


@pytest.mark.parametrize("has_images", [True, False])
@pytest.mark.parametrize("width", [32, 16], ids=["same_size", "smaller"])
def test_assisted_decoding_equals_greedy(model, pixel_values, width, has_images):
    assistant = make_model(text={"hidden_size": width, "intermediate_size": 2 * width})
    if not has_images:
        assistant = AutoModelForCausalLM.from_config(assistant.config.text_config).eval()
    expected = greedy_loop(model, TWO_IMAGES, pixel_values[:2])
    answered = model.generate(TWO_IMAGES, pixel_values=pixel_values[:2], assistant_model=assistant, **GREEDY)
    assert answered.tolist() == expected.tolist()


def test_generation_from_embeddings_places_the_images(model, pixel_values):
    expected = model.generate(TWO_IMAGES, pixel_values=pixel_values[:2], **GREEDY)
    embedded = model.get_input_embeddings()(TWO_IMAGES)
    answered = model.generate(inputs_embeds=embedded, pixel_values=pixel_values[:2], **GREEDY)
    assert answered.tolist() == new_tokens(expected)


def test_a_generation_config_may_be_the_second_argument_as_in_transformers(model, pixel_values):
    config = GenerationConfig(do_sample=False, max_new_tokens=3)
    answered = model.generate(ONE_IMAGE, config, pixel_values=pixel_values[:1])
    assert ONE_IMAGE.shape[1] < answered.shape[1] <= ONE_IMAGE.shape[1] + 3


def test_image_tokens_without_images_are_refused(model):
    with pytest.raises(ValueError, match=r"16 image tokens in the text but 0 image features \(0 images"):
        model.generate(ONE_IMAGE, **GREEDY)


def test_a_batch_through_the_processor_equals_each_prompt_alone(model):
    processor = make_processor()
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    text = ["<image> what color is the shape ?", "<image> is there a circle in the image ? yes or no ?"]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")
    together = new_tokens(model.generate(**inputs, **GREEDY))
    for image, prompt, answer in zip(images, text, together):
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        assert new_tokens(model.generate(**inputs, **GREEDY)) == [answer]
