"""What is in a folder."""

import os
import sys
from pathlib import Path

from hawaii.configuration.hub_hawaii import read_code


ROOT = Path(__file__).parents[1]
# The interpreters of both supported versions of transformers. `make test` makes the second environment.
TRANSFORMERS_VERSIONS = {
    "transformers5": Path(sys.executable),
    "transformers4": Path(
        os.environ.get("HAWAII_TRANSFORMERS4_PYTHON", ROOT / ".venv-transformers4" / "bin" / "python")
    ),
}

# The files of a published folder whose weights fit into one.
PUBLISHED = {
    "README.md",
    "training.json",
    "manifest.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    *read_code(),
}


# As `hawaii evaluate` adds it to a card.
SCORE = {"task": "x", "data_set": "X", "repository": "a/x", "split": "test", "metric": "m", "value": 1}


def uploaded(hub, repository: str = "user/name") -> set[str]:
    """Names of the files in a repository of the `hub`, without the one that the Hub adds."""
    return set(hub.contents(repository)) - {".gitattributes"}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file under `folder`, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def changed_files(folder: Path, other: Path) -> set[str]:
    """The relative paths of the files that differ between two folders; a file that one of them lacks is an error."""
    files, others = contents(folder), contents(other)
    assert files.keys() == others.keys()
    return {name for name in files if files[name] != others[name]}


def damage(path: Path, kind: str) -> None:
    """Changes a file: `missing`, `empty`, `truncated` to its half, or `flipped`, one bit in its middle."""
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        assert kind == "flipped"
        content[len(content) // 2] ^= 1 << len(content) % 8
        path.write_bytes(content)


DAMAGES = ("missing", "empty", "truncated", "flipped")
