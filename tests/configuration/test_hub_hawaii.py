"""The code in a saved folder is complete and flat, and needs no additional library."""

import ast
import re
import sys
from pathlib import Path

import pytest

from hawaii.configuration import hub_hawaii
from hawaii.configuration.hub_hawaii import AUTO_MAP, PROCESSOR_AUTO_MAP, VISION_AUTO_MAP, read_code


ROOT = Path(hub_hawaii.__file__).parents[1]
SIBLING_IMPORT = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def imported_modules(source: str) -> set[str]:
    """Top-level modules that a source file imports from outside its folder, anywhere in the file."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names}


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


def test_each_file_names_all_others_in_imports_because_transformers_copies_no_others():
    sources = read_code()
    for name, source in sources.items():
        named = {f"{module}.py" for module in SIBLING_IMPORT.findall(source)}
        assert named - {name} == set(sources) - {name}, name


def test_every_file_has_the_hash_of_all_files(tmp_path):
    files = {f"{folder}/{folder}_hawaii.py": '"""Code."""\nX = 1\n' for folder in ("configuration", "processing")}
    files["configuration/hub_hawaii.py"] = '"""Code."""\n'
    folder = write_package(tmp_path, files)
    hashes = [set(re.findall('^CODE_HASH = "([0-9a-f]{16})"$', "".join(read_code(folder).values()), re.MULTILINE))]
    (folder / "configuration_hawaii.py").write_text('"""Code."""\nX = 2\n')
    hashes += [set(re.findall('^CODE_HASH = "([0-9a-f]{16})"$', "".join(read_code(folder).values()), re.MULTILINE))]
    assert [len(found) for found in hashes] == [1, 1] and hashes[0] != hashes[1]


def test_the_code_needs_only_the_standard_library_torch_transformers_with_its_hub_client_and_pillow():
    allowed = {"torch", "transformers", "PIL", "huggingface_hub", *sys.stdlib_module_names}
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
        "configuration/hub_hawaii.py": '"""Hub."""\n\nX = 1\n',
        "configuration/configuration_hawaii.py": '"""Configuration."""\n\nfrom .hub_hawaii import X\n',
        "modeling_hawaii/model_hawaii.py": '"""Model."""\n\nfrom ..configuration.configuration_hawaii import X\n',
        "modeling_hawaii/convert.py": "not shipped",
    }
    code = read_code(write_package(tmp_path, files))
    assert code.keys() == {"hub_hawaii.py", "configuration_hawaii.py", "model_hawaii.py"}
    assert code["hub_hawaii.py"].startswith('"""Hub."""\n') and code["hub_hawaii.py"].endswith('"\n\nX = 1\n')
    assert code["model_hawaii.py"].endswith('"\n\nfrom .configuration_hawaii import X\n')


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
