"""The recipes of this package, by name."""

import difflib
from pathlib import Path

from ...files.markdown_table import markdown_table
from ...files.user_error import UserError


BUILT_IN = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_recipe(name: str | Path, folder: Path = Path()) -> Path:
    """
    The file of a recipe.

    Args:
        name (`str` or `Path`):
            A YAML file, or the name of a built-in recipe, such as `hawaii_vicuna_7b`.
        folder (`Path`, *optional*):
            Folder that the file is relative to.

    Raises:
        UserError: there is neither; the closest built-in recipe is named.
    """
    path = folder / name
    if path.is_file():
        return path
    if str(name) in BUILT_IN:
        return BUILT_IN[str(name)]
    close = difflib.get_close_matches(Path(name).stem, BUILT_IN, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"There is no recipe {path}: name a YAML file or one of {', '.join(BUILT_IN)}.{hint}")


def describe_recipes() -> str:
    """A Markdown table of the built-in recipes: the name of each and the first line of its description."""
    rows = [
        [name, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")]
        for name, path in BUILT_IN.items()
    ]
    return markdown_table(["recipe", "description"], rows, num_text_columns=2)
