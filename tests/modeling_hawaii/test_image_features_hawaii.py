"""Features of tiles: their places, one pass of the encoder, refused inputs, and what they cost."""

import copy
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration, HawaiiModel
from hawaii.configuration.tiles_hawaii import count_image_tokens, count_tiles
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.tiny.llava import make_llava_next
from hawaii.tests.tiny.models import PINPOINTS, make_config, make_model, make_processor
from hawaii.tests.tiny.operations import CountOperations
from hawaii.tests.tiny.tiled_models import make_tiled_processor
from hawaii.tests.tiny.tiles import (
    PUBLISHED_PINPOINTS,
    SIZES,
    make_prompts,
    pack_naively,
    pad_tiles,
)


NUM_TOKENS = count_image_tokens(SIZES, PINPOINTS, 16, 4)
NUM_TILES = count_tiles(SIZES, PINPOINTS, 16)
PROMPTS = [[0, [5, 6, 7], 1, [8, 9]], [2, [5, 6]], [[9, 8, 7]]]
TEXT = {"max_position_embeddings": 512}
IMAGE_SIZES = torch.tensor(SIZES)


@pytest.fixture
def model():
    return make_model(text=TEXT, image_grid_pinpoints=PINPOINTS)


@pytest.fixture
def pixel_values():
    return torch.randn(sum(NUM_TILES), 3, 16, 16)


@pytest.fixture
def batch(pixel_values):
    """Three prompts with two, one and no images, padded on the left."""
    return {**make_prompts(PROMPTS, NUM_TOKENS, 4), "pixel_values": pixel_values, "image_sizes": IMAGE_SIZES}


@torch.no_grad()
def logits(model, batch, **kwargs):
    mask = batch["attention_mask"]
    return model(**batch, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), **kwargs).logits[mask.bool()]


def naive_features(model, pixel_values, sizes=SIZES):
    """Each square encoded alone, and the features of each image put together by plain loops, in float64."""
    squares = torch.cat([model.model.encode_images(square[None]).pooler_output for square in pixel_values])
    return pack_naively(squares.double(), sizes, PINPOINTS, 16, model.model.image_newline.double())


@torch.no_grad()
def test_each_image_has_the_features_of_plain_loops(model, pixel_values):
    outputs = model.get_image_features(pixel_values, IMAGE_SIZES)
    expected = naive_features(model, pixel_values)
    assert [len(features) for features in outputs.pooler_output] == NUM_TOKENS
    for features, naive in zip(outputs.pooler_output, expected, strict=True):
        torch.testing.assert_close(features.double(), naive, rtol=1e-5, atol=1e-5)
    padded = model.get_image_features(pad_tiles(pixel_values, NUM_TILES), IMAGE_SIZES).pooler_output
    torch.testing.assert_close(padded, outputs.pooler_output)


@torch.no_grad()
def test_the_features_replace_the_image_tokens_in_order(model, batch):
    expected = model.get_input_embeddings()(batch["input_ids"])
    expected[batch["input_ids"] == 4] = torch.cat(naive_features(model, batch["pixel_values"])).float()
    merged, _ = model.model.embed_inputs(batch["input_ids"], batch["pixel_values"], IMAGE_SIZES)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    again, _ = model.model.embed_inputs(None, batch["pixel_values"], IMAGE_SIZES, embedded)
    assert torch.equal(again, merged)


@torch.no_grad()
def test_a_bright_square_moves_through_the_features_as_through_the_picture(model):
    """A picture of 2 x 3 tiles has a map of 8 x 12 patches; across a tile's border is the next feature of the map."""
    model = make_model(text=TEXT, image_grid_pinpoints=[[32, 48]], vision={"num_hidden_layers": 1})
    blank = torch.zeros(3, 32, 48)

    def map_of(picture):
        tiles = picture.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1)  # (6, 3, 16, 16)
        squares = torch.cat([torch.zeros(1, 3, 16, 16), tiles])
        (features,) = model.get_image_features(squares, torch.tensor([[32, 48]])).pooler_output
        cells = features[16:].view(8, 13, -1)
        assert torch.equal(cells[:, -1], model.model.image_newline.expand(8, -1))
        return cells[:, :-1]

    usual = map_of(blank)
    for row in range(8):
        for column in (2, 3, 4, 7, 8, 11):
            picture = blank.clone()
            picture[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 2
            change = (map_of(picture) - usual).square().sum(dim=-1)
            assert divmod(int(change.argmax()), 12) == (row, column)
            # Only the features of the square's tile depend on it.
            tile_row, tile_column = 4 * (row // 4), 4 * (column // 4)
            others = change.clone()
            others[tile_row : tile_row + 4, tile_column : tile_column + 4] = 0
            assert not others.any()


@torch.no_grad()
@pytest.mark.parametrize(("width", "columns"), [(60, 12), (40, 8)], ids=["whole grid", "padded"])
def test_a_bright_square_of_a_file_changes_the_feature_of_its_place(width, columns):
    """Through processor and model: pictures are resized by 0.8 and centered in 2 x 3 tiles; 5 pixels are one patch."""
    model = make_model(text=TEXT, image_grid_pinpoints=[[32, 48]], vision={"num_hidden_layers": 1})
    processor = make_tiled_processor(image_grid_pinpoints=[[32, 48]])
    places = [(row, column) for row in range(8) for column in range(columns)]
    pictures = [Image.new("RGB", (width, 40)) for _ in places]
    for picture, (row, column) in zip(pictures, places):
        picture.paste("white", (5 * column, 5 * row, 5 * column + 5, 5 * row + 5))
    inputs = processor.image_processor(pictures, return_tensors="pt")
    features = torch.stack(model.get_image_features(**inputs).pooler_output)
    assert features.shape[1] == 16 + 8 * (columns + 1)
    maps = features[:, 16:].unflatten(1, (8, columns + 1))[:, :, :-1]
    changes = (maps - maps.median(dim=0).values).square().sum(dim=-1).flatten(1)
    assert [divmod(place, columns) for place in changes.argmax(dim=1).tolist()] == places


@pytest.mark.parametrize("vision", [{}, {"num_teacher_adapters": 0, "num_general_adapters": 0}])
def test_logits_are_those_of_transformers_llava_next(tmp_path, vision):
    """With its weights, of images with different grids."""
    llava_next = make_llava_next(text=TEXT, image_grid_pinpoints=PINPOINTS)
    llava_next.save_pretrained(tmp_path)
    model = convert_llava(str(tmp_path), **vision).model
    pixel_values = torch.randn(sum(NUM_TILES), 3, 16, 16)
    batch = make_prompts(PROMPTS[:2], NUM_TOKENS, model.config.image_token_id) | {"image_sizes": IMAGE_SIZES}
    expected = logits(llava_next, {**batch, "pixel_values": pad_tiles(pixel_values, NUM_TILES)})
    torch.testing.assert_close(logits(model, {**batch, "pixel_values": pixel_values}), expected)


def test_all_tiles_of_a_batch_are_encoded_in_one_pass(model, batch):
    encoded = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    logits(model, batch)
    model.get_image_features(batch["pixel_values"], IMAGE_SIZES)
    model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert encoded == [sum(NUM_TILES)] * 3


def count_operations(model, num_images, is_training):
    """
    Operations from squares to the merged input embeddings, with their gradient in training, and those that wait for a
    device without those of the encoder: on a CPU its `one_hot` checks values.
    """
    sizes = (SIZES * num_images)[:num_images]
    num_tokens = count_image_tokens(sizes, PINPOINTS, 16, 4)
    inputs = make_prompts([[image] for image in range(num_images)], num_tokens, 4)["input_ids"]
    pixel_values = torch.randn(sum(count_tiles(sizes, PINPOINTS, 16)), 3, 16, 16)
    image_sizes = torch.tensor(sizes)
    model.train(is_training)
    with torch.set_grad_enabled(is_training):
        with CountOperations() as encoder:
            model.model.encode_images(pixel_values)
        with CountOperations() as complete:
            merged, _ = model.model.embed_inputs(inputs, pixel_values, image_sizes)
            if is_training:
                merged.sum().backward()
    return complete.num_operations, complete.num_waits - encoder.num_waits


@pytest.mark.parametrize("is_training", [False, True])
def test_no_operation_waits_for_the_device_or_is_repeated_for_a_tile(model, is_training, monkeypatch):
    # On a CPU the host makes the checks of the numbers of tokens and tiles.
    monkeypatch.setattr(model.model, "check_image_tokens", lambda *args: None)
    count_operations(model, 2, is_training)
    few, many = (count_operations(model, num_images, is_training) for num_images in (2, 30))
    assert few == many
    assert few[1] == 0


@pytest.mark.parametrize("is_padded", [False, True])
def test_training_on_an_accelerator_reads_no_value(model, batch, is_padded, monkeypatch):
    """On the meta device a tensor has no value, and the checks are those that an accelerator makes."""
    checked = []
    monkeypatch.setattr(torch, "_assert_async", lambda condition, message: checked.append(message))
    monkeypatch.setattr(model.model, "check_image_tokens", check_as_on_an_accelerator(model.model))
    if is_padded:
        batch["pixel_values"] = pad_tiles(batch["pixel_values"], NUM_TILES)
    on_meta = {name: value.to("meta") for name, value in batch.items() if name != "attention_mask"}
    outputs = model.train().to("meta")(**on_meta)
    outputs.logits.sum().backward()
    assert [message.split(" in ")[0] for message in checked] == [
        "other number of image tokens",
        "other number of tiles",
    ]
    assert model.model.image_newline.grad.is_meta


def check_as_on_an_accelerator(model):
    """`check_image_tokens` leaves out its checks on the meta device, where no operation could make them."""

    class Mask:
        """A mask whose device is an accelerator's."""

        device = torch.device("cuda")

        def __init__(self, is_image):
            self.sum = is_image.sum

    check = model.check_image_tokens
    return lambda is_image, *args: check(Mask(is_image), *args)


def count_flops(config, num_tiles, num_tokens, sizes=None):
    """Operations of the forward pass of a prompt with images."""
    with torch.device("meta"):
        model = HawaiiForConditionalGeneration(config).eval()
        inputs = {"input_ids": torch.empty(1, num_tokens, dtype=torch.long)}
        inputs["pixel_values"] = torch.empty(num_tiles, 3, 336, 336)
        if sizes is not None:
            inputs["image_sizes"] = torch.empty(len(sizes), 2, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs, logits_to_keep=1)
            complete = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.model.vision_tower(inputs["pixel_values"])
            model.model.multi_modal_projector(torch.empty(num_tiles, 576, config.vision_config.hidden_size))
            encoder = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            embeddings = torch.empty(1, num_tokens, config.text_config.hidden_size)
            hidden_states = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
            model.lm_head(hidden_states[:, -1:])
            text = counter.get_total_flops()
    return complete, encoder, text


def full_size_config(num_layers=23, image_grid_pinpoints=None):
    """The paper's encoder, of this many layers, with a language model of one layer of Vicuna's width."""
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 1}
    return HawaiiConfig(
        vision_config={"num_hidden_layers": num_layers},
        text_config={**text, "num_key_value_heads": 32, "vocab_size": 50},
        image_token_index=4,
        image_grid_pinpoints=image_grid_pinpoints,
    )


def test_one_square_costs_what_the_parts_cost():
    complete, encoder, text = count_flops(full_size_config(), 1, 600)
    assert complete == encoder + text
    # The encoder's 374.7 GFLOP, and a projector of 576 x (1024 x 4096 + 4096 x 4096) multiplications.
    assert encoder - 2 * 576 * (1024 * 4096 + 4096 * 4096) == pytest.approx(374.7e9, rel=1e-3)


def test_tiles_cost_the_encoder_once_each_and_nothing_else():
    _, one, _ = count_flops(full_size_config(num_layers=1), 1, 600)
    tiled = full_size_config(num_layers=1, image_grid_pinpoints=PUBLISHED_PINPOINTS)
    for num_tiles in (3, 5):
        complete, encoder, text = count_flops(tiled, num_tiles, 3000, sizes=[(1, 1)])
        assert encoder == num_tiles * one
        assert complete == encoder + text


def test_only_a_model_with_tiles_has_a_newline(model):
    assert model.model.image_newline.shape == (32,)
    assert [name for name in make_model().state_dict() if "newline" in name] == []
    assert not hasattr(make_model().model, "image_newline")
    assert set(model.state_dict()) - set(make_model().state_dict()) == {"model.image_newline"}


def test_a_new_newline_is_drawn_as_in_llava_next():
    config = make_config(text={"hidden_size": 1024, "num_attention_heads": 4}, image_grid_pinpoints=PINPOINTS)
    newline = HawaiiForConditionalGeneration(config).model.image_newline.detach()
    assert float(newline.std()) == pytest.approx(1024**-0.5, rel=0.1)
    assert abs(newline.mean()) < 0.005


def test_the_newline_is_saved_and_loaded(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["model.image_newline"], model.model.image_newline)
    loaded, report = HawaiiForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded.eval(), batch), logits(model, batch))
    base, report = HawaiiModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and torch.equal(base.image_newline, model.model.image_newline)


def test_a_model_of_squares_may_be_loaded_with_tiles(tmp_path):
    """As before a training with tiles: the newline is new, the other weights are the folder's."""
    square = make_model()
    square.save_pretrained(tmp_path)
    tiled, report = HawaiiForConditionalGeneration.from_pretrained(
        tmp_path, image_grid_pinpoints=PINPOINTS, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"model.image_newline"} and not report["unexpected_keys"]
    assert tiled.model.image_newline.isfinite().all() and 0 < tiled.model.image_newline.std() < 1
    assert all(torch.equal(tiled.state_dict()[name], tensor) for name, tensor in square.state_dict().items())


def test_the_task_reaches_every_parameter_and_the_newline(model, batch):
    model.train()
    for _ in range(4):  # Enough images that each adapter of each layer is chosen somewhere.
        batch["pixel_values"] = torch.randn_like(batch["pixel_values"])
        model(**batch, labels=batch["input_ids"]).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    plain, checkpointed = model.train(), copy.deepcopy(model).train()
    checkpointed.gradient_checkpointing_enable()
    for student in (plain, checkpointed):
        student(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_bfloat16_weights_accept_float32_images(model, batch):
    expected = logits(model, batch)
    scores = logits(model.bfloat16(), batch)
    assert scores.dtype == torch.bfloat16
    assert (scores.float() - expected).abs().mean() < 0.1 * expected.std()


def test_new_tokens_may_be_added(model, batch):
    expected = logits(model, batch)
    model.resize_token_embeddings(80, mean_resizing=False)
    assert torch.equal(logits(model, batch)[:, : expected.shape[-1]], expected)


def test_text_needs_no_image_sizes(model):
    text = make_prompts([[[5, 6, 7]]], [], 4)
    assert torch.equal(logits(model, text), logits(model, {**text, "image_sizes": None}))


def test_image_sizes_are_ignored_without_pinpoints():
    model, pixel_values = make_model(), torch.randn(1, 3, 16, 16)
    batch = {**make_prompts([[0, [5]]], [16], 4), "pixel_values": pixel_values}
    assert torch.equal(logits(model, {**batch, "image_sizes": torch.tensor([[3, 9]])}), logits(model, batch))


def test_image_sizes_may_be_an_array_or_a_list(model, batch):
    expected, sizes = logits(model, batch), batch["image_sizes"]
    for image_sizes in (sizes.numpy(), sizes.tolist(), list(sizes), sizes.int(), sizes.float()):
        assert torch.equal(logits(model, {**batch, "image_sizes": image_sizes}), expected)


def test_missing_image_sizes_are_an_error(model, batch):
    del batch["image_sizes"]
    message = "This model cuts images into tiles and needs image_sizes, the height and width of each image"
    with pytest.raises(ValueError, match=message):
        model(**batch)
    with pytest.raises(ValueError, match=message):
        model.generate(**batch)
    with pytest.raises(ValueError, match=message):
        model.get_image_features(batch["pixel_values"])


def test_image_sizes_of_another_shape_are_an_error(model, batch):
    batch["image_sizes"] = IMAGE_SIZES.flatten()
    with pytest.raises(ValueError, match=r"image_sizes has shape \(6,\); it must be \(number of images, 2\)"):
        model(**batch)


def test_another_number_of_tiles_is_an_error(model, batch):
    padded = pad_tiles(batch["pixel_values"], NUM_TILES)
    message = r"pixel_values has shape \({}, .*but image_sizes are those of images with \[4, 4, 5\] tiles"
    for pixel_values in (batch["pixel_values"][:-1], padded[:, :4], padded[:2], padded.flatten(0, 1)):
        with pytest.raises(ValueError, match=message.format(len(pixel_values))):
            model(**{**batch, "pixel_values": pixel_values})
        with pytest.raises(ValueError, match=message.format(len(pixel_values))):
            model.get_image_features(pixel_values, IMAGE_SIZES)


def test_another_number_of_image_tokens_is_an_error(model, batch):
    batch["input_ids"][0, -1] = 4
    total = sum(NUM_TOKENS)
    with pytest.raises(
        ValueError, match=rf"{total + 1} image tokens in the text but {total} image features \(3 images\)"
    ):
        model(**batch)
    with pytest.raises(ValueError, match=rf"{total + 1} image tokens in the text but {total} image features"):
        model.generate(**batch)


def test_a_model_of_squares_refuses_padded_tiles():
    """Otherwise it would read the tiles of one image as several images."""
    batch = {**make_prompts([[0, [5]]], [16], 4), "pixel_values": torch.randn(1, 3, 3, 16, 16)}
    with pytest.raises(RuntimeError, match="4D"):
        make_model()(**batch)


@pytest.mark.parametrize(("theirs", "ours"), [(None, PINPOINTS), ([[16, 32]], PINPOINTS), (PINPOINTS, None)])
def test_a_processor_with_other_grids_is_an_error_that_names_the_models(theirs, ours):
    model = make_model(text={"max_position_embeddings": 512}, image_grid_pinpoints=ours)
    processor = make_processor(image_grid_pinpoints=theirs)
    inputs = processor(images=Image.new("RGB", (20, 50)), text="<image> red", return_tensors="pt")
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=f"image_grid_pinpoints, .*{re.escape(str(ours))}"):
            run(**inputs)
