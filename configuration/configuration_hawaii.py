"""Configuration of HAWAII: one encoder with a mixture of LoRA adapters, and any causal language model."""

import json
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from .hub_hawaii import AUTO_MAP, VISION_AUTO_MAP, SavedWithCode
from .tiles_hawaii import check_grid_pinpoints


ADAPTER_PLACEMENTS = ("ffn", "linear")
ROUTER_GRADIENTS = ("straight_through", "none", "switch")
# Fields of [`HawaiiConfig`] that are saved for serving engines. On loading they must agree with the encoder and the
# language model that they follow from.
DERIVED_FIELDS = ("tie_word_embeddings", "image_seq_length", "vision_feature_layer", "vision_feature_select_strategy")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` that lists the choices if `value` is not one of them."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


def _rope_before_5(rope_parameters: dict) -> dict:
    """Converts the rotary fields of transformers 5 to those of 4.57, which cannot read the new ones."""
    if "full_attention" in rope_parameters:  # one entry per layer type
        local = rope_parameters.get("sliding_attention", rope_parameters["full_attention"])
        return {**_rope_before_5(rope_parameters["full_attention"]), "rope_local_base_freq": local["rope_theta"]}
    known = {"rope_type", "rope_theta", "partial_rotary_factor"}
    fields = {name: rope_parameters[name] for name in known - {"rope_type"} if name in rope_parameters}
    rope_type = rope_parameters.get("rope_type", "default")
    if rope_type != "default":
        scaling = {name: value for name, value in rope_parameters.items() if name not in known}
        fields["rope_scaling"] = {"rope_type": rope_type, **scaling}
    return fields


class HawaiiVisionConfig(SavedWithCode, PretrainedConfig):
    r"""
    Configuration of a [`HawaiiVisionModel`]. The defaults are the paper's: CLIP ViT-L/14-336 cut after 23 of its 24
    layers, with three teacher-specific and three general adapters of rank 16 next to each feed-forward layer.

    Args:
        hidden_size (`int`, *optional*, defaults to 1024):
            Width of the encoder, D.
        intermediate_size (`int`, *optional*, defaults to 4096):
            Width inside the feed-forward layers.
        num_hidden_layers (`int`, *optional*, defaults to 23):
            Number of layers. CLIP's last layer is not built, because a LLaVA's loss does not depend on it.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Attention heads per layer.
        num_channels (`int`, *optional*, defaults to 3):
            Image channels.
        image_size (`int`, *optional*, defaults to 336):
            Side of the square image, in pixels. If it is not a multiple of `patch_size`, the patches start at the
            upper left corner and the remainder is ignored (SigLIP so400m: 27 patches of 14 pixels in 384).
        patch_size (`int`, *optional*, defaults to 14):
            Side of a patch, in pixels.
        has_class_token (`bool`, *optional*, defaults to `True`):
            Whether a class token precedes the patches, as in CLIP but not in SigLIP. The language model does not
            receive it.
        has_pre_layer_norm (`bool`, *optional*, defaults to `True`):
            Whether the embeddings are normalised before the first layer, as in CLIP but not in SigLIP.
        has_patch_bias (`bool`, *optional*, defaults to `False`):
            Whether the patch embedding has a bias, as in SigLIP but not in CLIP.
        hidden_act (`str`, *optional*, defaults to `"quick_gelu"`):
            Activation of the feed-forward layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norms.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of newly initialised weights.
        num_teacher_adapters (`int`, *optional*, defaults to 3):
            Teacher-specific adapters per layer, one for each teacher, N_t.
        num_general_adapters (`int`, *optional*, defaults to 3):
            General-knowledge adapters per layer, N_g.
        lora_rank (`int`, *optional*, defaults to 16):
            Rank of every adapter, r.
        lora_alpha (`float`, *optional*, defaults to 16):
            Adapters are scaled by `lora_alpha / lora_rank`.
        lora_bias (`bool`, *optional*, defaults to `False`):
            Whether both linear layers of an adapter have biases (MoVE-KD's form).
        adapter_placement (`str`, *optional*, defaults to `"ffn"`):
            `"ffn"`: one adapter next to the entire feed-forward layer (eq. 2); `"linear"`: one next to each of its
            two linear layers, with one routing decision for both (MoVE-KD's form).
        router_hidden_size (`int`, *optional*, defaults to 64):
            Hidden width of the two-layer routers; `None` makes them single linear layers.
        router_gradient (`str`, *optional*, defaults to `"straight_through"`):
            How a router learns from the task: `"straight_through"` multiplies the chosen adapter by
            `1 + p - p.detach()`, `"switch"` by its probability `p`; with `"none"` it does not learn.

    Raises:
        ValueError: the image is smaller than a patch, `num_attention_heads` does not divide `hidden_size`, or a choice
            is not one of those above.
    """

    model_type = "hawaii_vision"
    hub_auto_map = VISION_AUTO_MAP
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        num_channels=3,
        image_size=336,
        patch_size=14,
        has_class_token=True,
        has_pre_layer_norm=True,
        has_patch_bias=False,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        attention_dropout=0.0,
        initializer_range=0.02,
        num_teacher_adapters=3,
        num_general_adapters=3,
        lora_rank=16,
        lora_alpha=16,
        lora_bias=False,
        adapter_placement="ffn",
        router_hidden_size=64,
        router_gradient="straight_through",
        **kwargs,
    ):
        if image_size < patch_size:
            raise ValueError(f"image_size {image_size} is less than one patch of patch_size {patch_size}.")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}."
            )
        check_choice("adapter_placement", adapter_placement, ADAPTER_PLACEMENTS)
        check_choice("router_gradient", router_gradient, ROUTER_GRADIENTS)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.has_class_token = has_class_token
        self.has_pre_layer_norm = has_pre_layer_norm
        self.has_patch_bias = has_patch_bias
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.num_teacher_adapters = num_teacher_adapters
        self.num_general_adapters = num_general_adapters
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_bias = lora_bias
        self.adapter_placement = adapter_placement
        self.router_hidden_size = router_hidden_size
        self.router_gradient = router_gradient
        super().__init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """Patch tokens of one square, m."""
        return self.patches_a_side**2

    @property
    def patches_a_side(self) -> int:
        """Patches along a side of the square."""
        return self.image_size // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token, or none."""
        return int(self.has_class_token)


class HawaiiConfig(SavedWithCode, PretrainedConfig):
    r"""
    Configuration of a [`HawaiiForConditionalGeneration`]: vision encoder, projector, language model. Fields that LLaVA
    has too have LLaVA's names.

    Args:
        vision_config (`HawaiiVisionConfig` or `dict`, *optional*):
            The encoder; defaults to the paper's.
        text_config (`PretrainedConfig` or `dict`, *optional*):
            Any causal language model; a `dict` has its `model_type`, which defaults to `"llama"`. Defaults to
            Llama's defaults, which are Vicuna-7B's.
        image_token_index (`int`, *optional*, defaults to 32000):
            Id of the token that is replaced by an image feature; also available as `image_token_id`. The default is
            the first id after Vicuna's 32,000 tokens: the embeddings must be resized to include it.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation between the projector's two layers.
        multimodal_projector_bias (`bool`, *optional*, defaults to `True`):
            Whether the projector has biases.
        head_bias (`bool`, *optional*, defaults to `False`):
            Whether the language model's head has a bias, as in Phi-2.
        image_grid_pinpoints (`list[list[int]]`, *optional*):
            Heights and widths of the grids of tiles that a picture can be cut into, in pixels, as in LLaVA-NeXT:
            multiples of the encoder's `image_size`. `None` makes each picture one square.

    Raises:
        ValueError: the pinpoints are no such list, or a derived field contradicts the parts: `tie_word_embeddings`
            follows from the language model; `image_seq_length`, `vision_feature_layer` and
            `vision_feature_select_strategy` follow from the encoder.
    """

    model_type = "hawaii"
    hub_auto_map = AUTO_MAP
    attribute_map = {"image_token_id": "image_token_index"}
    sub_configs = {"vision_config": HawaiiVisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config=None,
        text_config=None,
        image_token_index=32000,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        head_bias=False,
        image_grid_pinpoints=None,
        **kwargs,
    ):
        if not isinstance(vision_config, PretrainedConfig):
            vision_config = HawaiiVisionConfig(**(vision_config or {}))
        if not isinstance(text_config, PretrainedConfig):
            text_config = dict(text_config or {})
            text_config = AutoConfig.for_model(text_config.pop("model_type", "llama"), **text_config)
        self.vision_config = vision_config
        self.text_config = text_config
        self.image_token_index = image_token_index
        self.projector_hidden_act = projector_hidden_act
        self.multimodal_projector_bias = multimodal_projector_bias
        self.head_bias = head_bias
        self.image_grid_pinpoints = check_grid_pinpoints(image_grid_pinpoints, vision_config.image_size)
        for name in DERIVED_FIELDS:
            value = getattr(self, name)
            if kwargs.pop(name, value) != value:
                raise ValueError(f"{name} follows from the encoder and the language model: it is {value!r} here.")
        kwargs["tie_word_embeddings"] = text_config.tie_word_embeddings  # or transformers 4.57 would set it to True
        super().__init__(**kwargs)

    # The head is tied if the language model's is: one value, because transformers reads the outer one.
    @property
    def tie_word_embeddings(self) -> bool:
        return self.text_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool):
        self.text_config.tie_word_embeddings = value

    # LLaVA's fields that serving engines read. They follow from the encoder, which ends at its feature layer.
    @property
    def image_seq_length(self) -> int:
        return self.vision_config.num_patches

    @property
    def vision_feature_layer(self) -> int:
        return -1

    @property
    def vision_feature_select_strategy(self) -> str:
        return "default" if self.vision_config.has_class_token else "full"

    def _complete_folder(self, folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {name: getattr(self, name) for name in DERIVED_FIELDS}
        if rope_parameters := values["text_config"].get("rope_parameters"):
            values["text_config"] |= _rope_before_5(rope_parameters)
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
