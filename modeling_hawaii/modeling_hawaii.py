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
from .image_features_hawaii import ImageFeatures
from .projector_hawaii import HawaiiMultiModalProjector
from .vision_hawaii import HawaiiVisionModel, HawaiiVisionOutput, init_vision_weights


@dataclass
class HawaiiModelOutput(BaseModelOutputWithPast):
    """
    Output of [`HawaiiModel`]: the language model's output and the projected image features.

    Args:
        image_hidden_states (`torch.FloatTensor` of shape `(num_tiles, num_patches, hidden_size)`, *optional*):
            Projected features of all squares, which replaced the image tokens in the input of the language model.
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
        image_hidden_states (`torch.FloatTensor` of shape `(num_tiles, num_patches, hidden_size)`, *optional*):
            Projected features of all squares, which replaced the image tokens in the input of the language model.
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


class HawaiiModel(HawaiiPreTrainedModel, ImageFeatures):
    """
    Encoder, projector and language model, without the head. Engines load this class (`AutoModel`).

    Attributes:
        image_newline (`torch.nn.Parameter` of shape `(hidden_size,)`):
            Embedding that ends each row of a picture's tiles; only with `config.image_grid_pinpoints`.
    """

    def __init__(self, config: HawaiiConfig):
        super().__init__(config)
        self.vision_tower = HawaiiVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = HawaiiMultiModalProjector(config)
        # Without the option transformers may ask on the terminal whether to run code that the configuration names.
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        if config.image_grid_pinpoints is not None:
            self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self and self.config.image_grid_pinpoints is not None:
            nn.init.normal_(self.image_newline, std=self.config.text_config.hidden_size**-0.5)  # as in LLaVA-NeXT

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_sizes: torch.LongTensor | None = None,
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
                Text, with one image token for each feature of each image.
            pixel_values (`torch.FloatTensor` of shape `(num_tiles, num_channels, height, width)`, *optional*):
                All squares of all images of the batch, in the order of their tokens; with tiles, also of shape
                `(num_images, max_num_tiles, num_channels, height, width)`, padded.
            image_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                Height and width of each image, in pixels; only needed with `config.image_grid_pinpoints`.
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
            inputs_embeds, image_features = self.embed_inputs(input_ids, pixel_values, image_sizes, inputs_embeds)
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

    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None = None, **kwargs
    ) -> HawaiiVisionOutput | tuple:
        """See [`ImageFeatures.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_sizes, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_sizes: torch.LongTensor | None = None,
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
            input_ids, pixel_values, image_sizes, attention_mask, position_ids, past_key_values, inputs_embeds,
            prompt_embeds, kwargs:
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
            image_sizes=image_sizes,
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
