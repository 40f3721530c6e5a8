"""PEFT's LoRA on a student's language model: added before training, merged into full-precision weights after it."""

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer, LoraModel

from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration


# Prefix of the names of the student's modules that a LoRA adapts.
LANGUAGE_MODEL = "model.language_model"
# How PEFT matches the keys of rank_pattern and alpha_pattern with the names of layers.
PATTERN = r"(.*\.)?({})$"


def _join_last_parts(names: Iterable[str]) -> str:
    """Joins the last part of the names of layers, such as `q_proj`, each once."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _as_names(value: Any) -> list[str]:
    """The names in a field of `LoraConfig`, which may also have none, or be one regular expression."""
    return [] if value is None or isinstance(value, str) else sorted(value)


def _check_names(language_model: torch.nn.Module, config: LoraConfig) -> None:
    """Checks that everything that a LoRA names exists: PEFT raises no error if it finds only one of several names."""
    modules = dict(language_model.named_modules())
    linear = _join_last_parts(name for name, module in modules.items() if isinstance(module, torch.nn.Linear))
    parameters = [name for name, _ in language_model.named_parameters()]
    for field, known, examples in (
        ("target_modules", modules, f"name some of {linear}, or leave target_modules out for all of them"),
        ("exclude_modules", modules, f"name some of {linear}, or leave exclude_modules out"),
        ("target_parameters", parameters, f"name some as in {parameters[-1]}, or leave target_parameters out"),
    ):
        for given in _as_names(getattr(config, field)):
            if not any(f".{name}".endswith(f".{given}") for name in known):
                kind = "parameter" if field == "target_parameters" else "layer"
                raise UserError(
                    f"{field} of lora names {given!r}, but the language model has no such {kind}: {examples}."
                )
    pattern = config.exclude_modules
    if isinstance(pattern, str) and not any(re.fullmatch(pattern, name) for name in modules):
        raise UserError(f"exclude_modules of lora is {pattern!r}, but this matches no layer of the language model.")
    text_config: Any = language_model.config
    indices, num_layers = config.layers_to_transform, text_config.num_hidden_layers
    for index in [indices] if isinstance(indices, int) else indices or []:
        if not 0 <= index < num_layers:
            raise UserError(
                f"layers_to_transform of lora names layer {index}, but the language model has the layers 0 to "
                f"{num_layers - 1}."
            )


def add_lora(student: HawaiiForConditionalGeneration, fields: dict[str, Any]) -> LoraModel:
    """
    Adds the adapters of a LoRA to a student's language model, in place. The rest of the language model is frozen.

    Args:
        student (`HawaiiForConditionalGeneration`):
            In full precision, quantized or without weights.
        fields (`dict`):
            Fields of PEFT's `LoraConfig`, checked by [`convert_lora`]. Without `target_modules`, every linear layer of
            the language model is adapted.

    Raises:
        UserError: PEFT refuses a value, or the language model has no layer or parameter of a given name.
    """
    language_model = student.model.language_model
    with explain_errors("PEFT cannot add the lora of the recipe to the language model"):
        config = LoraConfig(**{"target_modules": "all-linear", **fields})
        _check_names(language_model, config)
        lora = LoraModel(language_model, config, "default")
        layers = [name for name, module in language_model.named_modules() if isinstance(module, LoraLayer)]
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(config, field):
                if not any(re.match(PATTERN.format(key), layer) for layer in layers):
                    raise UserError(
                        f"{field} of lora names {key!r}, but no layer with an adapter has this name: name some of "
                        f"{_join_last_parts(layers)}, or leave {key} out."
                    )
    if student.config.tie_word_embeddings and any(
        isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), torch.nn.Embedding)
        for layer in language_model.modules()
    ):
        raise UserError(
            "target_modules of lora names the embeddings of words, which are the language model's head as well: the "
            "merged head would differ from the trained one. Leave them out."
        )
    return lora


def outside_config(lora: LoraModel, base: str) -> LoraConfig:
    """
    Returns the configuration with which PEFT loads the adapters into a complete student: it names each layer.

    Args:
        lora (`LoraModel`):
            Result of [`add_lora`].
        base (`str`):
            Folder of the student.
    """
    layers = {
        f"{LANGUAGE_MODEL}.{name}": layer for name, layer in lora.model.named_modules() if isinstance(layer, LoraLayer)
    }
    config: Any = copy.deepcopy(lora.peft_config["default"])  # PEFT declares a union of types
    config.target_modules = set(layers)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    alphas = {name: layer.lora_alpha["default"] for name, layer in layers.items()}
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {name: alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}
    config.base_model_name_or_path = base
    config.auto_mapping = {"base_model_class": "AutoModelForImageTextToText", "parent_library": "transformers"}
    config.inference_mode, config.bias = True, "none"  # the base has the trained biases
    return config


def outside_weights(lora: LoraModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the adapters' weights with the names of a PEFT folder; `weights` has the student's names."""
    state = {f"base_model.model.{name}": weight.contiguous() for name, weight in weights.items()}
    return get_peft_model_state_dict(lora, state_dict=state, save_embedding_layers=False)


def load_merged(base: Path, folder: Path, dtype: torch.dtype | str) -> HawaiiForConditionalGeneration:
    """
    Loads a student from a PEFT folder and its base, and merges the adapters.

    Args:
        base (`Path`):
            Folder of a complete student.
        folder (`Path`):
            Folder of the adapters.
        dtype (`torch.dtype` or `str`):
            Precision of the weights; `"auto"` for the saved one.

    Raises:
        UserError: the adapters are damaged or do not fit.
    """
    student = HawaiiForConditionalGeneration.from_pretrained(base, dtype=dtype)
    with explain_errors(f"The adapters of {folder} cannot be loaded"):
        adapted: Any = PeftModel.from_pretrained(student, folder, autocast_adapter_dtype=False)
        return adapted.merge_and_unload()
