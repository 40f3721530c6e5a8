"""Images and text to what the model takes: squares the image, expands its token, writes what any loader needs."""

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


# Stands for an image in the text, in every chat template; becomes one token for each of its patches.
IMAGE_TOKEN = "<image>"
IMAGE_ASPECT_RATIOS = ("pad", "crop")


def _flatten(images):
    """The images of an image, a list of images, or a list of lists of images."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in _flatten(item)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def _as_lists(conversation: list) -> list:
    """A conversation, or a list of them, in which a message that is a string has become a list of one text."""
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
    Opens an image by its path or address. A file keeps its mode, which transformers' `load_image` would not: to it,
    all of a 16-bit image that does not fit in 8 bits is white.

    Raises:
        ValueError: there is no such file, or it is no image.
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
    The square of an image that the student sees, at the image's own resolution; teachers must be shown the same.

    Args:
        image (`PIL.Image.Image`, array, tensor, path or URL):
            Orientation tags are obeyed, any mode becomes RGB.
        image_aspect_ratio (`str`):
            `"pad"` with the mean colour to its longer side (LLaVA-1.5's stage 2), or `"crop"` to its centre (stage 1).
        image_mean (`list[float]`):
            The mean colour, of values from zero to one.

    Returns:
        `PIL.Image.Image` whose sides are equal.

    Raises:
        ValueError: there is no such file, or it is no image.
    """
    if isinstance(image, str | Path):
        image = open_image(str(image))
    elif not isinstance(image, Image.Image):
        image = to_pil_image(image if image.ndim == 3 else image[None])
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits, in one of four modes. Pillow would make white of all that does not fit in 8.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    image = image.convert("RGB")
    width, height = image.size
    if width == height:
        return image
    if image_aspect_ratio == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    # floor, not round: LLaVA-1.5 makes its background colour so.
    background = tuple(int(255 * mean) for mean in image_mean)
    square = Image.new("RGB", (max(width, height),) * 2, background)
    square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
    return square


def rewrite_tokenizer_config(path: Path) -> None:
    """Says what transformers 5 saved in words that 4.57 understands and 5 still does."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class HawaiiProcessor(SavedWithCode, ProcessorMixin):
    r"""
    Joins an image processor and a tokenizer.

    Args:
        image_processor (`CLIPImageProcessor`):
            Resizes and normalises square images.
        tokenizer (`PreTrainedTokenizerFast`):
            Has `<image>` as a special token. Its padding side becomes the left, as generation needs.
        patch_size (`int`, *optional*, defaults to 14):
            Side of the encoder's patches, in pixels. It need not divide the image's.
        chat_template (`str`, *optional*):
            Jinja template of a conversation.
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image becomes a square: `"pad"` with the mean colour to its longer side (LLaVA-1.5's stage 2), or
            `"crop"` to its centre (stage 1).

    Raises:
        ValueError: the tokenizer lacks the image token, the image processor makes no squares, or `image_aspect_ratio`
            is unknown.
    """

    hub_auto_map = PROCESSOR_AUTO_MAP
    if not hasattr(ProcessorMixin, "get_attributes"):
        # transformers 4.57 reads the parts from these; 5.x from the signature.
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

        def apply_chat_template(self, conversation, *args, **kwargs):
            # It looks for images among a message's items, and takes the letters of a string for these.
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
        """Tokens that one image takes in the text: its patches."""
        size = self.image_processor.crop_size
        return (size["height"] // self.patch_size) * (size["width"] // self.patch_size)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def square_image(self, image) -> Image.Image:
        """What the student sees of an image, and teachers must be shown, see [`square_image`]."""
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
            `pixel_values` of shape `(num_images, num_channels, image_size, image_size)` where there are images.

        Raises:
            ValueError: neither text nor images, or another number of image tokens than of images.
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
                # The chat templates of some language models write what their tokenizer would put in front once more.
                kwargs.setdefault("add_special_tokens", False)
        images = images or None
        if hasattr(ProcessorMixin, "get_text_with_replacements"):
            return super().__call__(images=images, text=text, **kwargs)
        return self._call_before_5(images, text, **kwargs)

    def _call_before_5(self, images, text, **kwargs) -> BatchFeature:
        # transformers 4.57 leaves the joining of text and images to each processor.
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
        """What one image token becomes in the text."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def _complete_folder(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)  # transformers 4.57 looks for a file of its own.
        rewrite_tokenizer_config(folder / "tokenizer_config.json")
