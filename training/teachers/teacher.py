"""A frozen vision expert: one shared uint8 image in, a grid of features out."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .errors import TeacherError, check_layer, in_one_sentence


# What a model is shown at once, whatever the batch: memory is the student's, and of one image of 1024 x 1024 pixels
# the attention of SAM alone takes half a GiB in a layer (16 heads x 4096 x 4096 cells x 2 bytes).
PIXELS_AT_ONCE = 8 * 1024**2
# Shapes: I images, S side of the shared image, h x w grid, P = h * w cells, C channels.


def resize_images(images: torch.Tensor, size: int, resample: str) -> torch.Tensor:
    """
    Resizes squares as Pillow resizes bytes: antialiased, first along the rows and then along the columns, cut off and
    rounded to whole levels after each. Where Pillow comes to lie half way between two levels, one of the two may be
    another than here: a value differs by two levels at most, and for most sizes fewer than one in a hundred differ.

    Args:
        images (`torch.ByteTensor` of shape `(num_images, channels, side, side)`):
            Images, on any device.
        size (`int`):
            Side wanted.
        resample (`str`):
            `"bicubic"` or `"bilinear"`.

    Returns:
        `torch.FloatTensor` of shape `(num_images, channels, size, size)`, whole levels from 0 to 255.
    """
    pixels = images.float()  # a copy, so what is done in place below is done to nobody's bytes
    if images.shape[-1] == size:
        return pixels
    for shape in ((images.shape[-2], size), (size, size)):
        pixels = F.interpolate(pixels, size=shape, mode=resample, antialias=True)
        pixels = pixels.clamp_(0, 255).add_(0.5).floor_()  # halves go up, as in Pillow
    return pixels


def num_class_tokens(config) -> set[int]:
    """How many tokens may come before those of the patches, by what a model's own configuration says."""
    # Not every configuration has registers. RADIO counts all of its tokens, Pixio those of its class; DeiT has one for
    # distillation.
    if hasattr(config, "num_summary_tokens"):
        return {0, config.num_summary_tokens}
    num_classes = 2 if config.model_type == "deit" else getattr(config, "n_cls_tokens", 1)
    return {0, num_classes + getattr(config, "num_register_tokens", 0)}


def own_patch_size(config) -> int | None:
    """Side of the square that a token sees, in pixels, where a model's own configuration says it."""
    if config.model_type == "dinov3_convnext":
        return 2 ** (len(config.hidden_sizes) + 1)  # its first stage sees 4 pixels, each further one twice as many
    size = getattr(config, "patch_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}  # InternVL's is a list of two
    return sides.pop() if len(sides) == 1 else None


def own_image_size(config) -> int | None:
    """Side of the images a model was made for, where its own configuration says it."""
    size = getattr(config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


class Teacher:
    """
    A frozen vision expert. It is no `nn.Module`, so that nothing that trains or saves can come to hold it.

    What the model is shown is what its official image processor shows it of a square, to float rounding; where images
    are resized, but for the few levels that [`resize_images`] tells of.

    Args:
        name (`str`):
            What its losses are logged as.
        model (`nn.Module`):
            A transformers vision model; it is frozen here. On the meta device, the grid and what it costs can be told.
        image_size (`int`):
            Side of the image it is shown, in pixels.
        image_mean, image_std (`list[float]`):
            Its normalisation.
        layer (`int`, *optional*):
            Which of its `hidden_states` is taught, of a backbone which of its feature maps; the last if not given.
        resample (`str`, *optional*, defaults to `"bicubic"`):
            How images are resized, `"bicubic"` or `"bilinear"`.

    Attributes:
        grid (`tuple[int, int, int]`):
            Height, width and channels of its features.

    Raises:
        ValueError: the model gives no grid that can be known.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        image_size: int,
        image_mean: list[float],
        image_std: list[float],
        layer: int | None = None,
        resample: str = "bicubic",
    ):
        self.name = name
        # Of a model's parts its class declares nothing.
        self.model: Any = model.eval().requires_grad_(False)
        self.image_size = image_size
        self.layer = layer
        self.resample = resample
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.mean = torch.tensor(image_mean, device=self.device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(image_std, device=self.device).view(1, -1, 1, 1) * 255
        self.prepare()
        blank = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=self.device)
        shown = f"an image of {image_size} x {image_size} pixels"
        with in_one_sentence(f"Teacher {name} ({type(model).__name__}) cannot be shown {shown}"):
            height, width, channels = self(blank).shape[1:]
        self.grid = (height, width, channels)

    def prepare(self) -> None:
        """Computes once what every call needs."""
        self.options = {"output_hidden_states": True} if self.layer is not None else {}
        arguments = inspect.signature(self.model.forward).parameters
        is_other_size = self.made_for() not in (None, self.image_size)
        if is_other_size and "interpolate_pos_encoding" in arguments:
            self.options["interpolate_pos_encoding"] = True

    def made_for(self) -> int | None:
        """Side of the images its model was made for, where that is known."""
        return own_image_size(self.model.config)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Runs in the teacher's own precision, whatever the caller's autocast; waits for the device nowhere.

        Args:
            images (`torch.ByteTensor` of shape `(num_images, 3, side, side)`):
                The student's own squares, on the teacher's device.

        Returns:
            `torch.FloatTensor` of shape `(num_images, height, width, channels)`, without gradient.
        """
        with self._own_precision():
            chunks = images.split(max(1, PIXELS_AT_ONCE // self.image_size**2))
            features = [self.features(self.preprocess(chunk)) for chunk in chunks]
        return features[0] if len(features) == 1 else torch.cat(features)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes to the teacher's resolution and normalises, on the device: what its model takes."""
        pixels = resize_images(images, self.image_size, self.resample)
        return pixels.sub_(self.mean).div_(self.std).to(self.dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the model on what [`Teacher.preprocess`] gives, and reads its features as `(I, h, w, C)`."""
        features = self.taught(self.model(pixels, **self.options))
        return self._as_map(features) if features.ndim == 4 else self._tokens_as_grid(features)

    def taught(self, outputs) -> torch.Tensor:
        """Of all that the model gives, the layer that teaches: tokens or a map."""
        if "feature_maps" in outputs:
            return self.choose(outputs.feature_maps, -1 if self.layer is None else self.layer)
        if self.layer is not None:
            name = "reshaped_hidden_states" if "reshaped_hidden_states" in outputs else "hidden_states"
            return self.choose(outputs[name], self.layer)
        if "fpn_hidden_states" in outputs:
            return outputs.fpn_hidden_states[-1]  # what SAM 2's neck gives its decoder
        return outputs.last_hidden_state

    def choose(self, layers: tuple, layer: int) -> torch.Tensor:
        """One of a model's layers, or an error that says how many there are."""
        check_layer(self.name, layer, len(layers))
        return layers[layer]

    def num_patches_a_side(self, patch_size: int) -> int:
        """
        How many patches stand along a side, or an error where they do not cover it. At the size that its model was
        made for they need not: SigLIP so400m never sees the last 6 of its 384 pixels, as a teacher or as a student.
        """
        if self.image_size % patch_size and self.image_size != self.made_for():
            raise self.unknown_grid(f"its patches of {patch_size} pixels do not cover {self.image_size} pixels")
        return self.image_size // patch_size

    def _own_precision(self) -> AbstractContextManager:
        device = self.device.type
        return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()

    def _as_map(self, features: torch.Tensor) -> torch.Tensor:
        height, width, last = features.shape[1:]
        # An image is square, and so is every map of it: which of the sizes are equal tells where the channels are.
        # Were all three equal, it is a map as transformers gives them, channels first.
        if width == last:
            return features.permute(0, 2, 3, 1)
        if height == width:
            return features
        raise self.unknown_grid(f"it gives {height} x {width} x {last}, where channels x side x side would be a map")

    def _tokens_as_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        patch_size = own_patch_size(self.model.config)
        if patch_size is None:
            raise self.unknown_grid(f"it gives {tokens.shape[1]} tokens, and its configuration names no patch size")
        side = self.num_patches_a_side(patch_size)
        num_others = tokens.shape[1] - side * side
        allowed = num_class_tokens(self.model.config)
        if num_others not in allowed:
            raise self.unknown_grid(
                f"it gives {tokens.shape[1]} tokens, which is neither {side} x {side} nor that and {max(allowed)} "
                "class and register tokens"
            )
        return tokens[:, num_others:].unflatten(1, (side, side))

    def unknown_grid(self, problem: str) -> TeacherError:
        """What is wrong with features whose places are not known, and the ways out."""
        return TeacherError(
            f"The grid of teacher {self.name} ({type(self.model).__name__}) is unknown: {problem}. Give it an "
            "image_size that is a multiple of its patch size, or name a layer whose features are a map (layer: -1 for "
            "Swin)."
        )
