"""The code in a saved folder is complete and flat, and needs no additional library."""

import ast
import re
import sys
from pathlib import Path

import pytest

from hawaii import HawaiiForConditionalGeneration, HawaiiVisionModel
from hawaii.configuration import hub_hawaii
from hawaii.configuration.hub_hawaii import AUTO_MAP, PROCESSOR_AUTO_MAP, VISION_AUTO_MAP, read_code
from hawaii.tests.tiny.models import make_config, make_processor


ROOT = Path(hub_hawaii.__file__).parents[1]
SIBLING_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)


def imported_modules(source: str) -> set[str]:
    """Top-level modules that a source file imports from outside its folder, anywhere in the file."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names}


def reached(entry: str, sources: dict[str, str]) -> set[str]:
    """Files that importing `entry` executes, without `entry`."""
    found, waiting = set(), [entry]
    while waiting:
        for module in SIBLING_IMPORT.findall(sources[waiting.pop()]):
            if f"{module}.py" not in found | {entry}:
                found.add(f"{module}.py")
                waiting.append(f"{module}.py")
    return found


def write_package(root, files: dict[str, str]):
    """Writes a package of the given files and returns its first folder."""
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root / "configuration"


def test_the_code_is_the_model_and_its_processor_without_training_and_evaluation():
    folders = ("configuration", "processing", "modeling_hawaii")
    assert set(read_code()) == {path.name for folder in folders for path in (ROOT / folder).glob("*_hawaii.py")}


def test_the_code_is_flat():
    sources = read_code()
    for source in sources.values():
        assert not re.search(r"^\s*from \.\.", source, re.MULTILINE)
        assert not re.search(r"^\s*from \. import", source, re.MULTILINE)
        assert {f"{module}.py" for module in SIBLING_IMPORT.findall(source)} <= set(sources)


def test_each_file_imports_all_that_it_reaches_because_transformers_4_copies_no_others():
    sources = read_code()
    for name, source in sources.items():
        assert {f"{module}.py" for module in SIBLING_IMPORT.findall(source)} == reached(name, sources), name


def test_the_code_needs_only_the_standard_library_torch_transformers_and_pillow():
    allowed = {"torch", "transformers", "PIL", *sys.stdlib_module_names}
    for name, source in read_code().items():
        assert imported_modules(source) <= allowed, name


def test_a_complete_model_has_all_auto_classes_of_both_transformers_versions():
    model_classes = {"AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForVision2Seq"}
    assert set(AUTO_MAP) == {"AutoConfig", "AutoModel", *model_classes}


@pytest.mark.parametrize("auto_map", [AUTO_MAP, VISION_AUTO_MAP, PROCESSOR_AUTO_MAP])
def test_every_auto_class_names_a_class_that_its_file_defines(auto_map):
    sources = read_code()
    for reference in auto_map.values():
        module, class_name = reference.split(".")
        assert re.search(rf"^class {class_name}\(", sources[f"{module}.py"], re.MULTILINE), reference


def test_imports_across_folders_become_imports_of_siblings(tmp_path):
    files = {
        "configuration/hub_hawaii.py": "X = 1\n",
        "configuration/configuration_hawaii.py": "from .hub_hawaii import X\n",
        "modeling_hawaii/model_hawaii.py": "from ..configuration.configuration_hawaii import X\n",
        "modeling_hawaii/convert.py": "not shipped",
    }
    assert read_code(write_package(tmp_path, files)) == {
        "hub_hawaii.py": "X = 1\n",
        "configuration_hawaii.py": "from .hub_hawaii import X\n",
        "model_hawaii.py": "from .configuration_hawaii import X\n"
        "from .hub_hawaii import __name__ as _hub_hawaii  # noqa: E402, F401\n",
    }


def test_two_files_of_the_same_name_are_refused(tmp_path):
    files = {
        "configuration/hub_hawaii.py": "",
        "processing/model_hawaii.py": "",
        "modeling_hawaii/model_hawaii.py": "",
    }
    with pytest.raises(ValueError, match=r"Two folders hold a file named model_hawaii\.py"):
        read_code(write_package(tmp_path, files))


def test_code_loaded_from_a_saved_folder_saves_itself_unchanged(hub_folder, monkeypatch):
    sources = read_code()
    monkeypatch.setattr(hub_hawaii, "__file__", str(hub_folder / "hub_hawaii.py"))
    assert read_code() == sources


@pytest.fixture
def uploaded(monkeypatch):
    """Names of the files that a push would upload; nothing is uploaded."""
    import huggingface_hub

    class Repository:
        repo_id = "user/model"

    files = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *args, **kwargs: Repository)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_commit",
        lambda *args, operations, **kwargs: files.extend(operation.path_in_repo for operation in operations),
    )
    return files


@pytest.mark.parametrize("is_saved_before", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: HawaiiForConditionalGeneration(make_config()),
        lambda: HawaiiVisionModel(make_config().vision_config),
        make_config,
        lambda: make_config().vision_config,
        make_processor,
    ],
    ids=["model", "vision_model", "config", "vision_config", "processor"],
)
def test_every_pushed_object_contains_its_code(tmp_path, uploaded, make, is_saved_before):
    saved = make()
    if is_saved_before:
        saved.save_pretrained(tmp_path / "model")
    saved.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="user/model")
    assert set(read_code()) <= set(uploaded)
    assert {"config.json", "processor_config.json"} & set(uploaded)


def test_push_to_hub_uploads_the_code(uploaded):
    HawaiiForConditionalGeneration(make_config()).push_to_hub("user/model")
    assert {*read_code(), "config.json", "model.safetensors"} <= set(uploaded)
