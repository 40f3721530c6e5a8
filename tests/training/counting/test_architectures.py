"""The listed architectures have the published sizes, and a folder takes precedence over them."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, Pix2StructVisionModel

from hawaii.files.user_error import UserError
from hawaii.training.counting.architectures import ARCHITECTURES, read_architecture


def build(checkpoint):
    config = read_architecture(checkpoint)
    model_class = dict.fromkeys(("llama", "qwen3"), AutoModelForCausalLM).get(config.model_type, AutoModel)
    with torch.device("meta"):
        if config.model_type == "pix2struct_vision_model":  # no Auto class has it
            return Pix2StructVisionModel(config)
        return model_class.from_config(config)


# Only the vision part of CLIP, SigLIP 2, SAM, SAM 3 and Pix2Struct.
@pytest.mark.parametrize(
    ("checkpoint", "num_parameters"),
    [
        ("openai/clip-vit-large-patch14-336", 303_507_456),
        ("facebook/sam-vit-large", 308_278_272),
        ("google/pix2struct-large", 512_812_032),
        ("google/siglip2-base-patch16-384", 93_176_064),
        ("google/siglip2-large-patch16-384", 316_283_904),
        ("google/siglip2-so400m-patch16-384", 428_256_704),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", 303_129_600),
        ("facebook/sam3", 454_038_784),
        ("nvidia/C-RADIOv4-H", 651_727_360),
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616),
        ("Qwen/Qwen3-0.6B", 596_049_920),
    ],
)
def test_a_known_model_has_its_published_size(checkpoint, num_parameters):
    assert build(checkpoint).num_parameters() == num_parameters


def test_every_known_architecture_is_checked_above():
    assert len(ARCHITECTURES) == 11


def test_a_folder_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LlamaConfig(hidden_size=64).save_pretrained("lmsys/vicuna-7b-v1.5")
    assert read_architecture("lmsys/vicuna-7b-v1.5").hidden_size == 64


def test_changing_a_configuration_leaves_the_list_unchanged():
    read_architecture("lmsys/vicuna-7b-v1.5").vocab_size = 1
    assert read_architecture("lmsys/vicuna-7b-v1.5").vocab_size == 32000


@pytest.mark.parametrize(
    "values",
    [
        "{}",
        "3",
        '{"model_type": ["llama"]}',
        '{"model_type": "llama", "hidden_size": "x"}',
        '{"model_type": "unheard_of"}',
        '{"auto_map": {"AutoConfig": "own.Config"}}',
    ],
)
def test_an_unknown_or_damaged_configuration_is_an_error(tmp_path, values):
    (tmp_path / "config.json").write_text(values)
    with pytest.raises(UserError, match=f"transformers does not know the configuration of {tmp_path}: "):
        read_architecture(str(tmp_path))


def test_other_names_are_read_from_the_hub():
    with pytest.raises(OSError, match="The configuration of someone/something could not be read: "):
        read_architecture("someone/something")
