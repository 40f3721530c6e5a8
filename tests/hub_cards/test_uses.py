"""What users do with a published folder next. docs/compatibility.md lists these tests with their commands."""

import threading

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer, pipeline


GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
CONTENT = [
    {"type": "image", "image": Image.new("RGB", (40, 24), "red")},
    {"type": "text", "text": "what color is it ?"},
]


def load(folder, **kwargs):
    return AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()


@pytest.fixture(scope="module")
def processor(hub_folder):
    return AutoProcessor.from_pretrained(hub_folder)


@pytest.fixture(scope="module")
def model(hub_folder):
    return load(hub_folder)


@pytest.fixture(scope="module")
def inputs(processor):
    return processor.apply_chat_template(
        [{"role": "user", "content": CONTENT}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.fixture(scope="module")
def answer(model, inputs):
    return model.generate(**inputs, **GREEDY)


@pytest.fixture(scope="module")
@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_streaming(model, processor, inputs, answer):
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces) == processor.decode(answer[0, inputs["input_ids"].shape[1] :])


@pytest.mark.slow
def test_compile(hub_folder, inputs, logits, answer):
    model = load(hub_folder)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), answer)


def test_export(model, inputs, logits):
    inputs = {**inputs, "use_cache": False}  # torch.export does not know transformers' cache
    exported = torch.export.export(model, (), inputs, strict=False)
    torch.testing.assert_close(exported.module()(**inputs).logits, logits)


@pytest.mark.parametrize(
    "options", [{"assistant": True}, {"prompt_lookup_num_tokens": 3}], ids=["assisted", "prompt_lookup"]
)
def test_decoding(hub_folder, model, inputs, answer, options):
    if options.pop("assistant", False):
        options["assistant_model"] = load(hub_folder)
    assert torch.equal(model.generate(**inputs, **GREEDY, **options), answer)


def test_device_map(hub_folder, tmp_path, inputs, logits):
    parts = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    model = load(hub_folder, device_map=parts, offload_folder=str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, logits)


def test_sharding(model, tmp_path, inputs, logits):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(**inputs).logits, logits)


@pytest.mark.parametrize("task", ["image-text-to-text", pytest.param("any-to-any", marks=pytest.mark.timm)])
def test_pipeline(hub_folder, processor, inputs, answer, task):
    pipe = pipeline(task, model=str(hub_folder), trust_remote_code=True, device="cpu")
    messages = [{"role": "user", "content": CONTENT}]
    generated = pipe(text=messages, return_full_text=False, generate_kwargs=GREEDY)
    expected = processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert generated[0]["generated_text"].strip() == expected.strip()


@pytest.mark.slow
def test_trl(hub_folder, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    content = [[{"role": "user", "content": "what color is it ?"}], [{"role": "assistant", "content": "red"}]]
    rows = {"images": [[CONTENT[0]["image"]]] * 4, "prompt": [content[0]] * 4, "completion": [content[1]] * 4}
    model = load(hub_folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            max_length=None,
            learning_rate=1e-3,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoProcessor.from_pretrained(hub_folder),
    )
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("language_model" in name for name in changed) and any("adapters.up" in name for name in changed)
