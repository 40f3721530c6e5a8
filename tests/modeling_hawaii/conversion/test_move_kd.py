"""A student that starts from MoVE-KD's weights computes MoVE-KD's formulas."""

import json

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.move_kd import convert_move_kd
from hawaii.tests.tiny.llava import (
    CLIP,
    IMAGE_TOKEN,
    PINPOINTS,
    make_llava,
    make_llava_next,
    rename,
    save_clip,
    save_original,
    save_tensors,
)


RANK, ALPHA, NUM_EXPERTS = 6, 3, 3
MODEL_TYPE = {"model_type": "move_llava_llama", "architectures": ["MoVELlavaLlamaForCausalLM"]}
SETTINGS = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": RANK,
    "moe_encoder_lora_alpha": ALPHA,
    "moe_encoder_num_experts": NUM_EXPERTS,
}
TOWER = "model.vision_tower.vision_tower.vision_model."


def make_adapters() -> dict[str, torch.Tensor]:
    """All adapters and routers, with MoVE-KD's names."""
    width, inner = CLIP["hidden_size"], CLIP["intermediate_size"]
    tensors = {}
    for layer in range(CLIP["num_hidden_layers"]):
        prefix = f"{TOWER}encoder.layers.{layer}.mlp."
        for name, (inputs, outputs) in {"moe_down": (width, inner), "moe_up": (inner, width)}.items():
            for expert in range(NUM_EXPERTS):
                tensors[f"{prefix}{name}.{expert}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.3
                tensors[f"{prefix}{name}.{expert}.lora_A.bias"] = torch.randn(RANK) * 0.3
                tensors[f"{prefix}{name}.{expert}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.3
                tensors[f"{prefix}{name}.{expert}.lora_B.bias"] = torch.randn(outputs) * 0.3
        tensors[f"{prefix}router.weight"] = torch.randn(NUM_EXPERTS, width)
        tensors[f"{prefix}router.bias"] = torch.randn(NUM_EXPERTS)
    return tensors


# Tensors that only training needs.
TEACHERS = {
    "sam_adapter_1.weight": torch.zeros(4, 2),
    "sam_adapter_2.bias": torch.zeros(4),
    "convnext_adapter_1.bias": torch.zeros(4),
    "vision_teachers.EVA.blocks.0.weight": torch.zeros(4),
}


def save_move_kd(llava: PreTrainedModel, adapters: dict, folder, tower, **fields):
    save_original(llava, folder, tower, **{**MODEL_TYPE, "moe": SETTINGS, **fields})
    tensors = rename(
        llava.state_dict(),
        (r"model\.vision_tower\.encoder\.layers\.(\d+)\.mlp\.fc", rf"{TOWER}encoder.layers.\1.mlp.original_module.fc"),
        (r"model\.vision_tower\.", TOWER),
        (r"model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
        (r"model\.multi_modal_projector\.linear_2", "model.mm_projector.2"),
        (r"model\.language_model\.", "model."),
    )
    (folder / "model.safetensors").unlink()
    save_tensors(folder, tensors | adapters | TEACHERS, num_files=3)
    return folder


def lora(tensors: dict, prefix: str, token: torch.Tensor) -> torch.Tensor:
    down = tensors[f"{prefix}.lora_A.weight"] @ token + tensors[f"{prefix}.lora_A.bias"]
    return (tensors[f"{prefix}.lora_B.weight"] @ down + tensors[f"{prefix}.lora_B.bias"]) * (ALPHA / RANK)


class NaiveMlp(nn.Module):
    """A feed-forward layer of CLIP with MoVE-KD's adapters, computed token by token from the named tensors."""

    def __init__(self, mlp: nn.Module, adapters: dict[str, torch.Tensor], layer: int):
        super().__init__()
        self.mlp, self.activation, self.chosen = mlp, ACT2FN["quick_gelu"], []
        self.prefix = f"{TOWER}encoder.layers.{layer}.mlp"
        self.adapters = {name: tensor.double() for name, tensor in adapters.items()}

    def process_token(self, token: torch.Tensor) -> torch.Tensor:
        router = f"{self.prefix}.router"
        scores = self.adapters[f"{router}.weight"] @ token + self.adapters[f"{router}.bias"]
        expert = int(scores.softmax(dim=0).argmax())
        self.chosen.append(expert)
        inner = self.mlp.fc1(token) + lora(self.adapters, f"{self.prefix}.moe_down.{expert}", token)
        inner = self.activation(inner)
        return self.mlp.fc2(inner) + lora(self.adapters, f"{self.prefix}.moe_up.{expert}", inner)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.stack([self.process_token(token) for token in image]) for image in hidden_states])


def save_with_naive(llava: PreTrainedModel, tmp_path):
    """Saves a MoVE-KD; returns its folder, and the LLaVA in float64 with the naive layers in its encoder."""
    adapters = make_adapters()
    folder = save_move_kd(llava, adapters, tmp_path / "move_kd", save_clip(tmp_path / "clip"))
    llava = llava.double()
    for index, layer in enumerate(llava.model.vision_tower.encoder.layers):
        layer.mlp = NaiveMlp(layer.mlp, adapters, index)
    return folder, llava


@pytest.fixture
def move_kd(tmp_path):
    return save_with_naive(make_llava(), tmp_path)


@torch.no_grad()
def test_features_and_logits_follow_the_formulas(move_kd):
    folder, llava = move_kd
    pixel_values = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    student = convert_move_kd(folder, dtype=torch.float64).model
    outputs = llava.model.vision_tower(pixel_values, output_hidden_states=True)
    features = student.model.vision_tower(pixel_values).last_hidden_state
    torch.testing.assert_close(features, outputs.hidden_states[-2], rtol=1e-9, atol=1e-9)
    chosen = [set(layer.mlp.chosen) for layer in llava.model.vision_tower.encoder.layers]
    assert all(experts == {0, 1, 2} for experts in chosen), "every adapter acted somewhere"

    theirs = torch.tensor([[1, 5, *[IMAGE_TOKEN] * 16, 6, *[IMAGE_TOKEN] * 16, 7, 8]])
    own = torch.where(theirs == IMAGE_TOKEN, student.config.image_token_index, theirs)
    expected = llava(input_ids=theirs, pixel_values=pixel_values).logits
    found = student(input_ids=own, pixel_values=pixel_values).logits
    # The language model's norms are computed in float32 whatever its type.
    torch.testing.assert_close(found[..., :40], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_move_kd_that_was_trained_on_tiles_cuts_images_into_them(tmp_path):
    folder, llava = save_with_naive(make_llava_next(), tmp_path)
    student, unused = convert_move_kd(folder, dtype=torch.float64)
    assert student.config.image_grid_pinpoints == PINPOINTS
    assert set(TEACHERS) <= set(unused) and "model.image_newline" not in unused
    # A wide image: two of the four rows of patches of its 1 x 2 tiles.
    theirs = torch.tensor([[1, 5, *[IMAGE_TOKEN] * (16 + 2 * 9), 7, 8]])
    own = torch.where(theirs == IMAGE_TOKEN, student.config.image_token_index, theirs)
    images = {
        "pixel_values": torch.randn(3, 3, 16, 16, dtype=torch.float64),
        "image_sizes": torch.tensor([[14, 90]]),
    }
    expected = llava(input_ids=theirs, **images).logits
    torch.testing.assert_close(student(input_ids=own, **images).logits[..., :40], expected, rtol=1e-4, atol=1e-4)


def test_the_configuration_describes_move_kds_adapters(move_kd):
    folder, _ = move_kd
    student, unused = convert_move_kd(folder)
    vision = student.config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters, vision.lora_bias) == (0, NUM_EXPERTS, True)
    assert (vision.lora_rank, vision.lora_alpha) == (RANK, ALPHA)
    assert (vision.adapter_placement, vision.router_hidden_size, vision.router_gradient) == ("linear", None, "none")
    assert set(TEACHERS) <= set(unused)
    rest = [name for name in unused if name not in TEACHERS]
    assert all(name.startswith((f"{TOWER}encoder.layers.3.", f"{TOWER}post_layernorm.")) for name in rest)
    # Twelve tensors of attention and norms, four of the feed-forward layer, four of each adapter, two of the router.
    assert len(rest) == 2 + 12 + 4 + 2 * NUM_EXPERTS * 4 + 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"moe": SETTINGS | {"moe_encoder_dense": True}},
            "moe_encoder_dense: all adapters act on each token",
        ),
        ({"mm_vision_tower": "./checkpoints/clip"}, r"\./checkpoints/clip is no CLIP .* Pass its folder or Hub id"),
    ],
    ids=["dense", "tower"],
)
def test_an_unsupported_move_kd_is_refused(tmp_path, fields, message):
    tower = save_clip(tmp_path / "clip")
    folder = save_move_kd(make_llava(), make_adapters(), tmp_path / "move_kd", tower, **fields)
    with pytest.raises(UserError, match=message):
        convert_move_kd(folder)


def test_an_encoder_without_adapters_is_refused(tmp_path):
    folder = save_original(make_llava(), tmp_path / "llava", save_clip(tmp_path / "clip"))
    with pytest.raises(UserError, match="has no adapters in its encoder: convert it as llava"):
        convert_move_kd(folder)


def test_a_missing_half_of_an_adapter_is_named(tmp_path):
    adapters = make_adapters()
    del adapters[f"{TOWER}encoder.layers.1.mlp.moe_up.2.lora_B.bias"]
    folder = save_move_kd(make_llava(), adapters, tmp_path / "move_kd", save_clip(tmp_path / "clip"))
    lacking = r"lacks: model\.vision_tower\.layers\.1\.feed_forward\.fc2_adapters\.up_bias"
    with pytest.raises(UserError, match=lacking):
        convert_move_kd(folder)


def test_the_scale_defaults_to_the_papers(move_kd):
    folder, _ = move_kd
    values = json.loads((folder / "config.json").read_text())
    del values["moe"]
    (folder / "config.json").write_text(json.dumps(values))
    assert convert_move_kd(folder).model.config.vision_config.lora_alpha == 1
