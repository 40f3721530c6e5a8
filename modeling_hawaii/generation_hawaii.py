"""Generation of answers to prompts with images, each of which is encoded once."""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.generation import GenerationConfig


class GenerationWithImages:
    """
    Extends transformers' `GenerationMixin`, which must follow it among the bases of a class that has a [`HawaiiModel`]
    as `model`.
    """

    model: Any
    config: Any

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Adds the part of `prompt_embeds`, `(batch_size, num_prompt_tokens, hidden_size)`, that belongs to the tokens of
        the next forward pass; cached tokens that were not passed again count as prompt. `pixel_values` and
        `image_sizes` are ignored: they are for an assistant, which encodes the images itself.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if prompt_embeds is None or inputs.get("input_ids") is None:
            return inputs
        # The pass ends with the last token of the mask, which covers cached tokens too, or with the last of all.
        tokens, mask, cache = inputs["input_ids"], kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if mask is not None and mask.ndim == 2:
            end = mask.shape[1]
        elif cache is None:
            end = input_ids.shape[1]
        elif kwargs.get("is_first_iteration"):  # transformers 5 drops a mask of ones
            end = int(cache.get_seq_length()) + tokens.shape[1]
        else:
            return inputs
        embeds = prompt_embeds[:, end - tokens.shape[1] : end]
        if embeds.shape[1]:
            # Drafted tokens follow the prompt in assisted decoding, and the answer if there is no cache.
            others = self.model.get_input_embeddings()(tokens[:, embeds.shape[1] :])
            inputs["prompt_embeds"] = torch.cat([embeds, others], dim=1)
        return inputs

    def _get_candidate_generator(self, *, model_kwargs, assistant_model=None, **kwargs):
        """Keeps the images from an assistant that reads text only."""
        if assistant_model is not None and assistant_model.config.model_type != self.config.model_type:
            images = ("prompt_embeds", "pixel_values", "image_sizes")
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in images}
        return super()._get_candidate_generator(  # pyright: ignore[reportAttributeAccessIssue]
            model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Like transformers' `generate`. Each image is encoded once, before decoding, for any number of beams or returned
        sequences, and not at all if `past_key_values` contain all images.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Padded on the left; may be passed as `input_ids`.
            generation_config, kwargs:
                As for transformers' `generate`.
            pixel_values (`torch.FloatTensor` of shape `(num_tiles, num_channels, height, width)`, *optional*):
                All squares of all images of the batch, in the order of their tokens.
            image_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                Height and width of each image, in pixels; only needed with `config.image_grid_pinpoints`.

        Raises:
            ValueError: the numbers of image tokens and features differ.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        kwargs.pop("prompt_embeds", None)  # of the model that this one assists
        inputs_embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        if pixel_values is not None and inputs_embeds is not None:
            kwargs["inputs_embeds"], _ = self.model.embed_inputs(None, pixel_values, image_sizes, inputs_embeds)
        elif pixel_values is not None:
            if input_ids is None:
                raise ValueError("pixel_values need input_ids or inputs_embeds, which say where the images go.")
            num_tokens, mask = input_ids.shape[1], kwargs.get("attention_mask")
            # Cached tokens that are not passed again; the mask covers them.
            num_left_out = 0 if mask is None or mask.ndim != 2 else max(0, mask.shape[1] - num_tokens)
            num_cached = 0 if cache is None else max(0, int(cache.get_seq_length()) - num_left_out)
            is_image = self.model.find_image_tokens(input_ids, None)
            if not num_cached or num_cached >= num_tokens or is_image[:, num_cached:].any():
                prompt_embeds, _ = self.model.embed_inputs(input_ids, pixel_values, image_sizes)
                kwargs["prompt_embeds"] = F.pad(prompt_embeds, (0, 0, num_left_out, 0))
            else:
                grids = self.model.find_grids(pixel_values, image_sizes)
                self.model.check_image_tokens(is_image, pixel_values, grids)
            if kwargs.get("assistant_model") is not None:
                kwargs |= {"pixel_values": pixel_values, "image_sizes": image_sizes}
        elif input_ids is not None and inputs_embeds is None and cache is None:
            # Without images they would be embedded as words.
            self.model.check_image_tokens(self.model.find_image_tokens(input_ids, None), None)
        return super().generate(input_ids, generation_config, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
