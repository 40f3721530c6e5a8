"""
What vLLM's backend for models of transformers does with a published folder, in plain torch.

It follows `vllm/model_executor/models/transformers` of vLLM 0.32: the base model is built without weights, its layers
are replaced, the weights are renamed and loaded one by one, and the prompts of a batch are one sequence without
padding, whose attention is the engine's. What the processor makes is divided among the images, and joined again for
the images that are encoded together.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass
class Batch:
    """The tokens of a batch: the prompt of each and its position there. And who asked for the engine's attention."""

    prompts: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    layers: set[int] = field(default_factory=set)


def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Causal attention within each prompt, whatever mask the model passes: the engine knows the prompts."""
    batch = module.batch
    batch.layers.add(module.layer_idx)
    mask = (batch.prompts[:, None] == batch.prompts) & (batch.positions[:, None] >= batch.positions)
    outputs = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
    return outputs.transpose(1, 2).contiguous(), None


# What the processor returns and the model is not given.
NOT_OF_IMAGES = {"input_ids", "attention_mask", "mm_token_type_ids", "text_replacement_offsets"}
ALL_ATTENTION_FUNCTIONS.register("small_engine", attend)


class EngineLayer(nn.Module):
    """Has the parameters of the layer that it replaces, and not its class."""

    def __init__(self, layer: nn.Module, compute):
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, layer.get_parameter(name) if getattr(layer, name) is not None else None)
        self.compute = compute

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.compute(inputs, self.weight, self.bias)


def _replace_layers(module: nn.Module) -> None:
    for name, layer in module.named_children():
        if type(layer) is nn.Linear:
            setattr(module, name, EngineLayer(layer, F.linear))
        elif type(layer) is nn.Conv2d:
            stride = layer.stride
            setattr(module, name, EngineLayer(layer, lambda x, w, b, stride=stride: F.conv2d(x, w, b, stride)))
        elif type(layer) is nn.LayerNorm:
            shape, eps = layer.normalized_shape, layer.eps
            compute = lambda x, w, b, shape=shape, eps=eps: F.layer_norm(x, shape, w, b, eps)  # noqa: E731
            setattr(module, name, EngineLayer(layer, compute))
        else:
            _replace_layers(layer)


class SmallEngine:
    """
    Loads a published folder as vLLM does, and computes the logits of batches of prompts.

    Args:
        folder (`Path`):
            Published folder.

    Attributes:
        missing, unexpected (`set[str]`):
            Parameters of the model that are not in the folder, and weights in the folder that the model does not have.
        batch (`Batch`):
            The last batch.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.text_config = self.config.get_text_config()
        self.text_config._attn_implementation = "small_engine"
        with init_empty_weights(include_buffers=False):
            self.model = AutoModel.from_config(self.config, dtype=torch.float32, trust_remote_code=True)
            self.head = nn.Linear(self.text_config.hidden_size, self.text_config.vocab_size, bias=False)
        self.decoder_class = type(self.model.get_decoder())
        self.encoder_class = type(self.model.get_encoder(modality="image"))
        _replace_layers(self.model)
        self._load_weights()
        self.batch = Batch()
        for module in self.model.modules():
            if hasattr(module, "layer_idx"):
                module.batch = self.batch

    def _rename(self, name: str) -> str | None:
        """The name of a weight in the engine; `None` for a weight that the engine ignores."""
        if any(re.search(pattern, name) for pattern in self.model._keys_to_ignore_on_load_unexpected or ()):
            return None
        direct = [*self.model.named_children(), *self.model.named_parameters(recurse=False)]
        children = "|".join(child for child, _ in direct)
        name = re.sub(rf"^(?!model\.)(({children}).*)", r"model.\1", name)
        return re.sub(rf"^(model\.)((?!{children}).+)", r"\2", name)

    def _load_weights(self) -> None:
        is_tied = self.config.tie_word_embeddings or self.text_config.tie_word_embeddings
        engine = nn.ModuleDict({"model": self.model, "lm_head": self.head}).eval()
        for module in engine.modules():
            for name, parameter in module.named_parameters(recurse=False):
                # A weight that is not loaded makes every logit NaN.
                module.register_parameter(name, nn.Parameter(torch.full(parameter.shape, torch.nan)))
        parameters = dict(engine.named_parameters())
        loaded: set[str] = set()
        self.unexpected: set[str] = set()
        for file in self.folder.glob("*.safetensors"):
            for original, weight in load_file(file).items():
                name = self._rename(original)
                if name == "lm_head.bias":
                    self.head.bias = nn.Parameter(weight)
                elif name in parameters:
                    parameters[name].data.copy_(weight)
                    loaded.add(name)
                elif name is not None:
                    self.unexpected.add(original)
        if is_tied:
            self.head.weight = self.model.get_input_embeddings().weight
            loaded.add("lm_head.weight")
        self.missing = parameters.keys() - loaded

    def resolve(self) -> list[type]:
        """The classes that vLLM imports to learn whether it can serve the folder, in its order."""
        return [
            get_class_from_dynamic_module(reference, self.folder)
            for prefix in ("AutoConfig", "AutoModel")
            for name, reference in self.config.auto_map.items()
            if name.startswith(prefix)
        ]

    def process(self, images: Sequence[Image.Image]) -> Any:
        """What the processor makes of images alone, with a text of image tokens, as in vLLM."""
        return self.processor(
            text=self.processor.image_token * len(images),
            images=list(images),
            return_tensors="pt",
            return_text_replacement_offsets=True,
        )

    def divide(self, images: Sequence[Image.Image]) -> list[dict[str, torch.Tensor]]:
        """
        The inputs of the model for each image. A list has an entry for each image, which the engine stacks; a tensor
        has the rows of one image after another, as many for each as the processor counts for its size.
        """
        inputs = self.process(images)
        sizes = [(image.height, image.width) for image in images]
        num_rows = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_patches"]
        divided = {
            name: [entry[None] for entry in value] if isinstance(value, list) else value.split(num_rows)
            for name, value in inputs.items()
            if name not in NOT_OF_IMAGES
        }
        return [{name: parts[index] for name, parts in divided.items()} for index in range(len(images))]

    @torch.no_grad()
    def encode(self, inputs: Sequence[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """The features of images, from the inputs of each, in one call of the model."""
        joined = {name: torch.cat([image[name] for image in inputs]) for name in inputs[0]}
        return list(self.model.get_image_features(**joined, return_dict=True).pooler_output)

    def replacements(self, images: Sequence[Image.Image]) -> list[list[int]]:
        """The tokens that replace each image's token in a prompt."""
        (offsets,) = self.process(images)["text_replacement_offsets"]
        tokenizer = self.processor.tokenizer
        return [tokenizer(entry["replacement"], add_special_tokens=False)["input_ids"] for entry in offsets]

    def expand(self, prompt: str, images: Sequence[Image.Image]) -> list[int]:
        """The tokens of a prompt whose image tokens are replaced."""
        bos_token = self.processor.tokenizer.bos_token
        has_bos = bool(bos_token) and prompt.startswith(bos_token)  # as for vLLM's chat API
        ids = self.processor.tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"]
        left = iter(self.replacements(images) if images else ())
        return [new for token in ids for new in (next(left) if token == self.processor.image_token_id else [token])]

    @torch.no_grad()
    def logits(self, prompts: Sequence[tuple[str, Sequence[Image.Image]]]) -> list[torch.Tensor]:
        """The logits of all tokens of each prompt, which is a text and its images."""
        tokens = [self.expand(*prompt) for prompt in prompts]
        lengths = torch.tensor([len(ids) for ids in tokens])
        input_ids = torch.tensor(sum(tokens, []))
        embeddings = self.model.get_input_embeddings()(input_ids)
        # Each image is processed by itself, because vLLM keeps the result under the image's hash.
        inputs = [self.divide([image])[0] for _, images in prompts for image in images]
        if inputs:
            embeddings[input_ids == self.processor.image_token_id] = torch.cat(self.encode(inputs))
        # In any order: only its position says where a token is, as in vLLM while it generates.
        order = torch.randperm(len(input_ids))
        self.batch.prompts = torch.arange(len(tokens)).repeat_interleave(lengths)[order]
        self.batch.positions = torch.cat([torch.arange(length) for length in lengths])[order]
        outputs = self.model(
            input_ids=None,
            inputs_embeds=embeddings[None, order],
            position_ids=self.batch.positions[None],
            use_cache=False,
            return_dict=False,
        )
        return list(self.head(outputs[0][0])[order.argsort()].split(lengths.tolist()))
