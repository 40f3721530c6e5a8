"""A converted checkpoint loads, gives the original's answers, and lists the tensors that were left out."""

import subprocess
import sys
from unittest.mock import create_autospec

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)
from transformers.models.clip import CLIPConfig

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor, HawaiiVisionModel
from hawaii import __main__ as command
from hawaii.processing.chat_templates import adapt_chat_template, load_chat_template
from hawaii.tests.hub_cards.test_loading import TRANSFORMERS_4
from hawaii.tests.modeling_hawaii.conversion.test_move_kd import make_adapters, save_move_kd
from hawaii.tests.tiny.llava import CLIP, IMAGE_TOKEN, TEXT, make_llava, randomize, save_clip, save_original
from hawaii.tests.tiny.models import WORDS
from hawaii.training.students import convert as convert_module
from hawaii.training.students.convert import UNUSED_FILE, group_names


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
OWN_TEMPLATE = "{% for message in messages %}{% for item in message['content'] %}{% if item['type'] == 'image' %}" + (
    "<image>{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT :"
)


def make_tokenizer(with_image_token: bool, **kwargs) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with a word for each embedding of the tiny LLaVA; the last may be the image token."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = dict.fromkeys(special + WORDS + [f"word{number}" for number in range(40)])
    words = [*words][: IMAGE_TOKEN if with_image_token else IMAGE_TOKEN + 1]
    words += ["<image>"] if with_image_token else []
    assert len(words) == TEXT["vocab_size"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"] if with_image_token else None,
        **kwargs,
    )


def make_image_processor(**kwargs):
    return CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD, **kwargs
    )


@pytest.fixture
def llava_folder(tmp_path):
    """A LLaVA in transformers' format with its processor."""
    folder = tmp_path / "llava"
    make_llava().save_pretrained(folder, max_shard_size="200KB")
    LlavaProcessor(
        image_processor=make_image_processor(resample=2),
        tokenizer=make_tokenizer(with_image_token=True),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=OWN_TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def clip_folder(tmp_path):
    folder = save_clip(tmp_path / "clip")
    make_image_processor().save_pretrained(folder)
    return folder


def convert(*words) -> int:
    return command.main(["convert", *map(str, words)])


# Loads the folder in a process that cannot import the package.
LOAD = """
import sys
sys.modules["hawaii"] = None
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
model, folder = sys.argv[1:]
auto_class = AutoModel if model == "clip" else AutoModelForImageTextToText
model = auto_class.from_pretrained(folder, trust_remote_code=True)
print(type(model).__name__, type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)).__name__)
"""


def load_elsewhere(model, folder, python=sys.executable):
    finished = subprocess.run([python, "-c", LOAD, model, folder], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout.split()[-2:]


def test_a_converted_llava_gives_equal_answers(tmp_path, llava_folder, capsys):
    assert convert("llava", llava_folder, tmp_path / "new" / "student") == 0
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "new" / "student").eval()
    processor = HawaiiProcessor.from_pretrained(tmp_path / "new" / "student")
    llava = LlavaForConditionalGeneration.from_pretrained(llava_folder).eval()
    original = AutoProcessor.from_pretrained(llava_folder)
    image = Image.effect_noise((24, 24), 100).convert("RGB")
    content = [{"type": "image"}, {"type": "text", "text": "what color is the shape ?"}]
    prompt = original.apply_chat_template([{"role": "user", "content": content}])
    assert processor.apply_chat_template([{"role": "user", "content": content}]) == prompt
    inputs, expected = (each(images=image, text=prompt, return_tensors="pt") for each in (processor, original))
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    # Square images are prepared equally; others are padded, as in LLaVA-1.5, instead of cropped.
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, llava(**expected).logits, rtol=1e-5, atol=1e-5)
    assert processor.image_aspect_ratio == "pad"
    # 18 tensors: 16 of the last layer and 2 of the last norm.
    unused = (tmp_path / "new" / "student" / UNUSED_FILE).read_text().splitlines()
    assert len(unused) == 18
    printed = capsys.readouterr().out
    assert f"{student.num_parameters():,} parameters, float32: {tmp_path}/new/student" in printed
    assert f"18 tensors of {llava_folder} are not used" in printed


def test_the_folder_works_without_the_package_and_with_chat(tmp_path, llava_folder, capsys):
    student = tmp_path / "student"
    convert("llava", llava_folder, student)
    for python in (sys.executable, TRANSFORMERS_4):
        assert load_elsewhere("llava", student, python) == ["HawaiiForConditionalGeneration", "HawaiiProcessor"]
    Image.new("RGB", (20, 30), "red").save(tmp_path / "image.png")
    capsys.readouterr()
    question = ["--question", "what color is the shape ?"]
    assert command.main(["chat", str(student), "--image", str(tmp_path / "image.png"), *question]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("dtype", "expected"), [(None, "BF16"), ("float16", "F16")])
def test_weights_have_the_checkpoints_precision_or_the_given_one(tmp_path, llava_folder, dtype, expected):
    llava = LlavaForConditionalGeneration.from_pretrained(llava_folder, dtype=torch.bfloat16)
    for path in llava_folder.glob("model*"):
        path.unlink()
    llava.save_pretrained(llava_folder)
    convert("llava", llava_folder, tmp_path / "student", *([] if dtype is None else ["--dtype", dtype]))
    with safe_open(tmp_path / "student" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {expected}


def test_no_file_is_larger_than_the_checkpoints_largest(tmp_path, llava_folder):
    convert("llava", llava_folder, tmp_path / "student")
    sizes = [path.stat().st_size for path in llava_folder.glob("model*.safetensors")]
    new = [path.stat().st_size for path in (tmp_path / "student").glob("model*.safetensors")]
    header = 5000
    assert len(sizes) > 1 and max(new) <= max(sizes) + header


@pytest.mark.parametrize("model", ["llava", "move_kd"])
def test_llavas_original_format_gets_a_processor_with_a_token_for_images(tmp_path, clip_folder, model):
    if model == "llava":
        folder = save_original(make_llava(), tmp_path / "llava", "/there/is/none")
    else:
        folder = save_move_kd(make_llava(), make_adapters(), tmp_path / "llava", "/there/is/none")
    make_tokenizer(with_image_token=False).save_pretrained(folder)
    assert convert(model, folder, tmp_path / "student", "--vision_tower", clip_folder) == 0
    assert load_elsewhere(model, tmp_path / "student") == ["HawaiiForConditionalGeneration", "HawaiiProcessor"]
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student").eval()
    processor = HawaiiProcessor.from_pretrained(tmp_path / "student")
    assert processor.image_token_id == student.config.image_token_index == 40
    assert processor.chat_template == load_chat_template("vicuna_v1")
    assert list(processor.image_processor.image_mean) == MEAN
    assert list(processor.image_processor.image_std) == STD
    assert student.config.vision_config.num_general_adapters == (3 if model == "move_kd" else 0)
    inputs = processor(images=Image.new("RGB", (20, 30)), text="<image> what color ?", return_tensors="pt")
    assert student.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_the_image_token_uses_the_first_embedding_after_the_tokenizers(tmp_path, clip_folder):
    llava = make_llava(text={"vocab_size": 48})
    folder = save_original(llava, tmp_path / "llava", clip_folder)
    make_tokenizer(with_image_token=False).save_pretrained(folder)
    convert("llava", folder, tmp_path / "student")
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert (student.config.image_token_index, student.config.text_config.vocab_size) == (40, 64)


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("text_type", "template"), [("llama", TEMPLATE), ("llama", None), ("qwen2", TEMPLATE), ("qwen2", None)]
)
def test_the_tokenizers_template_is_kept_and_vicunas_is_the_default(tmp_path, clip_folder, text_type, template):
    llava = make_llava(text={"model_type": text_type})
    model_type = {"llama": "llava_llama", "qwen2": "llava_qwen"}[text_type]
    folder = save_original(llava, tmp_path / "llava", clip_folder, model_type=model_type)
    make_tokenizer(with_image_token=False, chat_template=template).save_pretrained(folder)
    assert convert("llava", folder, tmp_path / "student") == 0
    expected = load_chat_template("vicuna_v1") if template is None else adapt_chat_template(template)
    processor = HawaiiProcessor.from_pretrained(tmp_path / "student")
    assert processor.chat_template == expected
    content = [{"type": "image"}, {"type": "text", "text": "what color ?"}]
    assert "<image>\nwhat color ?" in processor.apply_chat_template([{"role": "user", "content": content}])


@torch.no_grad()
def test_a_clip_becomes_an_encoder_with_its_image_processor(tmp_path, capsys):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {name: value for name, value in CLIP.items() if name != "model_type"}
    clip = randomize(CLIPModel(CLIPConfig(vision_config=vision, text_config=text | {"vocab_size": 8})))
    clip.save_pretrained(tmp_path / "clip")
    make_image_processor().save_pretrained(tmp_path / "clip")
    convert("clip", tmp_path / "clip", tmp_path / "encoder", "--vision_feature_layer", "-3")
    assert load_elsewhere("clip", tmp_path / "encoder") == ["HawaiiVisionModel", "CLIPImageProcessorPil"]
    encoder = HawaiiVisionModel.from_pretrained(tmp_path / "encoder").eval()
    assert encoder.config.num_general_adapters == encoder.config.num_teacher_adapters == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "encoder")
    pixel_values = processor(Image.effect_noise((30, 20), 100).convert("RGB"), return_tensors="pt")["pixel_values"]
    expected = clip.vision_model(pixel_values, output_hidden_states=True).hidden_states[-3]
    torch.testing.assert_close(encoder(pixel_values).last_hidden_state, expected, rtol=0, atol=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert "     32  text_model.encoder.layers.*" in printed
    assert "     32  vision_model.encoder.layers.*" in printed


def test_a_siglip_for_any_aspect_ratio_gets_an_image_processor_for_squares(tmp_path):
    fields = {name: CLIP[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "patch_size")}
    siglip = Siglip2VisionModel(Siglip2VisionConfig(**fields, num_hidden_layers=2, num_patches=16))
    siglip.save_pretrained(tmp_path / "siglip")
    Siglip2ImageProcessor(patch_size=4, max_num_patches=16).save_pretrained(tmp_path / "siglip")
    convert("clip", tmp_path / "siglip", tmp_path / "encoder")
    processor = AutoProcessor.from_pretrained(tmp_path / "encoder")
    pixel_values = processor(Image.new("RGB", (30, 20)), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 16, 16)
    assert torch.equal(pixel_values, torch.full((1, 3, 16, 16), -1.0))  # its own mean and deviation, 0.5 and 0.5
    assert HawaiiVisionModel.from_pretrained(tmp_path / "encoder")(pixel_values).last_hidden_state.isfinite().all()


def test_a_folder_with_files_is_not_replaced(tmp_path, llava_folder, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert convert("llava", llava_folder, tmp_path / "mine") == 2
    assert "mine already has files: name a new folder." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("words", [[], ["clip"], ["llava"], ["move_kd"]])
def test_the_command_and_each_model_have_help_texts(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert(*words, "--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(" ".join(["usage: hawaii convert", *words]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("save_clip", "clip there here --vision_feature_layer -1 --dtype bfloat16"),
        ("save_llava", "llava there here --vision_tower clip --dtype bfloat16"),
        ("save_move_kd", "move_kd there here --vision_tower clip --dtype bfloat16"),
    ],
)
def test_every_option_is_a_parameter_of_the_function(monkeypatch, function, words):
    calls = create_autospec(getattr(convert_module, function))
    monkeypatch.setattr(convert_module, function, calls)
    assert convert(*words.split()) == 0
    calls.assert_called_once()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llava", "/there/is/none"], "hawaii convert: /there/is/none is no LLaVA"),
        (["clip", "/there/is/none"], "hawaii convert: /there/is/none is no CLIP checkpoint"),
        (["clip", "/there/is/none", "--dtype", "int4"], "dtype is 'int4'; it must be one of float32"),
    ],
)
def test_an_error_of_a_user_is_one_sentence(tmp_path, words, message, capsys):
    assert convert(words[0], words[1], tmp_path / "student", *words[2:]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("tokenizer_config.json", "{}/tokenizer_config.json is damaged: it is not JSON"),
        ("processor_config.json", "The image processor of {} could not be loaded"),
    ],
)
def test_an_error_of_the_processor_is_found_before_the_weights_are_read(
    tmp_path, llava_folder, monkeypatch, capsys, broken, problem
):
    (llava_folder / broken).write_text("{")
    (llava_folder / "preprocessor_config.json").write_text("{")
    monkeypatch.setattr(convert_module, "convert_llava", create_autospec(convert_module.convert_llava))
    assert convert("llava", llava_folder, tmp_path / "student") == 2
    assert problem.format(llava_folder) in capsys.readouterr().err
    convert_module.convert_llava.assert_not_called()


def test_every_token_has_an_embedding(tmp_path, clip_folder):
    folder = save_original(make_llava(), tmp_path / "llava", clip_folder)
    tokenizer = make_tokenizer(with_image_token=False)
    tokenizer.add_tokens([f"more{number}" for number in range(30)])
    tokenizer.save_pretrained(folder)
    assert convert("llava", folder, tmp_path / "student") == 0
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert (student.config.image_token_index, student.get_input_embeddings().num_embeddings) == (70, 128)


@pytest.mark.parametrize(("original", "expected"), [("pad", "pad"), ("square", "crop"), (None, "crop")])
def test_images_become_squares_as_for_the_llava(tmp_path, clip_folder, original, expected):
    folder = save_original(make_llava(), tmp_path / "llava", clip_folder, image_aspect_ratio=original)
    make_tokenizer(with_image_token=False).save_pretrained(folder)
    assert convert("llava", folder, tmp_path / "student") == 0
    assert HawaiiProcessor.from_pretrained(tmp_path / "student").image_aspect_ratio == expected


def test_the_folder_may_be_the_working_directory_or_a_link(tmp_path, llava_folder, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert convert("llava", llava_folder, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "config.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert("llava", llava_folder, ".") == 0
    assert (tmp_path / "here" / "config.json").is_file()


# Limits the size of files, which looks like a full disk.
FULL_DISK = """
import resource, signal, sys
from hawaii.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(main(["convert", "llava", *sys.argv[1:]]))
"""


def test_a_full_disk_is_one_sentence_and_leaves_no_files(tmp_path, llava_folder):
    (tmp_path / "new").mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, llava_folder, tmp_path / "new" / "student"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 2, finished.stderr[-3000:]
    assert finished.stderr.splitlines()[-1].startswith("hawaii convert: ") and "File too large" in finished.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_tensors_are_grouped_by_stack_and_by_module():
    names = ["a.layers.0.fc.weight", "a.layers.11.fc.weight", "a.norm.weight", "a.norm.bias", "scale"]
    assert group_names(names) == {"a.layers.*": 2, "a.norm": 2, "scale": 1}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n"


@pytest.mark.parametrize("model", ["clip", "llava", "move_kd"])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", "{", "{}/config.json is damaged: it is not JSON"),
        ("config.json", POINTER, "{}/config.json is a Git LFS pointer"),
        ("model.safetensors", POINTER, "{}/model.safetensors is a Git LFS pointer"),
        ("model.safetensors", None, "{}/model.safetensors is damaged or truncated"),
        (
            "adapter_config.json",
            "{}",
            "{} is not a complete model: its adapter_config.json contains adapters, such as",
        ),
    ],
)
def test_what_is_in_place_of_a_checkpoint_is_named(
    clip_folder, llava_folder, tmp_path, capsys, model, name, content, problem
):
    folder = clip_folder if model == "clip" else llava_folder
    if name == "model.safetensors":
        for path in folder.glob("model*"):
            path.unlink()
    (folder / name).write_text("half a file" if content is None else content)
    capsys.readouterr()
    assert convert(model, folder, tmp_path / "student") == 2
    error = capsys.readouterr().err
    assert problem.format(folder) in error and error.count("\n") == 1
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("model", ["clip", "llava", "move_kd"])
@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "its adapter_config.json contains adapters"),
        (
            ["config.json", "adapter_config.json", "adapter_model.safetensors"],
            "its adapter_config.json contains adapters",
        ),
        (["config.json", "mm_projector.bin"], "its mm_projector.bin contains LLaVA's projector"),
        (["mm_projector.bin"], "its mm_projector.bin contains LLaVA's projector"),
    ],
)
def test_a_part_of_a_model_is_named(tmp_path, capsys, model, files, problem):
    folder = tmp_path / "part"
    folder.mkdir()
    for name in files:
        (folder / name).write_text('{"model_type": "llava_llama", "mm_vision_tower": "x"}')
    assert convert(model, folder, tmp_path / "student") == 2
    error = capsys.readouterr().err
    assert f"{folder} is not a complete model: {problem}" in error
    assert "and name its folder" in error or "name the folder of the complete model" in error


def test_a_file_with_only_a_projector_is_named(llava_folder, tmp_path, capsys):
    for path in llava_folder.glob("model*"):
        path.unlink()
    save_file({"multi_modal_projector.linear_1.bias": torch.zeros(8)}, llava_folder / "model.safetensors")
    assert convert("llava", llava_folder, tmp_path / "student") == 2
    assert f"{llava_folder} contains only a projector and no other weights" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["clip", "llava", "move_kd"])
def test_a_name_with_two_slashes_is_no_name_of_the_hub(model, tmp_path, capsys):
    assert convert(model, "a/b/c", tmp_path / "student") == 2
    error = capsys.readouterr().err
    assert "a/b/c is no " in error and "the Hub, where a name is owner/name, has no model of that name" in error
