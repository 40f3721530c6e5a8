"""PEFT and quantization leave the mixture of adapters whole: frozen, saved with the model, in full precision."""

import copy

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import BitsAndBytesConfig

from hawaii import HawaiiForConditionalGeneration
from hawaii.tests.tiny.models import make_model


IMAGE = [4] * 16
TEXT = torch.tensor([[2, *IMAGE, 5, 6, 7, 8]])
MIXTURE = ("adapters.", ".routing.")
QUERIES = {"target_modules": ["q_proj", "v_proj"]}
METHODS = {
    "lora": LoraConfig(r=2, **QUERIES),
    "lora everywhere": LoraConfig(r=2, target_modules="all-linear"),
    "dora": LoraConfig(r=2, use_dora=True, **QUERIES),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, total_step=10, **QUERIES),
    "loha": LoHaConfig(r=2, **QUERIES),
    "vera": VeraConfig(r=2, target_modules=["q_proj"]),
    "ia3": IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
    "oft": OFTConfig(oft_block_size=4, **QUERIES),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.fixture
def pixel_values():
    return torch.randn(1, 3, 16, 16)


@pytest.fixture
def folder(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    return HawaiiForConditionalGeneration.from_pretrained(folder).eval()


def mixture_of(model):
    found = {
        name[name.index("vision_tower.") :]: parameter
        for name, parameter in model.named_parameters()
        if any(part in name for part in MIXTURE)
    }
    assert len(found) == 20  # two layers of two routers with four parameters each and two stacked parameters
    return found


@torch.no_grad()
def logits(model, pixel_values):
    return model(input_ids=TEXT, pixel_values=pixel_values, attention_mask=torch.ones_like(TEXT)).logits


@pytest.mark.parametrize("method", METHODS)
def test_a_peft_method_trains_is_saved_and_is_reloaded_and_leaves_the_mixture_as_it_was(
    folder, tmp_path, pixel_values, method
):
    before = {name: parameter.clone() for name, parameter in mixture_of(load(folder)).items()}
    model = get_peft_model(load(folder), copy.deepcopy(METHODS[method]))
    assert not any(parameter.requires_grad for parameter in mixture_of(model).values())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    first = logits(model, pixel_values)
    for _ in range(2):
        model(
            input_ids=TEXT, pixel_values=pixel_values, attention_mask=torch.ones_like(TEXT), labels=TEXT
        ).loss.backward()
        optimizer.step()
    changed = logits(model.eval(), pixel_values)
    assert (changed - first).abs().max() > 1e-4
    after = mixture_of(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, pixel_values), changed)


def test_a_merged_model_is_saved_with_equal_logits(folder, tmp_path, pixel_values):
    tied = make_model(text={"tie_word_embeddings": True})
    model = get_peft_model(tied, LoraConfig(r=2, modules_to_save=["lm_head"], **QUERIES))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    merged = model.merge_and_unload()
    expected = logits(merged, pixel_values)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged"), pixel_values), expected)


@pytest.mark.parametrize("method", ["prompt tuning", "prefix tuning", "lora"])
def test_generation_with_peft_sees_the_image(folder, pixel_values, method):
    model = get_peft_model(load(folder), copy.deepcopy(METHODS[method])).eval()
    inputs = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT), "pixel_values": pixel_values}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "suppress_tokens": [4]}
    answered = model.generate(**inputs, **options)
    tokens = TEXT
    for _ in range(4):
        with torch.no_grad():
            output = model(input_ids=tokens, pixel_values=pixel_values, attention_mask=torch.ones_like(tokens))
        scores = output.logits[:, -1]
        scores[:, [4, model.config.text_config.eos_token_id]] = -torch.inf
        tokens = torch.cat([tokens, scores.argmax(dim=-1, keepdim=True)], dim=1)
    assert answered[:, -4:].tolist() == tokens[:, -4:].tolist()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_leaves_the_mixture_and_the_head_in_full_precision(tmp_path, pixel_values, bits):
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # a block of 4-bit weights has 64
    make_model(vision=sizes, text=sizes).save_pretrained(tmp_path)
    model = HawaiiForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    )
    assert {parameter.dtype for parameter in mixture_of(model).values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.float32
    layer = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert layer.dtype in (torch.uint8, torch.int8)
    assert logits(model, pixel_values).isfinite().all()
