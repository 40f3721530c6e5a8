"""The configuration of a LLaVA or a LLaVA-NeXT, in transformers' form or in LLaVA's own."""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...files.atomic import read_json
from ...files.model_folder import check_is_no_part
from ...files.user_error import UserError, explain_errors
from .checkpoint_tensors import find_file
from .clip import CLIP_TYPES, SIGLIP_TYPES, load_vision_config


TRANSFORMERS_TYPES = ("llava", "llava_next")
# LLaVA's own model types, and the language model's type in transformers.
ORIGINAL_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "move_llava_llama": "llama",
}
# Fields of transformers 4 in LLaVA's own configuration; transformers 5 reads them but does not write them.
LEGACY_TEXT_FIELDS = ("rope_theta", "rope_scaling")
# LLaVA's own mm_patch_merge_type and image_aspect_ratio that a student can have: LLaVA-1.5's and LLaVA-1.6's.
ONE_SQUARE = [("flat", "pad"), ("flat", "square"), ("flat", None)]
TILES = ("spatial_unpad", "anyres")


class LlavaCheckpoint(NamedTuple):
    """Configuration of a LLaVA checkpoint, independent of its form."""

    checkpoint: str  # folder or Hub id
    model_type: str  # as in its config.json
    text_config: PretrainedConfig
    vision_config: PretrainedConfig
    vision_feature_layer: int  # index of the encoder's hidden_states that the language model reads
    image_token_index: int | None  # `None` if the vocabulary has no token for images
    projector_hidden_act: str
    multimodal_projector_bias: bool
    image_grid_pinpoints: list[list[int]] | None  # heights and widths of the grids of tiles; `None` for one square
    vision_tower: str | None  # the encoder's checkpoint, if it may be a separate one
    part_names: list[tuple[str, str]]  # patterns of the prefixes of tensor names, and their replacements
    values: dict  # the unparsed config.json

    def part_name(self, name: str) -> str:
        """
        Name of a tensor within its part, after `vision.`, `projector.`, `text.` or `head.`: the same for every form
        and version of a checkpoint. Other names are returned unchanged.
        """
        for pattern, replacement in self.part_names:
            renamed, is_renamed = re.subn(f"^{pattern}", replacement, name)
            if is_renamed:
                return renamed
        return name


def _read_transformers(checkpoint: str, values: dict) -> LlavaCheckpoint:
    vision_type = (values.get("vision_config") or {}).get("model_type", CLIP_TYPES[-1])
    if vision_type not in CLIP_TYPES + SIGLIP_TYPES:
        raise UserError(f"The encoder of {checkpoint} is a {vision_type!r}; a student's is a CLIP or a SigLIP.")
    text_type = (values.get("text_config") or {}).get("model_type", "llama")
    if text_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"The language model of {checkpoint} is a {text_type!r}; a student's is a causal language model of "
            "transformers."
        )
    with explain_errors(f"The configuration of {checkpoint} cannot be read"):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        text, vision = config.text_config, config.vision_config
        with torch.device("meta"):
            causal = AutoModelForCausalLM.from_config(text)
    text.tie_word_embeddings = config.tie_word_embeddings  # transformers 5 reads the outer one
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(
            f"{checkpoint} joins the features of layers {config.vision_feature_layer}; a student's encoder ends at "
            "one layer. Choose a LLaVA whose vision_feature_layer is one number."
        )
    strategy = "default" if vision.model_type in CLIP_TYPES else "full"
    if config.vision_feature_select_strategy != strategy:
        raise UserError(
            f"{checkpoint} has vision_feature_select_strategy {config.vision_feature_select_strategy!r} with a "
            f"{vision.model_type!r}, but a student's language model reads every patch and nothing else, which is "
            f"{strategy!r}."
        )
    head = next(name for name, module in causal.named_modules() if module is causal.get_output_embeddings())
    return LlavaCheckpoint(
        checkpoint=checkpoint,
        model_type=config.model_type,
        text_config=text,
        vision_config=vision,
        vision_feature_layer=config.vision_feature_layer,
        image_token_index=config.image_token_index,
        projector_hidden_act=config.projector_hidden_act,
        multimodal_projector_bias=config.multimodal_projector_bias,
        image_grid_pinpoints=config.image_grid_pinpoints if config.model_type == "llava_next" else None,
        vision_tower=None,
        # transformers 4 joined models with heads and 5 joins base models, but 5 may write the names of either.
        part_names=[
            (r"(model\.)?vision_tower\.(vision_model\.)?", "vision."),
            (r"(model\.)?multi_modal_projector\.", "projector."),
            (r"(model\.)?image_newline$", "image_newline"),
            (rf"(lm_head|language_model\.{re.escape(head)})\.", "head."),
            (rf"(model\.)?language_model\.((model|{causal.base_model_prefix})\.)?", "text."),
        ],
        values=values,
    )


def _read_original_pinpoints(checkpoint: str, values: dict) -> list[list[int]] | None:
    """
    Heights and widths of the grids that LLaVA-1.6 cuts images into; `None` for a LLaVA that makes each image one
    square. LLaVA's own code reads each pair as a width and a height, in a list or in a string with the list.
    """
    images = values.get("mm_patch_merge_type", "flat"), values.get("image_aspect_ratio")
    if images in ONE_SQUARE:
        return None
    if images != TILES:
        raise UserError(
            f"{checkpoint} has mm_patch_merge_type {images[0]!r} with image_aspect_ratio {images[1]!r}; a student can "
            "start from a LLaVA that has 'flat' with 'pad' or 'square', as LLaVA-1.5, or 'spatial_unpad' with "
            "'anyres', as LLaVA-1.6."
        )
    pinpoints = values.get("image_grid_pinpoints")
    try:
        pairs: Any = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        return [[height, width] for width, height in pairs]
    except (SyntaxError, TypeError, ValueError):
        raise UserError(
            f"{checkpoint} has image_grid_pinpoints {pinpoints!r}; a student can start from a LLaVA that lists the "
            "width and the height of each grid there, such as [[336, 672], [672, 336]]."
        ) from None


def _read_original(checkpoint: str, values: dict, vision_tower: str | None) -> LlavaCheckpoint:
    restricted = {
        "mm_projector_type": (values.get("mm_projector_type", "linear"), ("mlp2x_gelu",)),
        "mm_vision_select_feature": (values.get("mm_vision_select_feature", "patch"), ("patch",)),
        "mm_use_im_start_end": (values.get("mm_use_im_start_end", False), (False,)),
        "s2": (values.get("s2", False), (False,)),
    }
    for name, (value, accepted) in restricted.items():
        if value not in accepted:
            raise UserError(
                f"{checkpoint} has {name} {value!r}; a student can start from a LLaVA that has {accepted[0]!r}, as in "
                "LLaVA-1.5."
            )
    pinpoints = _read_original_pinpoints(checkpoint, values)
    vision_feature_layer = values.get("mm_vision_select_layer")
    if not isinstance(vision_feature_layer, int):
        raise UserError(f"The config.json of {checkpoint} has no mm_vision_select_layer, the encoder's layer to read.")
    tower = vision_tower or values["mm_vision_tower"]
    try:
        vision = load_vision_config(tower)
    except UserError as error:
        raise UserError(
            f"The vision_tower of {checkpoint}: {error} Pass its folder or Hub id as vision_tower."
        ) from error
    text_type = ORIGINAL_TYPES[values["model_type"]]
    known = set(AutoConfig.for_model(text_type).to_dict()) | set(LEGACY_TEXT_FIELDS)
    known -= {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype"}
    with explain_errors(f"The configuration of {checkpoint} cannot be read"):
        text = AutoConfig.for_model(text_type, **{name: value for name, value in values.items() if name in known})
    return LlavaCheckpoint(
        checkpoint=checkpoint,
        model_type=values["model_type"],
        text_config=text,
        vision_config=vision,
        vision_feature_layer=vision_feature_layer,
        image_token_index=None,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        image_grid_pinpoints=pinpoints,
        vision_tower=tower,
        part_names=[
            (r"model\.vision_tower\.vision_tower\.(vision_model\.)?", "vision."),
            (r"model\.mm_projector\.0\.", "projector.linear_1."),
            (r"model\.mm_projector\.2\.", "projector.linear_2."),
            (r"model\.image_newline$", "image_newline"),
            (r"lm_head\.", "head."),
            (r"model\.", "text."),
        ],
        values=values,
    )


def read_llava(checkpoint: str, vision_tower: str | None) -> LlavaCheckpoint:
    """
    Reads the configuration of a LLaVA or a LLaVA-NeXT.

    Args:
        checkpoint (`str`):
            Folder or Hub id, in transformers' form (`llava-hf/...`) or LLaVA's own (`liuhaotian/...`).
        vision_tower (`str`, *optional*):
            For LLaVA's own form: the encoder's folder or Hub id; defaults to the one that the configuration names.

    Raises:
        UserError: the checkpoint is no LLaVA, or uses something that a student does not support.
    """
    if Path(checkpoint).is_dir():
        check_is_no_part(Path(checkpoint))
    path = find_file(checkpoint, "config.json")
    if path is None:
        raise UserError(
            f"{checkpoint} is no LLaVA: no folder of that name contains a config.json, and the Hub, where a name is "
            "owner/name, has no model of that name."
        )
    values = read_json(path)
    model_type = values.get("model_type")
    if model_type in ORIGINAL_TYPES and "mm_vision_tower" in values:
        return _read_original(checkpoint, values, vision_tower)
    if model_type not in TRANSFORMERS_TYPES:
        raise UserError(
            f"{checkpoint} is a {model_type!r} checkpoint; a student starts from a 'llava' or a 'llava_next' of "
            f"transformers or from LLaVA's own types, {', '.join(map(repr, ORIGINAL_TYPES))} with an mm_vision_tower."
        )
    if vision_tower is not None:
        raise UserError(f"{checkpoint} contains its encoder: leave vision_tower out.")
    return _read_transformers(checkpoint, values)
