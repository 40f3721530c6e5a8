"""The student: a vision transformer with MoLA that ends at the layer whose features the language model reads."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput

from ..configuration.configuration_hawaii import HawaiiVisionConfig
from ..configuration.hub_hawaii import ModelSavedWithCode
from .mixture_lora_hawaii import MixtureOfLoraRouting, RouterLinear, StackedLora, forced_adapter_gate


# Shapes: B batch, m patches (row by row), P tokens (the class token, if there is one, and the patches),
# D width, H heads, N adapters, L layers.


@dataclass
class HawaiiVisionOutput(ModelOutput):
    """
    Output of [`HawaiiVisionModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_prefix_tokens + num_patches, hidden_size)`):
            Output of the last layer, without a final norm; the class token, if there is one, comes first.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, num_patches, text_hidden_size)`, *optional*):
            Projected features; set by `get_image_features`.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
            The embeddings and the output of each layer, each with the shape of `last_hidden_state`.
        attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True`):
            Attention weights of each layer, `(batch_size, num_heads, num_tokens, num_tokens)`.
        router_probabilities (`torch.FloatTensor`, *optional*, returned with `output_routing=True`):
            Of shape `(num_layers, batch_size, num_prefix_tokens + num_patches, num_adapters)`: each layer's
            probabilities of the teacher-specific, then of the general adapters. Each bank sums to one, and its most
            likely adapter acted.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    router_probabilities: torch.FloatTensor | None = None


class HawaiiVisionEmbeddings(nn.Module):
    def __init__(self, config: HawaiiVisionConfig):
        super().__init__()
        self.image_size = config.image_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.has_patch_bias,
        )
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if config.has_class_token else None
        num_tokens = config.num_prefix_tokens + config.num_patches
        self.position_embedding = nn.Parameter(torch.empty(num_tokens, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"The images are {height} x {width} pixels but this encoder sees {self.image_size} x "
                f"{self.image_size}; prepare them with the checkpoint's own processor."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        tokens = patches.flatten(2).transpose(1, 2)  # (B, m, D)
        if self.class_embedding is not None:
            class_token = self.class_embedding.expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)  # (B, P, D)
        return tokens + self.position_embedding


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Maps three tensors `(B, H, P, D / H)` to `(B, P, H, D / H)` and the weights, as transformers' kernels do."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling  # (B, H, P, P)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class HawaiiVisionAttention(nn.Module):
    """Self-attention. One fused projection: faster, and PEFT's usual names (`q_proj`) then match only the LLM."""

    def __init__(self, config: HawaiiVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)  # (3, B, H, P, D / H)
        )
        attention: Callable = eager_attention_forward
        # The fast kernels never form the weights.
        if self.config._attn_implementation != "eager" and not output_attentions:
            attention = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attended, weights = attention(
            self,
            query,
            key,
            value,
            None,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out(attended.flatten(2)), weights if output_attentions else None


class HawaiiVisionFeedForward(nn.Module):
    """The feed-forward layer F with its adapters: `F*(h) = F(h) + a_T(h) + a_G(h)` (eq. 2)."""

    def __init__(self, config: HawaiiVisionConfig):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.has_adapters = config.num_teacher_adapters + config.num_general_adapters > 0
        self.is_placed_beside_linears = config.adapter_placement == "linear"
        if not self.has_adapters:
            return
        self.routing = MixtureOfLoraRouting(config)
        if self.is_placed_beside_linears:
            self.fc1_adapters = StackedLora(config, config.hidden_size, config.intermediate_size)
            self.fc2_adapters = StackedLora(config, config.intermediate_size, config.hidden_size)
        else:
            self.adapters = StackedLora(config, config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, forced_gate: torch.Tensor | None, is_routed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Maps `(batch_size, num_tokens, hidden_size)` to the same shape; see [`MixtureOfLoraRouting`] for the other
        arguments. Also returns the routers' probabilities, `(batch_size, num_tokens, num_adapters)`, or `None` without
        adapters.
        """
        if not self.has_adapters:
            return self.fc2(self.activation(self.fc1(hidden_states))), None
        gate, probabilities = self.routing(hidden_states, forced_gate, is_routed)
        if self.is_placed_beside_linears:
            inner = self.activation(self.fc1(hidden_states) + self.fc1_adapters(hidden_states, gate))
            return self.fc2(inner) + self.fc2_adapters(inner, gate), probabilities
        outer = self.fc2(self.activation(self.fc1(hidden_states)))
        return outer + self.adapters(hidden_states, gate), probabilities


class HawaiiVisionLayer(GradientCheckpointingLayer):
    def __init__(self, config: HawaiiVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = HawaiiVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = HawaiiVisionFeedForward(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        forced_gate: torch.Tensor | None,
        is_routed: torch.Tensor | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        attended, weights = self.attention(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        output, probabilities = self.feed_forward(self.layer_norm2(hidden_states), forced_gate, is_routed)
        return hidden_states + output, probabilities, weights


def init_vision_weights(module: nn.Module, std: float) -> None:
    """Initialises one module of an encoder; its adapters add nothing."""
    if isinstance(module, StackedLora):
        module.reset_parameters()
    elif isinstance(module, HawaiiVisionEmbeddings):
        nn.init.normal_(module.position_embedding, std=std)
        if module.class_embedding is not None:
            nn.init.normal_(module.class_embedding, std=std)
    elif isinstance(module, nn.Linear | nn.Conv2d | RouterLinear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class HawaiiVisionModel(ModelSavedWithCode, PreTrainedModel):
    """
    The vision transformer of CLIP or SigLIP with MoLA in every layer, cut after `config.num_hidden_layers` layers.

    Parameter names do not follow transformers, so that checkpoints are unaffected when transformers renames its
    parameters.
    """

    config_class = HawaiiVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["HawaiiVisionEmbeddings", "HawaiiVisionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HawaiiVisionConfig):
        super().__init__(config)
        self.embeddings = HawaiiVisionEmbeddings(config)
        if config.has_pre_layer_norm:
            self.pre_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([HawaiiVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers infers this from the source, and its two versions look for contradictory lines.
        return True

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @torch.no_grad()
    def _init_weights(self, module):
        init_vision_weights(module, self.config.initializer_range)

    def forward(
        self,
        pixel_values: torch.Tensor,
        adapters: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_routing: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ) -> HawaiiVisionOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Normalised images.
            adapters (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Teacher-specific adapter, from 0 to `num_teacher_adapters - 1`, that acts alone on a sample, in every
                layer and on every token; -1 lets the routers choose. `None` lets them choose for all samples.
            output_hidden_states (`bool`, *optional*):
                Whether to return the embeddings and every layer's output; `config.output_hidden_states` if not given.
            output_attentions (`bool`, *optional*):
                Whether to return every layer's attention weights, which need eager attention in this call;
                `config.output_attentions` if not given.
            output_routing (`bool`, *optional*, defaults to `False`):
                Whether to return the routers' probabilities.

        Returns:
            [`HawaiiVisionOutput`]

        Raises:
            ValueError: the images do not have the configured size, or `adapters` does not have one entry per image.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        hidden_states = self.embeddings(pixel_values)
        if config.has_pre_layer_norm:
            hidden_states = self.pre_layer_norm(hidden_states)
        gate = is_routed = None
        if adapters is not None:
            if adapters.shape != pixel_values.shape[:1]:
                raise ValueError(
                    f"adapters has shape {tuple(adapters.shape)}; one entry for each of {pixel_values.shape[0]} images"
                    " is needed."
                )
            gate = forced_adapter_gate(adapters, config, hidden_states.dtype)
            is_routed = (adapters < 0)[:, None, None]
        all_hidden_states = [hidden_states]
        all_probabilities, all_attentions = [], []
        for layer in self.layers:
            hidden_states, probabilities, attentions = layer(
                hidden_states, gate, is_routed, output_attentions=output_attentions, **kwargs
            )
            all_attentions.append(attentions)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            if output_routing and probabilities is not None:
                all_probabilities.append(probabilities)
        output = HawaiiVisionOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
            router_probabilities=torch.stack(all_probabilities) if all_probabilities else None,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()
