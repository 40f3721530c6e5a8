"""Tiny versions of the presets' models, their official processors and their official features."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    Pix2StructImageProcessor,
    RadioConfig,
    RadioModel,
    Sam3Config,
    Sam3Model,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamVisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.grids import match_grid
from hawaii.training.teachers.loading import load_teacher
from hawaii.training.teachers.teacher import Teacher
from hawaii.training.teachers.transformers_models import TransformersTeacher

from .models import fill


# All of these have 6 x 6 patches of 4 pixels.
SIDE, PATCH, IMAGE_SIZE = 6, 4, 24
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 64,
}
# Fields of each preset, without those of the published weights.
FIELDS = {
    "clip": {"layer": -2},
    "sam": {},
    "pix2struct": {"image_size": IMAGE_SIZE},
    "siglip2": {},
    "dinov3": {},
    "sam3": {},
    "radio": {},
}
# Official processors that exist with torchvision only: their files, which teachers read without it.
PROCESSOR_FILES = {
    "dinov3": {
        "image_processor_type": "DINOv3ViTImageProcessor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "sam3": {"image_processor_type": "Sam3ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}


def make_clip() -> CLIPModel:
    return fill(CLIPModel(CLIPConfig(vision_config=SIZES, text_config=TEXT)))


def make_sam() -> SamModel:
    vision = {**SIZES, "output_channels": 12, "window_size": 2, "mlp_dim": 32, "global_attn_indexes": [2]}
    vision["initializer_range"] = 0.1  # by default it is nothing
    model = SamModel(SamConfig(vision_config=vision))
    torch.nn.init.normal_(model.vision_encoder.pos_embed, std=0.1)
    # In a random convolution a neighbour can outweigh the cell itself, unlike in a trained one.
    with torch.no_grad():
        model.vision_encoder.neck.conv2.weight[..., 1, 1] += torch.eye(12)
    return fill(model)


def make_pix2struct() -> Pix2StructForConditionalGeneration:
    vision = {**SIZES, "d_ff": 32, "d_kv": 8, "patch_embed_hidden_size": 3 * PATCH**2, "seq_len": 64}
    text = {**TEXT, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    model = Pix2StructForConditionalGeneration(
        Pix2StructConfig(vision_config={**vision, "initializer_range": 0.1}, text_config=text)
    )
    return fill(model)


def make_siglip2() -> SiglipModel:
    return fill(SiglipModel(SiglipConfig(vision_config=SIZES, text_config=TEXT)))


def make_dinov3() -> DINOv3ViTModel:
    return fill(DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=4)))


def make_sam3() -> Sam3Model:
    backbone = {**SIZES, "window_size": 2, "pretrain_image_size": 12, "global_attn_indexes": [2]}
    backbone = {"model_type": "sam3_vit_model", **backbone, "initializer_range": 0.1}
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_layers": 1, "num_attention_heads": 2}
    config = Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 8},
        text_config={**TEXT, "projection_dim": 8},
        geometry_encoder_config=sizes,
        detr_encoder_config=sizes,
        detr_decoder_config={**sizes, "num_queries": 4},
        mask_decoder_config={"hidden_size": 8, "num_attention_heads": 2},
    )
    model = fill(Sam3Model(config))
    # As in `make_sam`, for the one layer of the neck that the features pass.
    with torch.no_grad():
        model.vision_encoder.neck.fpn_layers[2].proj2.weight[..., 1, 1] += 2 * torch.eye(8)
    return model


def make_radio() -> RadioModel:
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")}
    config = RadioConfig(
        **sizes, mlp_ratio=2.0, image_size=IMAGE_SIZE, max_img_size=48, num_cls_tokens=3, num_registers=4
    )
    return fill(RadioModel(config))


MAKE = {
    "clip": make_clip,
    "sam": make_sam,
    "pix2struct": make_pix2struct,
    "siglip2": make_siglip2,
    "dinov3": make_dinov3,
    "sam3": make_sam3,
    "radio": make_radio,
}
# To compare with the official processors, of which some need torchvision.
OFFICIAL = [pytest.param(name, marks=pytest.mark.timm) if name in PROCESSOR_FILES else name for name in MAKE]


def make_processor(name: str):
    """The official image processor, for images of 24 pixels. Pix2Struct's pads 36 patches to 40."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if name in PROCESSOR_FILES:  # both need torchvision
        from transformers import DINOv3ViTImageProcessor, Sam3ImageProcessor

        return {"dinov3": DINOv3ViTImageProcessor, "sam3": Sam3ImageProcessor}[name](size=size)
    if name == "siglip2":
        # The published file asks for this filter, not for the class's own.
        return SiglipImageProcessor(size=size, resample=Image.Resampling.BILINEAR)
    if name == "radio":
        return CLIPImageProcessor(size=size, do_center_crop=False, do_normalize=False)
    if name == "clip":
        return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    if name == "sam":
        return SamImageProcessor(size={"longest_edge": IMAGE_SIZE}, pad_size=size)
    return Pix2StructImageProcessor(max_patches=40, patch_size={"height": PATCH, "width": PATCH})


def vision_part(model):
    """The vision part of a complete model."""
    if isinstance(model, CLIPModel | SiglipModel):
        return model.vision_model
    if isinstance(model, DINOv3ViTModel | RadioModel):
        return model
    return model.vision_encoder if isinstance(model, SamModel | Sam3Model) else model.encoder


def save_processor(name: str, folder: Path) -> None:
    """Saves the official image processor, or writes the file that it would save."""
    if name not in PROCESSOR_FILES:
        return make_processor(name).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    values = {**PROCESSOR_FILES[name], "size": size, "resample": int(Image.Resampling.BILINEAR)}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def save_expert(name: str, folder: Path, is_vision_part: bool = False):
    """Saves the complete model, or only its vision part, and its processor; returns the complete model."""
    model = MAKE[name]()
    if is_vision_part and name == "sam":
        alone = SamVisionModel(model.config.vision_config)
        alone.vision_encoder.load_state_dict(model.vision_encoder.state_dict())
        alone.save_pretrained(folder)
    else:
        (vision_part(model) if is_vision_part else model).save_pretrained(folder)
    save_processor(name, folder)
    return model


def load_expert(name: str, folder: Path, **changes) -> Teacher:
    return load_teacher(TeacherConfig.parse({"checkpoint": str(folder), **FIELDS[name], **changes}))


def make_teacher(model, image_size: int = IMAGE_SIZE, kind: type[Teacher] = TransformersTeacher, **fields) -> Teacher:
    """A teacher of a model that is in no folder."""
    defaults = {"checkpoint": "expert", "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": "bicubic"}
    return kind(TeacherConfig(image_size=image_size, **{**defaults, **fields}), model)


def random_images(num_images: int = 2, side: int = IMAGE_SIZE) -> torch.Tensor:
    return torch.randint(256, (num_images, 3, side, side), dtype=torch.uint8)


def pictures(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


@torch.no_grad()
def official_features(name: str, model, images: torch.Tensor) -> torch.Tensor:
    """Features of the official model with its official processor: `(I, h, w, C)`."""
    inputs = make_processor(name)(pictures(images), return_tensors="pt")
    part = vision_part(model)
    if name == "clip":
        states = part(inputs["pixel_values"], output_hidden_states=True).hidden_states
        return states[-2][:, 1:].view(-1, SIDE, SIDE, SIZES["hidden_size"])
    if name == "sam":
        return part(inputs["pixel_values"]).last_hidden_state.permute(0, 2, 3, 1)
    if name == "siglip2":
        return part(inputs["pixel_values"]).last_hidden_state.view(-1, SIDE, SIDE, SIZES["hidden_size"])
    if name == "dinov3":  # a class token and four registers
        return part(inputs["pixel_values"]).last_hidden_state[:, 5:].view(-1, SIDE, SIDE, SIZES["hidden_size"])
    if name == "radio":
        return part(inputs["pixel_values"]).features.view(-1, SIDE, SIDE, SIZES["hidden_size"])
    if name == "sam3":  # the detector leaves out the last map, and its encoder attends to the last of the others
        return part(inputs["pixel_values"]).fpn_hidden_states[:-1][-1].permute(0, 2, 3, 1)
    assert (inputs["attention_mask"] == 0).sum() == 4 * len(images)
    tokens = part(**inputs).last_hidden_state
    grid = tokens.new_full((len(images), SIDE, SIDE, tokens.shape[-1]), torch.nan)
    for number, patches in enumerate(inputs["flattened_patches"]):
        for token, (row, column) in zip(tokens[number], patches[:, :2].long().tolist()):
            if row:
                grid[number, row - 1, column - 1] = token
    return grid


def squares(num_cells: int, side: int = 96) -> torch.Tensor:
    """Grey images with a bright square, one for each of `num_cells` x `num_cells` positions, row by row."""
    images = torch.full((num_cells * num_cells, 3, side, side), 110, dtype=torch.uint8)
    size = side // num_cells
    for place, image in enumerate(images):
        row, column = divmod(place, num_cells)
        image[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = 240
    return images


def where_it_changes(features: torch.Tensor) -> list[int]:
    """The cell of each image, counted row by row, that differs most from the median over images."""
    cells = features.flatten(1, -2).float()  # (I, P, C)
    usual = cells.median(dim=0).values
    return (cells - usual).square().sum(dim=-1).argmax(dim=1).tolist()


def forbid_waiting(monkeypatch) -> None:
    """Makes every operation fail that synchronises with the device or uses Pillow."""

    def wait(*args, **kwargs):
        raise AssertionError("the teacher waits for the device")

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    for name in ("resize", "tobytes", "convert", "load"):
        monkeypatch.setattr(Image.Image, name, wait)


def assert_runs_alone(teacher: Teacher, monkeypatch) -> None:
    """Checks that features need no gradient, no synchronisation and no autocast."""
    images = random_images(2, 32)
    features = teacher(images)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        under_autocast = teacher(images)
    assert features.dtype == under_autocast.dtype == teacher.dtype
    assert torch.equal(features, under_autocast)
    assert not features.requires_grad and not under_autocast.requires_grad
    with monkeypatch.context() as patch:
        forbid_waiting(patch)
        again = teacher(images)
    assert torch.equal(features, again)


def assert_places_stay(teacher: Teacher) -> None:
    """Checks that the cell of the square changes most, in the grid and after it is matched to the student's."""
    side = teacher.grid[0]
    assert teacher.grid[:2] == (side, side)
    assert where_it_changes(teacher(squares(side))) == list(range(side * side))
    for size in (3, 4):
        for grid_matching in ("unshuffle", "interpolate"):
            tokens = match_grid(teacher(squares(size)), size, grid_matching)
            assert where_it_changes(tokens) == list(range(size * size)), (size, grid_matching)
