"""The complete model and the encoder pass the common tests that every model of transformers passes."""

import unittest

import torch

from hawaii import HawaiiForConditionalGeneration, HawaiiModel, HawaiiVisionConfig, HawaiiVisionModel
from hawaii.tests.mixins.transformers_tests import import_mixin
from hawaii.tests.tiny.models import PINPOINTS, VISION, make_config


Mixin = import_mixin("test_modeling_common", "ModelTesterMixin")


class ModelTester:
    """What the mixin asks about a model: sizes, a configuration and inputs."""

    is_training = True
    batch_size = 2

    def __init__(self, config, seq_length: int):
        self.config, self.seq_length = config, seq_length
        sizes = getattr(config, "text_config", config)
        self.hidden_size, self.num_hidden_layers = sizes.hidden_size, sizes.num_hidden_layers
        self.num_attention_heads = sizes.num_attention_heads

    def prepare_config_and_inputs_for_common(self):
        torch.manual_seed(0)
        inputs = {"pixel_values": torch.randn(self.batch_size, 3, 16, 16)}
        if hasattr(self.config, "text_config"):
            text = torch.randint(5, 30, (self.batch_size, self.seq_length))
            text[:, 1:17] = self.config.image_token_id  # 4 x 4 patches
            inputs |= {"input_ids": text, "attention_mask": torch.ones_like(text)}
        return type(self.config)(**self.config.to_dict()), inputs


class TestCompleteModel(Mixin, unittest.TestCase):
    all_model_classes = (HawaiiModel, HawaiiForConditionalGeneration)
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(make_config(text={"max_position_embeddings": 512}), seq_length=23)

    @unittest.skip("transformers does not distribute its tests of generation; test_generation.py has this model's")
    def test_generation_tester_mixin_inheritance(self):
        pass


class TilesTester(ModelTester):
    """Each sample has an image of another grid; images with fewer tiles are padded, so that samples can be split."""

    image_sizes = ((20, 50), (31, 33))  # 4 and 5 squares
    num_image_tokens = (16 + 4 * 11, 16 + 8 * 9)  # rows of 10 and of 8 patches

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        text = torch.randint(5, 30, (self.batch_size, self.seq_length))
        for sample, number in zip(text, self.num_image_tokens):
            sample[1 : 1 + number] = config.image_token_id
        inputs |= {"input_ids": text, "attention_mask": torch.ones_like(text)}
        inputs |= {"pixel_values": torch.randn(self.batch_size, 5, 3, 16, 16)}
        return config, inputs | {"image_sizes": torch.tensor(self.image_sizes)}


class TestCompleteModelWithTiles(TestCompleteModel):
    skip_test_image_features_output_shape = True  # it expects one output of the encoder for each image

    def setUp(self):
        config = make_config(text={"max_position_embeddings": 512}, image_grid_pinpoints=PINPOINTS)
        self.model_tester = TilesTester(config, seq_length=97)


class TestEncoder(Mixin, unittest.TestCase):
    all_model_classes = (HawaiiVisionModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ModelTester(HawaiiVisionConfig(**VISION), seq_length=17)

    def test_model_get_set_embeddings(self):
        """The input embedding of an encoder is a convolution, and it has no output embedding."""
        model = HawaiiVisionModel(self.model_tester.config)
        assert isinstance(model.get_input_embeddings(), torch.nn.Conv2d) and model.get_output_embeddings() is None
