"""Image processor: squares, resizes and normalises images, the same way through every Auto class."""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import get_size_dict


try:
    from transformers import CLIPImageProcessorPil
except ImportError:  # transformers 4.57, where the one that needs no torchvision has the other's name
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil

from ..configuration.configuration_hawaii import check_choice
from ..configuration.hub_hawaii import SavedWithCode
from ..configuration.tiles_hawaii import assemble_maps, check_grid_pinpoints, find_tile_grids
from .images_hawaii import IMAGE_ASPECT_RATIOS, flatten_images, open_image, square_image, to_planes
from .tile_images_hawaii import cut_tiles


def _is_floating(image: Any) -> bool:
    """Whether an image is an array or a tensor of floating-point values up to 1."""
    kind = getattr(getattr(image, "dtype", None), "kind", None) or str(getattr(image, "dtype", ""))
    return (kind == "f" or "float" in kind) and float(image.max()) < 1.01


@lru_cache(maxsize=16)
def _values_of_levels(**settings) -> torch.Tensor:
    """What CLIP's image processor makes of each level of each colour, of shape `(3, 256)`."""
    levels = Image.frombytes("L", (256, 1), bytes(range(256))).convert("RGB")
    clip = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **settings)
    return clip(levels, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0, :, 0]


class HawaiiImageProcessor(SavedWithCode, CLIPImageProcessorPil):
    r"""
    CLIP's image processor, of images that it makes square before they are resized, or cuts into square tiles.

    Args:
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image becomes a square: `"pad"` with the mean colour to its longer side (LLaVA-1.5's stage 2), or
            `"crop"` to its centre (stage 1). Tiles do not depend on it.
        image_grid_pinpoints (`list[list[int]]`, *optional*):
            Heights and widths of the grids of tiles to choose from, in pixels, as in LLaVA-NeXT; see [`cut_tiles`].
            `None` makes each image one square.
        kwargs:
            As for [`CLIPImageProcessor`].

    Raises:
        ValueError: `image_aspect_ratio` is unknown, the size is not that of a square, or the pinpoints are not
            multiples of it.
    """

    hub_auto_map = {"AutoImageProcessor": "image_processing_hawaii.HawaiiImageProcessor"}

    def __init__(
        self,
        image_aspect_ratio: str = "pad",
        image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ):
        check_choice("image_aspect_ratio", image_aspect_ratio, IMAGE_ASPECT_RATIOS)
        super().__init__(**kwargs)
        self.image_aspect_ratio = image_aspect_ratio
        size = self.crop_size
        if size["height"] != size["width"]:
            raise ValueError(
                f"The image processor makes images of {size['height']} x {size['width']} pixels; the encoder needs a "
                "square."
            )
        self.image_grid_pinpoints = image_grid_pinpoints

    @property
    def image_grid_pinpoints(self) -> list[list[int]] | None:
        """Grids of tiles to choose from; `None` if each image is one square."""
        return self._image_grid_pinpoints

    @image_grid_pinpoints.setter
    def image_grid_pinpoints(self, value: Sequence[Sequence[int]] | None) -> None:
        # Checked here, because loading sets an option that is given to it after the image processor is made.
        self._image_grid_pinpoints = check_grid_pinpoints(value, self.tile_size)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values"] if self.image_grid_pinpoints is None else ["pixel_values", "image_sizes"]

    @property
    def tile_size(self) -> int:
        """Side of the squares, in pixels."""
        return self.crop_size["height"]

    def fetch_images(self, image_url_or_urls: Any) -> list[Image.Image]:
        """Opens the images of an image, a list or a list of lists; see [`open_image`]."""
        return [open_image(image) for image in flatten_images(image_url_or_urls)]

    def square_image(self, image: Any, side: int | None = None, resample: int | None = None) -> Image.Image:
        """Square of an image; see [`square_image`]. The default filter is the image processor's."""
        resample = self.resample if resample is None else resample
        return square_image(image, self.image_aspect_ratio, self.image_mean, side, resample)

    def square_images(self, image: Any, side: int | None = None, resample: int | None = None) -> list[Image.Image]:
        """
        All squares of an image: its tiles, see [`cut_tiles`], or without `image_grid_pinpoints` the one of
        [`square_image`].
        """
        if self.image_grid_pinpoints is None:
            return [self.square_image(image, side, resample)]
        resample = self.resample if resample is None else resample
        return cut_tiles(open_image(image), self.image_grid_pinpoints, self.tile_size, resample, side)

    def assemble_maps(self, values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """
        Makes a map of each image from values of the patches of its squares.

        Args:
            values (`torch.Tensor` of shape `(num_tiles, num_patches, ...)`):
                Values of the patches of all squares, of any encoder with square patches.
            image_sizes (`torch.LongTensor` of shape `(num_images, 2)`):
                Height and width of each image, in pixels.

        Returns:
            `list[torch.Tensor]`: One map per image, `(height, width, ...)`: with tiles that of the whole image, see
            [`assemble_maps`], otherwise that of its square.
        """
        side = isqrt(values.shape[1])
        if self.image_grid_pinpoints is None:
            return list(values.unflatten(1, (side, side)))
        return assemble_maps(values, find_tile_grids(image_sizes, self.image_grid_pinpoints, self.tile_size, side))

    def _normalize(self, square: Image.Image) -> torch.Tensor:
        """Rescales and normalises a square as CLIP's image processor does: looked up, since there are 256 levels."""
        values = _values_of_levels(
            do_rescale=self.do_rescale,
            rescale_factor=self.rescale_factor,
            do_normalize=self.do_normalize,
            image_mean=tuple(self.image_mean),
            image_std=tuple(self.image_std),
        )
        result = torch.empty(3, square.height * square.width, dtype=values.dtype)
        for row, color, plane in zip(result, values, to_planes(square).flatten(1)):
            torch.index_select(color, 0, plane.int(), out=row)
        return result.view(3, square.height, square.width)

    def preprocess(self, images: Any, *args, do_resize=None, size=None, resample=None, **kwargs):
        """
        Prepares images; every form that [`open_image`] reads is one.

        Args:
            images (image, `list` of images or `list` of such lists):
                The images.
            do_resize, size, resample, args, kwargs:
                As for [`CLIPImageProcessor`]. Tiles have the size of the processor and are always resized.

        Returns:
            [`BatchFeature`] with `pixel_values` of shape `(num_images, num_channels, image_size, image_size)`. With
            tiles, the first dimension is all tiles of all images, and `image_sizes` of shape `(num_images, 2)` has the
            height and width of each image.

        Raises:
            ValueError: there is no image, one cannot be opened, or `size` is not that of a square.
        """
        images = flatten_images(images)
        if not images:
            raise ValueError("There are no images; give one or more.")
        side = None
        if self.image_grid_pinpoints is not None:
            side = self.tile_size
        elif self.do_resize if do_resize is None else do_resize:
            sides = set(dict(get_size_dict(self.size if size is None else size)).values()) - {None}
            if len(sides) != 1:
                raise ValueError(f"size is {size}; it must be that of a square.")
            side = sides.pop()
        sizes, squares = [], []
        for image in images:
            opened = open_image(image)
            sizes.append([opened.height, opened.width])
            squares += self.square_images(opened, side, resample)
        is_cropped = self.do_center_crop and (self.crop_size["height"], self.crop_size["width"]) != (side, side)
        if not args and kwargs == {"return_tensors": "pt"} and side is not None and not is_cropped:
            pixel_values = torch.stack([self._normalize(square) for square in squares])
            return self._add_sizes(BatchFeature({"pixel_values": pixel_values}), sizes, "pt")
        # transformers 4.57 would take an image of 3 x 3 pixels for one whose colours come first.
        kwargs["input_data_format"] = "channels_last"
        if kwargs.get("do_rescale") is False and all(_is_floating(image) for image in images):
            # Values from 0 to 1 that are not to be rescaled; the squares have levels from 0 to 255.
            kwargs |= {"do_rescale": True, "rescale_factor": 1 / 255}
        features = super().preprocess(squares, *args, do_resize=False, **kwargs)
        return self._add_sizes(features, sizes, kwargs.get("return_tensors"))

    def _add_sizes(self, features: BatchFeature, sizes: list[list[int]], tensor_type: Any) -> BatchFeature:
        if self.image_grid_pinpoints is not None:
            features.update(BatchFeature({"image_sizes": sizes}, tensor_type=tensor_type))
        return features

    def to_dict(self) -> dict[str, Any]:
        values = {**super().to_dict(), "image_grid_pinpoints": self.image_grid_pinpoints}
        values.pop("_image_grid_pinpoints", None)
        return {**values, "auto_map": dict(self.hub_auto_map)}
