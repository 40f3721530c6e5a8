"""HAWAII: the student encoder, a projector and a causal language model, with LLaVA's module names."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from ..configuration.configuration_hawaii import HawaiiConfig
from ..configuration.hub_hawaii import ModelSavedWithCode
from .generation_hawaii import GenerationWithImages
from .projector_hawaii import HawaiiMultiModalProjector
from .vision_hawaii import HawaiiVisionModel, HawaiiVisionOutput, init_vision_weights


# Shapes: B samples, T text tokens, I images, m patches of an image, D width of the language model.


@dataclass
class HawaiiModelOutput(BaseModelOutputWithPast):
    """
    Output of [`HawaiiModel`]: the language model's output and the projected image features.

    Args:
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`, *optional*):
            Features that replaced the image tokens in the input of the language model.
    """

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class HawaiiCausalLMOutput(ModelOutput):
    """
    Output of [`HawaiiForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Mean cross-entropy of the next token.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Scores of the next token.
        past_key_values (`Cache`, *optional*):
            Keys and values for the next steps.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            The language model's, if requested.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`, *optional*):
            Features that replaced the image tokens in the input of the language model.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


class HawaiiPreTrainedModel(ModelSavedWithCode, PreTrainedModel):
    config_class = HawaiiConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        # Only for the projector and the head; the encoder and the language model initialise themselves.
        init_vision_weights(module, self.config.vision_config.initializer_range)


class HawaiiModel(HawaiiPreTrainedModel):
    """Encoder, projector and language model, without the head. Engines load this class (`AutoModel`)."""

    def __init__(self, config: HawaiiConfig):
        super().__init__(config)
        self.vision_tower = HawaiiVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = HawaiiMultiModalProjector(config)
        # Without the option transformers may ask on the terminal whether to run code that the configuration names.
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs
    ) -> HawaiiVisionOutput | tuple:
        """
        Encodes and projects images. The class token, if there is one, is dropped before the projector.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, image_size, image_size)`):
                Normalised images.
            return_dict (`bool`, *optional*):
                Whether to return an output with names or a tuple; `config.return_dict` if not given.
            kwargs:
                Passed to [`HawaiiVisionModel`], such as `output_routing=True`.

        Returns:
            [`HawaiiVisionOutput`] whose `pooler_output`, `(num_images, num_patches, hidden_size)`, has one entry per
            image.
        """
        outputs = self.encode_images(pixel_values, **kwargs)
        return outputs if (self.config.return_dict if return_dict is None else return_dict) else outputs.to_tuple()

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> HawaiiVisionOutput:
        """Returns what `get_image_features` does, always as an output with names."""
        outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        patches = outputs.last_hidden_state[:, self.config.vision_config.num_prefix_tokens :]
        outputs.pooler_output = self.multi_modal_projector(patches)
        return outputs

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
        self, is_image: torch.Tensor, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """
        Replaces the embedding of the k-th image token with the k-th image feature.

        Surplus features are ignored, so that a batch of text may come with an image (in a sharded run every rank must
        run the encoder). There are at least as many features as image tokens.

        Args:
            is_image (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
                Output of `find_image_tokens`.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
                Embedded text, with one image token for each patch of each image.
            image_features (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`):
                Projected images, in the order of their tokens.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`.
        """
        # A table look-up: unlike with masked_scatter, neither it nor its gradient waits for the device.
        order = (is_image.flatten().cumsum(0) - 1).clamp(min=0).view_as(is_image)
        features = F.embedding(order, image_features.flatten(0, 1))  # (B, T, D)
        return torch.where(is_image.unsqueeze(-1), features.to(inputs_embeds), inputs_embeds)

    def embed_inputs(
        self, input_ids: torch.Tensor | None, pixel_values: torch.Tensor, inputs_embeds: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Runs the encoder once on all images of a batch and merges their features into the text.

        Args:
            input_ids, pixel_values, inputs_embeds:
                As for `forward`.

        Returns:
            The input embeddings, `(batch_size, sequence_length, hidden_size)`, and the projected images,
            `(num_images, num_patches, hidden_size)`.

        Raises:
            ValueError: the text's number of image tokens is not that of image features.
        """
        image_features = self.encode_images(pixel_values).pooler_output
        assert image_features is not None
        is_image = self.find_image_tokens(input_ids, inputs_embeds)
        self.check_image_tokens(is_image, len(image_features))
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        return self.merge_image_features(is_image, inputs_embeds, image_features), image_features

    def check_image_tokens(self, is_image: torch.Tensor, num_images: int) -> None:
        """
        Raises a `ValueError` unless there are as many image tokens as `num_images` images have patches. In training on
        an accelerator the device makes the check and raises an error, so that the host does not wait for it.
        """
        if torch.compiler.is_compiling() or is_image.device.type == "meta":
            return
        num_patches = self.config.vision_config.num_patches
        num_features = num_images * num_patches
        num_tokens = is_image.sum()
        if self.training and is_image.device.type != "cpu":
            # Reading the count would wait for the device, so the device checks it asynchronously.
            torch._assert_async(
                num_tokens == num_features, "other number of image tokens in the text than of features"
            )
        elif num_tokens != num_features:
            raise ValueError(
                f"{num_tokens} image tokens in the text but {num_features} image features "
                f"({num_images} images of {num_patches} patches). "
                "Let the processor make both: it puts one <image> for each image and expands it."
            )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        prompt_embeds: torch.FloatTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> HawaiiModelOutput | tuple:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Text, with one image token for each patch of each image.
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                All images of the batch, in the order of their tokens.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Alternative to `input_ids`. Images go where an embedding equals the image token's.
            prompt_embeds (`torch.FloatTensor` of shape `(batch_size, num_last_tokens, hidden_size)`, *optional*):
                Alternative to `pixel_values`, used by `generate`: embeddings of the last tokens with the images in
                their places.
            attention_mask, position_ids, past_key_values, kwargs:
                As for the language model.

        Returns:
            [`HawaiiModelOutput`]

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given, or the numbers of image tokens
                and image features differ.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, and not both.")
        image_features = None
        if pixel_values is not None:
            inputs_embeds, image_features = self.embed_inputs(input_ids, pixel_values, inputs_embeds)
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids) if prompt_embeds is None else prompt_embeds
        elif prompt_embeds is not None:  # PEFT has put virtual tokens before those of the prompt
            is_image = self.find_image_tokens(None, inputs_embeds).unsqueeze(-1)
            num_virtual = inputs_embeds.shape[1] - prompt_embeds.shape[1]
            inputs_embeds = torch.where(is_image, F.pad(prompt_embeds, (0, 0, num_virtual, 0)), inputs_embeds)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        output = HawaiiModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class HawaiiForConditionalGeneration(HawaiiPreTrainedModel, GenerationWithImages, GenerationMixin):
    """[`HawaiiModel`] with the language model's head: answers questions about images."""

    _tp_plan = {"lm_head": "colwise_rep"}

    def __init__(self, config: HawaiiConfig):
        super().__init__(config)
        self.model = HawaiiModel(config)
        # Looked up, because the name of the embeddings depends on the language model.
        name = next(name for name, module in self.named_modules() if module is self.get_input_embeddings())
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=config.head_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module):
        self.lm_head = value

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Like transformers' `save_pretrained`; also writes the code. A head that no longer equals the embeddings, as
        after PEFT has trained it, is saved as its own matrix although the configuration says that both are tied; so is
        a head that shares the embeddings' matrix although the configuration says that they are not tied.
        """
        name, is_tied = self._tied_weights_keys["lm_head.weight"], self.config.tie_word_embeddings
        head, embeddings = (part.get_parameter("weight") for part in (self.lm_head, self.get_input_embeddings()))
        if (given := kwargs.get("state_dict")) is not None:
            head, embeddings = given.get("lm_head.weight"), given.get(name)
        is_comparable = not any(weight is None or weight.device.type == "meta" for weight in (head, embeddings))
        is_shared = is_comparable and head.device == embeddings.device and head.data_ptr() == embeddings.data_ptr()
        if is_shared and not is_tied:
            kwargs["state_dict"] = {**(given or self.state_dict()), "lm_head.weight": head.detach().clone()}
        elif is_comparable and is_tied and not is_shared:
            self.config.tie_word_embeddings = torch.equal(head.cpu(), embeddings.cpu())
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.tie_word_embeddings = is_tied

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> HawaiiVisionOutput | tuple:
        """See [`HawaiiModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        prompt_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> HawaiiCausalLMOutput | tuple:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens to predict, not shifted; -100 is ignored.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions, or indices of positions, to compute logits for; 0 means all.
            input_ids, pixel_values, attention_mask, position_ids, past_key_values, inputs_embeds, prompt_embeds,
            kwargs:
                As for [`HawaiiModel`].

        Returns:
            [`HawaiiCausalLMOutput`]

        Example:

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor

        >>> folder = "runs/easy_vqa/hub"
        >>> model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
        >>> processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        >>> content = [
        ...     {"type": "image", "image": Image.new("RGB", (64, 64), "red")},
        ...     {"type": "text", "text": "what color is the shape?"},
        ... ]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": content}],
        ...     add_generation_prompt=True,
        ...     tokenize=True,
        ...     return_dict=True,
        ...     return_tensors="pt",
        ... )
        >>> answer = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        >>> print(processor.decode(answer, skip_special_tokens=True))
        ```
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            prompt_embeds=prompt_embeds,
            return_dict=True,
            **kwargs,
        )
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, positions])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        output = HawaiiCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
