"""The chat templates by name: `plain` (stage 1) and `vicuna_v1` (stage 2)."""

from pathlib import Path


def load_chat_template(name_or_path: str) -> str:
    """
    Reads a chat template.

    Args:
        name_or_path (`str`):
            `"plain"`, `"vicuna_v1"`, or the path of a `.jinja` file.

    Raises:
        ValueError: neither a known name nor a file.
    """
    folder = Path(__file__).parent
    path = Path(name_or_path)
    if path.suffix != ".jinja":
        path = folder / f"{name_or_path}.jinja"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.jinja")))
        raise ValueError(f"There is no chat template {name_or_path!r}. Known by name: {known}; or give a .jinja file.")
    return path.read_text(encoding="utf-8").rstrip("\n")
