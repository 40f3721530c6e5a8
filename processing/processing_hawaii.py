"""Processor: squares images, expands image tokens, and saves files that every supported loader can read."""

import json
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image
from transformers.processing_utils import MultiModalData

from ..configuration.configuration_hawaii import check_choice
from ..configuration.hub_hawaii import PROCESSOR_AUTO_MAP, SavedWithCode


# Placeholder of an image in text and in every chat template; expanded to one token per patch.
IMAGE_TOKEN = "<image>"
IMAGE_ASPECT_RATIOS = ("pad", "crop")


def _flatten(images):
    """Flattens an image, a list of images, or a list of lists of images."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in _flatten(item)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


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


def open_image(image: str) -> Image.Image:
    """
    Opens an image by path or URL. A file keeps its mode, unlike with transformers' `load_image`, which makes all
    values of a 16-bit image white that do not fit in 8 bits.

    Raises:
        ValueError: the file does not exist or is not an image.
    """
    if image.startswith(("http://", "https://", "data:")):
        return load_image(image)
    if not Path(image).is_file():
        raise ValueError(f"There is no image {image}.")
    try:
        opened = Image.open(image)
        opened.load()
    except UnidentifiedImageError:
        raise ValueError(f"{image} is no image that Pillow can read.") from None
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        raise ValueError(f"{image} is no image that Pillow can read ({error}).") from error
    return opened


def square_image(image, image_aspect_ratio: str, image_mean: list[float]) -> Image.Image:
    """
    Makes the square image for the student, at the image's resolution; teachers must get the same image.

    Args:
        image (`PIL.Image.Image`, array, tensor, path or URL):
            Orientation tags are applied, and any mode is converted to RGB.
        image_aspect_ratio (`str`):
            `"pad"` with the mean colour to its longer side (LLaVA-1.5's stage 2), or `"crop"` to its centre (stage 1).
        image_mean (`list[float]`):
            The mean colour, as values from zero to one.

    Returns:
        `PIL.Image.Image` whose sides are equal.

    Raises:
        ValueError: the file does not exist or is not an image.
    """
    if isinstance(image, str | Path):
        image = open_image(str(image))
    elif not isinstance(image, Image.Image):
        image = to_pil_image(image if image.ndim == 3 else image[None])
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits, in one of four modes. Pillow would make values white that do not fit in 8 bits.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    image = image.convert("RGB")
    width, height = image.size
    if width == height:
        return image
    if image_aspect_ratio == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    # Rounded down, as in LLaVA-1.5.
    background = tuple(int(255 * mean) for mean in image_mean)
    square = Image.new("RGB", (max(width, height),) * 2, background)
    square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
    return square


def rewrite_tokenizer_config(path: Path) -> None:
    """Rewrites the configuration that transformers 5 saved so that both 4.57 and 5 can read it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    for how_it_was_loaded in ("is_local", "local_files_only"):
        values.pop(how_it_was_loaded, None)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class HawaiiProcessor(SavedWithCode, ProcessorMixin):
    r"""
    Joins an image processor and a tokenizer.

    Args:
        image_processor (`CLIPImageProcessor`):
            Resizes and normalises square images.
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer with the special token `<image>`. Its padding side is set to left, for generation.
        patch_size (`int`, *optional*, defaults to 14):
            Side of the encoder's patches, in pixels. It need not divide the side of the image.
        chat_template (`str`, *optional*):
            Jinja template of a conversation.
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image becomes a square: `"pad"` with the mean colour to its longer side (LLaVA-1.5's stage 2), or
            `"crop"` to its centre (stage 1).

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

        def apply_chat_template(self, conversation, *args, **kwargs):
            # 4.57 looks for images among a message's items, and would iterate over the letters of a string.
            return super().apply_chat_template(_as_lists(conversation), *args, **kwargs)

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=14,
        chat_template=None,
        image_aspect_ratio="pad",
        **kwargs,
    ):
        check_choice("image_aspect_ratio", image_aspect_ratio, IMAGE_ASPECT_RATIOS)
        size = image_processor.crop_size
        if size["height"] != size["width"]:
            raise ValueError(
                f"The image processor makes images of {size['height']} x {size['width']} pixels; the encoder needs a "
                "square."
            )
        self.patch_size = patch_size
        self.image_aspect_ratio = image_aspect_ratio
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
    def num_image_tokens(self) -> int:
        """Number of tokens per image in the text: its patches."""
        size = self.image_processor.crop_size
        return (size["height"] // self.patch_size) * (size["width"] // self.patch_size)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def square_image(self, image) -> Image.Image:
        """Square of an image for the student and the teachers; see [`square_image`]."""
        return square_image(image, self.image_aspect_ratio, self.image_processor.image_mean)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """
        Args:
            images (image, `list` of images or `list` of such lists, *optional*):
                All images of the batch, in the order of their tokens in the text.
            text (`str` or `list[str]`, *optional*):
                Prompts, with one image token for each image.
            kwargs:
                For the tokenizer and the image processor, such as `padding=True` and `return_tensors="pt"`.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`, and
            `pixel_values` of shape `(num_images, num_channels, image_size, image_size)` if there are images.

        Raises:
            ValueError: there are neither text nor images, or the numbers of image tokens and images differ.
        """
        if images is None and text is None:
            raise ValueError("Give images, text or both.")
        if images is not None:
            images = [self.square_image(image) for image in _flatten(images)]
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
        images = images or None
        if hasattr(ProcessorMixin, "get_text_with_replacements"):
            return super().__call__(images=images, text=text, **kwargs)
        return self._call_before_5(images, text, **kwargs)

    def _call_before_5(self, images, text, **kwargs) -> BatchFeature:
        # In transformers 4.57 each processor joins text and images itself.
        from transformers.processing_utils import ProcessingKwargs

        merged = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        tensor_type = merged["text_kwargs"].pop("return_tensors", None)
        merged["images_kwargs"].pop("return_tensors", None)
        data = {}
        if text is not None:
            text = [sample.replace(self.image_token, self.image_token * self.num_image_tokens) for sample in text]
            merged["text_kwargs"].pop("return_mm_token_type_ids", None)
            data.update(self.tokenizer(text, **merged["text_kwargs"]))
        if images is not None:
            data.update(self.image_processor(images, **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=tensor_type)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Text that replaces one image token."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def _complete_folder(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)  # transformers 4.57 reads a separate file
        rewrite_tokenizer_config(folder / "tokenizer_config.json")
