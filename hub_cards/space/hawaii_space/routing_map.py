"""The adapters that act at each patch of a picture, in every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .tiles import assemble_picture, to_picture


# Shapes: T squares, L layers, m patches (row by row), N adapters of one bank.
BANKS = ("teacher", "general")


def find_stages(facts: Any) -> list[Mapping[str, Any]]:
    """Returns the stages of training in order; those of an unknown shape, as in a damaged file, are left out."""
    stages = facts.get("stages") if isinstance(facts, Mapping) else None
    return [stage for stage in stages.values() if isinstance(stage, Mapping)] if isinstance(stages, Mapping) else []


def count_adapters(vision_config: Any) -> dict[str, int]:
    """Returns the number of adapters by bank, without empty banks, of an encoder's configuration."""
    numbers = {bank: getattr(vision_config, f"num_{bank}_adapters", 0) for bank in BANKS}
    return {bank: number for bank, number in numbers.items() if number}


def name_adapters(numbers: Mapping[str, int], facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """
    Names the adapters of a published folder.

    Args:
        numbers (`Mapping[str, int]`):
            Number of adapters by bank; see [`count_adapters`].
        facts (`Mapping[str, Any]`):
            The facts about training, the content of `training.json`; empty if they are not known.

    Returns:
        `dict[str, list[str]]`: Names by bank: those of the teachers if known, otherwise numbers.
    """
    names = {bank: [f"adapter {index}" for index in range(number)] for bank, number in numbers.items()}
    for stage in find_stages(facts):
        # Adapter i belongs to teacher i. A stage without distillation has no teachers.
        teachers = stage.get("teachers")
        if isinstance(teachers, Mapping) and len(teachers) == numbers.get("teacher"):
            names["teacher"] = list(teachers)
    return names


@dataclass
class BankRouting:
    """
    Args:
        names (`Sequence[str]`):
            Name of each adapter of the bank.
        chosen (`torch.LongTensor` of shape `(num_layers, num_patches)`):
            Index of the adapter that acts.
        probabilities (`torch.FloatTensor` of shape `(num_layers, num_patches)`):
            Probability that the router gives to this adapter.
    """

    names: Sequence[str]
    chosen: torch.Tensor
    probabilities: torch.Tensor

    def counts(self) -> torch.Tensor:
        """Returns in how many layers each adapter acts at each patch, `(num_patches, num_adapters)`."""
        return torch.nn.functional.one_hot(self.chosen, len(self.names)).sum(dim=0)

    def shares(self) -> torch.Tensor:
        """Returns each adapter's share of the patches in each layer, `(num_layers, num_adapters)`; rows sum to one."""
        return torch.nn.functional.one_hot(self.chosen, len(self.names)).double().mean(dim=1)


@dataclass
class RoutingMap:
    """
    Args:
        picture (`PIL.Image.Image`):
            The square that the encoder receives, or the whole picture, assembled from its tiles.
        patch_size (`int`):
            Side of a patch in pixels of `picture`. A rest at the right and at the bottom belongs to no patch.
        banks (`dict[str, BankRouting]`):
            The adapters by bank, `teacher` and `general`, without empty banks.
    """

    picture: Image.Image
    patch_size: int
    banks: dict[str, BankRouting]

    @property
    def num_layers(self) -> int:
        return len(next(iter(self.banks.values())).chosen)


def _levels_of(pixel_values: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """Undoes the normalisation of squares, `(T, 3, height, width)`: whatever the processor did, this is the result."""
    if image_processor.do_normalize:
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
        )
        pixel_values = pixel_values * std + mean
    return (pixel_values * 255).round().clamp(0, 255).byte()


@torch.inference_mode()
def map_routing(model: Any, processor: Any, image: Image.Image, names: Mapping[str, Sequence[str]]) -> RoutingMap:
    """
    Runs the encoder once and returns the routers' choices in all layers. The class token is left out, because the
    language model does not receive it. With tiles, the map is that of the whole picture.

    Args:
        model (`HawaiiForConditionalGeneration`):
            A HAWAII on any device.
        processor (`HawaiiProcessor`):
            Its processor.
        image (`PIL.Image.Image`):
            An image of any size.
        names (`Mapping[str, Sequence[str]]`):
            Names of the adapters by bank, at least one; see [`name_adapters`].

    Raises:
        ValueError: the processor cannot read the image.
    """
    encoder, image_processor = model.model.vision_tower, processor.image_processor
    features = image_processor([image], return_tensors="pt")
    pixel_values = features["pixel_values"]  # (T, 3, height, width)
    outputs = encoder(pixel_values.to(encoder.device, encoder.dtype), output_routing=True, return_dict=True)
    patches = outputs.router_probabilities[:, :, encoder.config.num_prefix_tokens :].float().cpu()  # (L, T, m, banks)
    levels = _levels_of(pixel_values, image_processor)
    if "image_sizes" in features:
        sizes = features["image_sizes"]
        picture = assemble_picture(image_processor, levels, sizes, encoder.config.patch_size)
        (cells,) = image_processor.assemble_maps(patches.permute(1, 2, 0, 3), sizes)  # (rows, columns, L, banks)
        patches = cells.flatten(0, 1).transpose(0, 1)  # (L, m, banks)
    else:  # code that was published before there were tiles cannot assemble any
        picture, patches = to_picture(levels[0]), patches[:, 0]
    banks = patches.split([len(bank) for bank in names.values()], dim=-1)
    routing = {}
    for (bank, adapters), probabilities in zip(names.items(), banks):
        largest, chosen = probabilities.max(dim=-1)  # (L, m)
        routing[bank] = BankRouting(adapters, chosen, largest)
    return RoutingMap(picture, encoder.config.patch_size, routing)
