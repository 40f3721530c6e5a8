"""What a Space loads: the commit that is named, and facts that may be damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hawaii.files import run_contents
from hawaii.hub_cards.publish import publish
from hawaii.hub_cards.space.hawaii_space.loading import FACTS_FILE, find_title, read_facts


SPACE = Path(__file__).parents[3] / "hub_cards/space"
# A Space does not have the package.
LOAD = """
import json, os, sys
sys.modules["hawaii"] = None
from hawaii_space.loading import load_model
model, processor, facts = load_model("user/name", sys.argv[1])
print(json.dumps([facts, model.lm_head.weight.tolist(), os.path.exists(sys.argv[2])]))
"""


def test_weights_code_and_facts_are_those_of_the_named_commit(folder, hub, tmp_path):
    publish(str(folder), "user/name")
    commit = hub.repositories["user/name"].branches["main"]
    trace = tmp_path / "trace"
    intruder = f"\nopen({str(trace)!r}, 'w').close()\n".encode()
    changed = {path.name: path.read_bytes() + intruder for path in folder.glob("*_hawaii.py")}
    changed |= {"model.safetensors": b"no weights", "training.json": b'{"name": "other"}'}
    hub.push("user/name", changed)
    later = hub.repositories["user/name"].branches["main"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {**hub.environment, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def load(revision):
        command = [sys.executable, "-c", LOAD, revision, trace]
        return subprocess.run(command, cwd=SPACE, env=environment, capture_output=True, text=True, timeout=600)

    loaded = load(commit)
    assert loaded.returncode == 0, loaded.stderr[-4000:]
    facts, weights, is_traced = json.loads(loaded.stdout.splitlines()[-1])
    assert facts == read_facts(folder / FACTS_FILE)
    assert weights == load_file(folder / "model.safetensors")["lm_head.weight"].tolist()
    assert not is_traced
    assert load(later).returncode  # what was pushed later would show itself
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "bytes", "deep"],
)
def test_damaged_facts_count_as_not_known(content, tmp_path):
    (tmp_path / FACTS_FILE).write_bytes(content)
    assert read_facts(tmp_path / FACTS_FILE) == read_facts(tmp_path / "missing.json") == {}


@pytest.mark.parametrize("facts", [{}, {"name": None}, {"name": ["HAWAII"]}, {"name": ""}])
def test_a_model_without_a_name_is_called_as_it_was_loaded(facts):
    assert find_title(facts, "user/name") == "user/name"
    assert find_title({"name": "HAWAII"}, "user/name") == "HAWAII"


def test_the_facts_are_where_training_writes_them():
    assert FACTS_FILE == run_contents.FACTS_FILE
