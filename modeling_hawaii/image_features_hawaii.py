"""The features of images, and how they replace the image tokens of a text."""

from typing import Any

import torch
import torch.nn.functional as F

from ..configuration.tiles_hawaii import TileGrids, find_features, find_tile_grids
from .vision_hawaii import HawaiiVisionOutput


# Shapes: B samples, T text tokens, I images, m patches of a square, D width of the language model.


class ImageFeatures:
    """
    Methods of [`HawaiiModel`]. Each image is one square or, with `config.image_grid_pinpoints`, several tiles; all
    squares of a batch are encoded in one pass.
    """

    config: Any
    training: bool
    vision_tower: Any
    multi_modal_projector: Any
    image_newline: torch.Tensor
    get_input_embeddings: Any

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> HawaiiVisionOutput | tuple:
        """
        Encodes and projects images. The class token, if there is one, is dropped before the projector.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_tiles, num_channels, image_size, image_size)`):
                Normalised squares of all images; with tiles, also of shape
                `(num_images, max_num_tiles, num_channels, image_size, image_size)`, padded.
            image_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                Height and width of each image, in pixels; only needed with `config.image_grid_pinpoints`.
            return_dict (`bool`, *optional*):
                Whether to return an output with names or a tuple; `config.return_dict` if not given.
            kwargs:
                Passed to [`HawaiiVisionModel`], such as `output_routing=True`.

        Returns:
            [`HawaiiVisionOutput`] whose `pooler_output` has one entry per image: `(num_images, num_patches,
            hidden_size)` or, with tiles, a list of tensors of shape `(num_image_tokens, hidden_size)`. Their lengths
            are numbers on the host, so it waits for `image_sizes` if these are on an accelerator.

        Raises:
            ValueError: `image_sizes` are missing, or the number of squares is not theirs.
        """
        grids, num_tokens = self.find_grids(pixel_values, image_sizes), []
        if grids is not None:  # before the encoder runs, so that the host does not wait for it
            self._check_tiles(pixel_values, grids)
            num_tokens = grids.num_tokens.tolist()
        outputs = self.encode_images(pixel_values, **kwargs)
        if grids is not None:
            squares: Any = outputs.pooler_output
            features = self._select_features(squares, torch.arange(sum(num_tokens), device=squares.device), grids)
            outputs.pooler_output = list(features.split(num_tokens))  # pyright: ignore[reportAttributeAccessIssue]
        return outputs if (self.config.return_dict if return_dict is None else return_dict) else outputs.to_tuple()

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> HawaiiVisionOutput:
        """
        Encodes and projects squares: `pooler_output` has shape `(num_tiles, num_patches, hidden_size)`. Arguments as
        for `get_image_features`.
        """
        if pixel_values.ndim == 5 and self.config.image_grid_pinpoints is not None:
            pixel_values = pixel_values.flatten(0, 1)
        outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        patches = outputs.last_hidden_state[:, self.config.vision_config.num_prefix_tokens :]
        outputs.pooler_output = self.multi_modal_projector(patches)
        return outputs

    def find_grids(self, pixel_values: torch.Tensor | None, image_sizes: torch.Tensor | None) -> TileGrids | None:
        """
        Returns the grid of tiles of each image, or `None` if each is one square. Arguments as for
        `get_image_features`; without `pixel_values`, tiles are not padded.

        Raises:
            ValueError: `image_sizes` are missing.
        """
        pinpoints, vision = self.config.image_grid_pinpoints, self.config.vision_config
        if pinpoints is None:
            return None
        if image_sizes is None:
            raise ValueError(
                "This model cuts images into tiles and needs image_sizes, the height and width of each image; a "
                f"processor with its image_grid_pinpoints, {pinpoints}, returns them with the pixel_values."
            )
        if not isinstance(image_sizes, torch.Tensor):  # an array or a list, as LLaVA-NeXT accepts
            sizes = [torch.as_tensor(size) for size in image_sizes]
            image_sizes = torch.stack(sizes).to(self.image_newline.device)
        is_padded = pixel_values is not None and pixel_values.ndim == 5
        stored_tiles = pixel_values.shape[1] if is_padded else None
        return find_tile_grids(image_sizes, pinpoints, vision.image_size, vision.patches_a_side, stored_tiles)

    def find_image_tokens(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """
        Returns whether each position is one of an image, `(batch_size, sequence_length)`. Without `input_ids` these
        are the embeddings that equal the image token's.
        """
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        assert inputs_embeds is not None
        token = torch.full((1, 1), self.config.image_token_id, device=inputs_embeds.device)  # no copy from the host
        return (inputs_embeds == self.get_input_embeddings()(token)).all(dim=-1)

    def merge_image_features(
        self,
        is_image: torch.Tensor,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor,
        grids: TileGrids | None = None,
    ) -> torch.Tensor:
        """
        Replaces the embedding of the k-th image token with the k-th image feature.

        Surplus features are ignored, so that a batch of text may come with an image (in a sharded run every rank must
        run the encoder). There are at least as many features as image tokens.

        Args:
            is_image (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
                Output of `find_image_tokens`.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
                Embedded text, with one image token for each feature of each image.
            image_features (`torch.FloatTensor` of shape `(num_tiles, num_patches, hidden_size)`):
                Projected squares of all images, in the order of their tokens.
            grids (`TileGrids`, *optional*):
                Output of `find_grids`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`.
        """
        order = (is_image.flatten().cumsum(0) - 1).clamp(min=0).view_as(is_image)
        features = self._select_features(image_features, order, grids)  # (B, T, D)
        return torch.where(is_image.unsqueeze(-1), features.to(inputs_embeds), inputs_embeds)

    def _select_features(
        self, image_features: torch.Tensor, order: torch.Tensor, grids: TileGrids | None
    ) -> torch.Tensor:
        """Returns the features of the image tokens `order`, `(*order.shape, hidden_size)`."""
        # A table look-up: unlike with masked_scatter, neither it nor its gradient waits for the device.
        rows = image_features.flatten(0, 1)
        if grids is None:
            return F.embedding(order, rows)
        index, is_newline = find_features(grids, order)
        features = F.embedding(index.clamp(max=len(rows) - 1), rows)
        return torch.where(is_newline.unsqueeze(-1), self.image_newline.to(features), features)

    def embed_inputs(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Runs the encoder once on all images of a batch and merges their features into the text.

        Args:
            input_ids, pixel_values, image_sizes, inputs_embeds:
                As for `forward`.

        Returns:
            The input embeddings, `(batch_size, sequence_length, hidden_size)`, and the projected squares,
            `(num_tiles, num_patches, hidden_size)`.

        Raises:
            ValueError: the text's number of image tokens is not that of image features, or the number of squares is
                not that of the tiles of `image_sizes`.
        """
        grids = self.find_grids(pixel_values, image_sizes)
        is_image = self.find_image_tokens(input_ids, inputs_embeds)
        self.check_image_tokens(is_image, pixel_values, grids)
        image_features = self.encode_images(pixel_values).pooler_output
        assert image_features is not None
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        return self.merge_image_features(is_image, inputs_embeds, image_features, grids), image_features

    def check_image_tokens(
        self, is_image: torch.Tensor, pixel_values: torch.Tensor | None, grids: TileGrids | None = None
    ) -> None:
        """
        Raises a `ValueError` unless there are as many image tokens as the images have features. In training on an
        accelerator the device makes the check and raises an error, so that the host does not wait for it. Arguments as
        for `find_grids` and `merge_image_features`.
        """
        if torch.compiler.is_compiling() or is_image.device.type == "meta":
            return
        num_patches = self.config.vision_config.num_patches
        num_images = 0 if pixel_values is None else len(pixel_values)
        num_tokens = is_image.sum()
        num_features = num_images * num_patches if grids is None else grids.num_tokens.sum()
        if self.training and is_image.device.type != "cpu":
            # Reading the count would wait for the device, so the device checks it asynchronously.
            torch._assert_async(
                num_tokens == num_features, "other number of image tokens in the text than of features"
            )
        elif num_tokens != num_features:
            shapes = f"{num_images} images of {num_patches} patches" if grids is None else f"{len(grids.rows)} images"
            raise ValueError(
                f"{num_tokens} image tokens in the text but {num_features} image features ({shapes}). "
                "Let the processor make both: it puts one <image> for each image and expands it, with the model's "
                f"image_grid_pinpoints, which are {self.config.image_grid_pinpoints}."
            )
        if grids is not None and pixel_values is not None:
            self._check_tiles(pixel_values, grids)

    def _check_tiles(self, pixel_values: torch.Tensor, grids: TileGrids) -> None:
        """Checks that `pixel_values` has the tiles of `grids`, as `check_image_tokens` does."""
        num_tiles = grids.num_tiles
        if pixel_values.ndim == 5:
            is_right = (num_tiles <= pixel_values.shape[1]).all() & (len(num_tiles) == len(pixel_values))
        else:
            is_right = num_tiles.sum() == len(pixel_values)
        if self.training and num_tiles.device.type != "cpu":
            torch._assert_async(is_right, "other number of tiles in pixel_values than of the grids of image_sizes")
        elif not is_right:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)} but image_sizes are those of images with "
                f"{num_tiles.tolist()} tiles. Let the processor make both, with the model's image_grid_pinpoints, "
                f"which are {self.config.image_grid_pinpoints}."
            )
