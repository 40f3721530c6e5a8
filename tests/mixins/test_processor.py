"""The processor passes the common tests that every processor of transformers passes."""

import unittest

from hawaii import HawaiiProcessor
from hawaii.processing.chat_templates import adapt_chat_template, load_chat_template
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.tests.mixins.transformers_tests import import_mixin
from hawaii.tests.tiny.language_models import FAMILIES, make_tokenizer
from hawaii.tests.tiny.models import PINPOINTS


Mixin = import_mixin("test_processing_common", "ProcessorTesterMixin")


class TestProcessor(Mixin, unittest.TestCase):
    processor_class = HawaiiProcessor
    image_grid_pinpoints = None
    model_id = "tiny"  # without a name the mixin makes no tokenizer; nothing of this name is read

    @staticmethod
    def prepare_processor_dict():
        return {"patch_size": 4}

    @classmethod
    def _setup_from_pretrained(cls, model_id, **kwargs):
        tokenizer = make_tokenizer(FAMILIES["qwen2"])
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
        size = {"height": 16, "width": 16}
        return HawaiiProcessor(
            HawaiiImageProcessor(size=size, crop_size=size, image_grid_pinpoints=cls.image_grid_pinpoints),
            tokenizer,
            chat_template=adapt_chat_template(load_chat_template("vicuna_v1"), **tokenizer.special_tokens_map),
            **cls.prepare_processor_dict(),
        )

    @classmethod
    def _setup_test_attributes(cls, processor):
        cls.image_token = processor.image_token


class TestProcessorWithTiles(TestProcessor):
    image_grid_pinpoints = PINPOINTS

    def _test_apply_chat_template(self, modality, batch_size, return_tensors, input_name, *args):
        """With the input that has one row for each image."""
        self.rows_input_name = "image_sizes"
        super()._test_apply_chat_template(modality, batch_size, return_tensors, "rows_input_name", *args)
