"""Processor: expands image tokens, and saves files that every supported loader can read."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData
from transformers.utils.chat_template_utils import render_jinja_template

from ..configuration.configuration_hawaii import check_choice
from ..configuration.hub_hawaii import PROCESSOR_AUTO_MAP, SavedWithCode
from ..configuration.tiles_hawaii import count_image_tokens, count_tiles
from .image_processing_hawaii import HawaiiImageProcessor
from .images_hawaii import IMAGE_ASPECT_RATIOS


# Placeholder of an image in text and in every chat template; expanded to one token per patch.
IMAGE_TOKEN = "<image>"


def _as_lists(conversation: list) -> list:
    """Converts string contents in a conversation, or in a list of them, to lists of one text."""
    if isinstance(conversation[0], list | tuple):
        return [_as_lists(one) for one in conversation]
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in conversation
    ]


def _offsets_before_expansion(
    offsets, text: str, image_token: str, num_image_tokens: Sequence[int]
) -> list[tuple[int, int]]:
    """Converts tokens' spans in a text whose image tokens are repeated to spans in `text`, where they are not."""
    length = len(image_token)
    # Characters that the first images add, and where each image begins in the expanded text.
    added = [0, *accumulate(length * (number - 1) for number in num_image_tokens)]
    images = [match.start() + before for match, before in zip(re.finditer(re.escape(image_token), text), added)]
    spans = []
    for start, end in offsets:
        num_before = bisect_right(images, start)  # images that begin before the token, or with it
        if num_before and start < images[num_before - 1] + length * num_image_tokens[num_before - 1]:
            start = images[num_before - 1] - added[num_before - 1]
            spans.append((start, start + length))
        else:
            spans.append((start - added[num_before], end - added[num_before]))
    return spans


def rewrite_tokenizer_config(path: Path) -> None:
    """
    Rewrites the configuration that transformers 5 saved: both 4.57 and 5 can read it, the tokenizer pads as in the
    processor, and no field says where it was loaded from.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    values["padding_side"] = "left"
    for name in ("is_local", "local_files_only"):
        values.pop(name, None)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _ProcessorSavedWithCode(SavedWithCode, ProcessorMixin):
    """Has every method of `ProcessorMixin`: transformers' tests look for those that [`HawaiiProcessor`] overrides."""


class HawaiiProcessor(_ProcessorSavedWithCode):
    r"""
    Joins an image processor and a tokenizer.

    Args:
        image_processor (`HawaiiImageProcessor` or `CLIPImageProcessor`):
            Squares, resizes and normalises images; CLIP's is made one that does.
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer with the special token `<image>`. Its padding side is set to left, for generation.
        patch_size (`int`, *optional*, defaults to 14):
            Side of the encoder's patches, in pixels. It need not divide the side of the image.
        chat_template (`str`, *optional*):
            Jinja template of a conversation.
        kwargs:
            `image_aspect_ratio` sets that of the image processor.

    Raises:
        ValueError: the tokenizer lacks the image token, the image processor does not make squares, or
            `image_aspect_ratio` is unknown.
    """

    hub_auto_map = PROCESSOR_AUTO_MAP
    if not hasattr(ProcessorMixin, "get_attributes"):
        # transformers 4.57 reads the parts from these attributes, 5.x from the signature.
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

        def apply_chat_template(self, conversation, chat_template=None, return_assistant_tokens_mask=False, **kwargs):
            # 4.57 looks for images among a message's items, and would iterate over the letters of a string.
            conversation = _as_lists(conversation)
            is_mask_returned = return_assistant_tokens_mask and kwargs.get("tokenize") and kwargs.get("return_dict")
            if not is_mask_returned:
                return super().apply_chat_template(conversation, chat_template, **kwargs)
            # 4.57 would leave out an answer whose first character, such as a space, begins no token.
            inputs: Any = super().apply_chat_template(
                conversation, chat_template, return_offsets_mapping=True, **kwargs
            )
            _, spans = render_jinja_template(
                conversation if isinstance(conversation[0], list) else [conversation],
                chat_template=self.chat_template if chat_template is None else chat_template,
                return_assistant_tokens_mask=True,
                **{name: value for name, value in kwargs.items() if name not in ("tokenize", "return_dict")},
                **self.tokenizer.special_tokens_map,
            )
            offsets = inputs.pop("offset_mapping")
            inputs["assistant_masks"] = [
                [int(any(start < last and end > first for first, last in answers)) for start, end in tokens]
                for tokens, answers in zip(offsets if isinstance(offsets, list) else offsets.tolist(), spans)
            ]
            return inputs.convert_to_tensors(kwargs.get("return_tensors"))

    def __init__(self, image_processor=None, tokenizer=None, patch_size=14, chat_template=None, **kwargs):
        if not isinstance(image_processor, HawaiiImageProcessor):
            image_processor = HawaiiImageProcessor.from_dict(image_processor.to_dict())
        if "image_aspect_ratio" in kwargs:
            check_choice("image_aspect_ratio", kwargs["image_aspect_ratio"], IMAGE_ASPECT_RATIOS)
            image_processor.image_aspect_ratio = kwargs["image_aspect_ratio"]
        self.patch_size = patch_size
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The tokenizer has no token {IMAGE_TOKEN!r}; add it with "
                f"`tokenizer.add_special_tokens({{'additional_special_tokens': [{IMAGE_TOKEN!r}]}})`."
            )
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.padding_side = "left"
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def image_aspect_ratio(self) -> str:
        """How the image processor makes an image square: `"pad"` or `"crop"`."""
        return self.image_processor.image_aspect_ratio

    @image_aspect_ratio.setter
    def image_aspect_ratio(self, value: str) -> None:
        self.image_processor.image_aspect_ratio = value

    @property
    def image_grid_pinpoints(self) -> list[list[int]] | None:
        """Grids of tiles that the image processor chooses from; `None` if each image is one square."""
        return self.image_processor.image_grid_pinpoints

    @image_grid_pinpoints.setter
    def image_grid_pinpoints(self, value: Sequence[Sequence[int]] | None) -> None:
        self.image_processor.image_grid_pinpoints = value

    @property
    def num_image_tokens(self) -> int:
        """Number of tokens of one square in the text: its patches."""
        return (self.image_processor.tile_size // self.patch_size) ** 2

    def count_image_tokens(self, image_sizes: Sequence[Sequence[int]]) -> list[int]:
        """Number of tokens in the text of each image of a height and width; see [`count_image_tokens`]."""
        tile_size = self.image_processor.tile_size
        return count_image_tokens(image_sizes, self.image_grid_pinpoints, tile_size, tile_size // self.patch_size)

    def count_tiles(self, image_sizes: Sequence[Sequence[int]]) -> list[int]:
        """Number of squares of each image of a height and width; see [`count_tiles`]."""
        return count_tiles(image_sizes, self.image_grid_pinpoints, self.image_processor.tile_size)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    def square_image(self, image) -> Image.Image:
        """Square of an image for the student and the teachers; see [`square_image`]."""
        return self.image_processor.square_image(image)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """
        Args:
            images (image, `list` of images or `list` of such lists, *optional*):
                All images of the batch, in the order of their tokens in the text; [`open_image`] reads each.
            text (`str` or `list[str]`, *optional*):
                Prompts, with one image token for each image.
            kwargs:
                For the tokenizer and the image processor, such as `padding=True` and `return_tensors="pt"`.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`, and if
            there are images `pixel_values` and, with tiles, `image_sizes` as from [`HawaiiImageProcessor`]. With
            `return_text_replacement_offsets`, `image_sizes` is a list with an entry for each image, as vLLM needs it.

        Raises:
            ValueError: there are neither text nor images, the numbers of image tokens and images differ, or an image
                cannot be opened.
        """
        images = (None if images is None else self.image_processor.fetch_images(images)) or None
        if images is None and text is None:
            raise ValueError("Give images, text or both.")
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            num_tokens, num_images = sum(sample.count(self.image_token) for sample in text), len(images or [])
            if num_tokens != num_images:
                raise ValueError(
                    f"{num_tokens} {self.image_token} in the text but {num_images} images; give one image for each "
                    f"{self.image_token}, in order."
                )
            bos_token = self.tokenizer.bos_token
            if bos_token and "text_kwargs" not in kwargs and all(sample.startswith(bos_token) for sample in text):
                # Some chat templates write the BOS token, which the tokenizer would add again.
                kwargs.setdefault("add_special_tokens", False)
        if hasattr(ProcessorMixin, "get_text_with_replacements"):
            inputs = super().__call__(images=images, text=text, **kwargs)
            if kwargs.get("return_text_replacement_offsets") and "image_sizes" in inputs:
                # vLLM gives each image one entry of a list, but as many rows of a tensor as the image has tiles.
                inputs["image_sizes"] = list(inputs["image_sizes"])
            return inputs
        return self._call_before_5(images, text, **kwargs)

    def _call_before_5(self, images, text, **kwargs) -> BatchFeature:
        # In transformers 4.57 each processor joins text and images itself.
        from transformers.processing_utils import ProcessingKwargs

        merged = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        tensor_type = merged["text_kwargs"].pop("return_tensors", None)
        merged["images_kwargs"].pop("return_tensors", None)
        data = {}
        if images is not None:
            data.update(self.image_processor(images, **merged["images_kwargs"]))
        if text is not None:
            counts = iter(self.count_image_tokens([(image.height, image.width) for image in images or []]))
            num_image_tokens = [list(islice(counts, sample.count(self.image_token))) for sample in text]
            is_type_returned = merged["text_kwargs"].pop("return_mm_token_type_ids", False)
            expanded = [self._expand(sample, iter(numbers)) for sample, numbers in zip(text, num_image_tokens)]
            data.update(self.tokenizer(expanded, **merged["text_kwargs"]))
            self._check_special_mm_tokens(expanded, BatchFeature(data), modalities=["image"])
            if "offset_mapping" in data:
                # To the text that was given: `apply_chat_template` looks for the assistant's tokens there.
                data["offset_mapping"] = [
                    _offsets_before_expansion(offsets, sample, self.image_token, numbers)
                    for offsets, sample, numbers in zip(data["offset_mapping"], text, num_image_tokens)
                ]
            if is_type_returned:
                data["mm_token_type_ids"] = [
                    [int(token == self.image_token_id) for token in tokens] for tokens in data["input_ids"]
                ]
        return BatchFeature(data, tensor_type=tensor_type)

    def _expand(self, text: str, num_image_tokens: Iterator[int]) -> str:
        return re.sub(re.escape(self.image_token), lambda match: match[0] * next(num_image_tokens), text)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Text that replaces one image token."""
        size = (1, 1) if self.image_grid_pinpoints is None else image_inputs["image_sizes"][image_idx]
        (number,) = self.count_image_tokens([[int(side) for side in size]])
        return self.image_token * number

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=self.count_image_tokens(image_sizes), num_image_patches=self.count_tiles(image_sizes)
        )

    def _complete_folder(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)  # transformers 4.57 reads a separate file
        rewrite_tokenizer_config(folder / "tokenizer_config.json")
