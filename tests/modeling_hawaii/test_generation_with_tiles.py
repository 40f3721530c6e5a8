"""With tiles, every decoding method equals a plain loop, and compiled and exported models equal the model."""

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hawaii.configuration.tiles_hawaii import count_image_tokens, count_tiles
from hawaii.tests.tiny.models import PINPOINTS, make_model
from hawaii.tests.tiny.tiles import SIZES, make_prompts, pad_tiles


NUM_TOKENS = count_image_tokens(SIZES, PINPOINTS, 16, 4)
NUM_TILES = count_tiles(SIZES, PINPOINTS, 16)
IMAGE_SIZES = torch.tensor(SIZES)
TWO_IMAGES = [0, [5, 6, 7], 1, [8, 9]]
TEXT = {"max_position_embeddings": 512}
# Eight tokens, without an end of sequence or image token.
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": [4]}


@pytest.fixture
def model():
    return make_model(text=TEXT, image_grid_pinpoints=PINPOINTS)


@pytest.fixture
def pixel_values():
    return torch.randn(sum(NUM_TILES), 3, 16, 16)


def select(pixel_values, *images):
    """The squares and sizes of some of the images, in this order."""
    squares = pixel_values.split(NUM_TILES)
    if not images:
        return {}
    return {"pixel_values": torch.cat([squares[i] for i in images]), "image_sizes": IMAGE_SIZES[list(images)]}


def others(images):
    """Images of the same grids with other pixels."""
    return {**images, "pixel_values": torch.randn_like(images["pixel_values"])}


def prompt(*parts):
    return make_prompts([parts], NUM_TOKENS, 4)["input_ids"]


@torch.no_grad()
def greedy_loop(model, input_ids, images):
    """Runs the complete model for each token, without a cache."""
    for _ in range(8):
        scores = model(input_ids=input_ids, **images).logits[:, -1]
        scores[:, [4, model.config.text_config.eos_token_id]] = -torch.inf
        input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
    return input_ids.tolist()


def new_tokens(sequences):
    return [row[-8:] for row in (sequences if isinstance(sequences, list) else sequences.tolist())]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 7},
    ],
    ids=["dynamic_cache", "no_cache", "static_cache", "prompt_lookup", "chunks"],
)
def test_generation_equals_the_plain_loop(model, pixel_values, options):
    images, input_ids = select(pixel_values, 0, 1), prompt(*TWO_IMAGES)
    answered = model.generate(input_ids, **images, **GREEDY, **options)
    assert answered.tolist() == greedy_loop(model, input_ids, images)
    assert new_tokens(answered) != new_tokens(model.generate(input_ids, **others(images), **GREEDY))


@pytest.mark.parametrize("is_padded", [False, True], ids=["flat", "padded"])
@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"num_beams": 3, "num_return_sequences": 2}],
    ids=["greedy", "static_cache", "beams"],
)
def test_a_left_padded_batch_equals_each_prompt_alone(model, pixel_values, options, is_padded):
    """Of two, one and no images, with squares one after the other or padded."""
    parts, images = [TWO_IMAGES, [2, [5, 6]], [[9, 8, 7]]], [(0, 1), (2,), ()]
    batch = make_prompts(parts, NUM_TOKENS, 4) | select(pixel_values, 0, 1, 2)
    if is_padded:
        batch["pixel_values"] = pad_tiles(pixel_values, NUM_TILES)
    together = model.generate(**batch, **GREEDY, **options)
    alone = [
        model.generate(prompt(*text), **select(pixel_values, *indices), **GREEDY, **options)
        for text, indices in zip(parts, images)
    ]
    assert new_tokens(together) == [answer for answers in alone for answer in new_tokens(answers)]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "num_return_sequences": 4}],
    ids=["greedy", "beams", "samples"],
)
def test_the_tiles_are_encoded_once_for_all_sequences(model, pixel_values, options):
    encoded = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    batch = make_prompts([TWO_IMAGES, [2, [5, 6]]], NUM_TOKENS, 4) | select(pixel_values, 0, 1, 2)
    answers = model.generate(**batch, **{**GREEDY, **options})
    assert len(answers) == 2 * options.get("num_return_sequences", 1)
    assert encoded == [sum(NUM_TILES)]


def test_the_first_sampled_token_has_the_probabilities_of_the_forward_pass(model, pixel_values):
    images, input_ids = select(pixel_values, 0, 1), prompt(*TWO_IMAGES)
    sampled = model.generate(
        input_ids,
        **images,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=2,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        first = model(input_ids, **images).logits[:, -1]
    torch.testing.assert_close(sampled.logits[0], first.expand(3, -1))
    with torch.no_grad():
        second = [model(row[None, :-1], **images).logits[0, -1] for row in sampled.sequences]
    torch.testing.assert_close(sampled.logits[1], torch.stack(second), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_images", [True, False])
def test_assisted_decoding_equals_greedy(model, pixel_values, has_images):
    images, input_ids = select(pixel_values, 0, 1), prompt(*TWO_IMAGES)
    assistant = make_model(text={**TEXT, "hidden_size": 16, "intermediate_size": 32}, image_grid_pinpoints=PINPOINTS)
    if not has_images:
        assistant = AutoModelForCausalLM.from_config(assistant.config.text_config).eval()
    answered = model.generate(input_ids, **images, assistant_model=assistant, **GREEDY)
    assert answered.tolist() == greedy_loop(model, input_ids, images)


@pytest.mark.parametrize("only_new_tokens", [False, True])
def test_an_image_of_the_second_turn_is_seen(model, pixel_values, only_new_tokens):
    images = select(pixel_values, 0)
    first = model.generate(prompt(0, [5, 6]), **images, return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, prompt(2, [7, 5, 9])], dim=1)
    both = select(pixel_values, 0, 2)
    num_cached = first.past_key_values.get_seq_length()
    inputs = {"input_ids": second, **both, "attention_mask": torch.ones_like(second)}
    if only_new_tokens:
        inputs |= {"input_ids": second[:, num_cached:], **select(pixel_values, 2)}
    answered = model.generate(**inputs, past_key_values=first.past_key_values, **GREEDY)
    expected = greedy_loop(model, second, both)
    assert new_tokens(answered) == new_tokens(expected)
    assert new_tokens(greedy_loop(model, second, others(both))) != new_tokens(expected)


def test_tiles_in_the_cache_are_not_encoded_again(model, pixel_values):
    images = select(pixel_values, 0)
    first = model.generate(prompt(0, [5, 6]), **images, return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, torch.tensor([[7, 5, 9]])], dim=1)
    expected = greedy_loop(model, second, images)
    model.model.vision_tower.register_forward_pre_hook(lambda *args: pytest.fail("the encoder ran"))
    for given in (images, {}):
        cache = copy.deepcopy(first.past_key_values)
        assert model.generate(second, **given, past_key_values=cache, **GREEDY).tolist() == expected


def test_generation_from_embeddings_places_the_images(model, pixel_values):
    images, input_ids = select(pixel_values, 0, 1), prompt(*TWO_IMAGES)
    embedded = model.get_input_embeddings()(input_ids)
    answered = model.generate(inputs_embeds=embedded, **images, **GREEDY)
    assert answered.tolist() == new_tokens(model.generate(input_ids, **images, **GREEDY))


def test_the_complete_model_compiles_as_one_graph_for_all_grids(model, pixel_values):
    """The graph depends on the numbers of tiles and tokens, and not on the grids."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    squares = select(pixel_values, 0)["pixel_values"]
    for sizes in ([[20, 50]], [[50, 20]]):  # 1 x 3 and 3 x 1 tiles
        (number,) = count_image_tokens(sizes, PINPOINTS, 16, 4)
        inputs = make_prompts([[0, [5] * (100 - number)]], [number], 4)["input_ids"]
        arguments = {"pixel_values": squares, "image_sizes": torch.tensor(sizes), "use_cache": False}
        with torch.no_grad():
            torch.testing.assert_close(compiled(inputs, **arguments).logits, model(inputs, **arguments).logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_exported_model_equals_the_model_for_other_grids(model, pixel_values):
    torch._dynamo.reset()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, pixel_values, image_sizes):
            return self.model(input_ids, pixel_values, image_sizes, use_cache=False).logits

    def inputs_for(size):
        (number,) = count_image_tokens([size], PINPOINTS, 16, 4)
        input_ids = make_prompts([[0, [5] * (100 - number)]], [number], 4)["input_ids"]
        return input_ids, select(pixel_values, 0)["pixel_values"], torch.tensor([size])

    with torch.no_grad():
        exported = torch.export.export(Logits().eval(), inputs_for([20, 50])).module()
        for size in ([20, 50], [50, 20], [10, 48]):
            inputs = inputs_for(size)
            torch.testing.assert_close(exported(*inputs), model(*inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["lora", "prompt tuning"],
)
def test_a_peft_method_trains_and_generates_with_tiles(model, pixel_values, method):
    batch = make_prompts([TWO_IMAGES], NUM_TOKENS, 4) | select(pixel_values, 0, 1)
    adapted = get_peft_model(model, method)
    assert not model.model.image_newline.requires_grad
    optimizer = torch.optim.SGD([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=0.5)
    before = adapted(**batch).logits.detach()
    for _ in range(2):
        adapted(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    assert (adapted.eval()(**batch).logits - before).abs().max() > 1e-4
    tokens = batch["input_ids"]
    for _ in range(8):
        with torch.no_grad():
            scores = adapted(**{**batch, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}).logits[:, -1]
        scores[:, [4, model.config.text_config.eos_token_id]] = -torch.inf
        tokens = torch.cat([tokens, scores.argmax(dim=-1, keepdim=True)], dim=1)
    assert new_tokens(adapted.generate(**batch, **GREEDY)) == new_tokens(tokens)
