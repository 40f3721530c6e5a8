"""What a recipe loads by name: a folder of this machine or a hub id."""

from pathlib import Path

from .user_error import UserError


def check_source(role: str, name: str, file: str = "config.json") -> None:
    """
    Says what is wrong with a name before a library does in words of its own.

    Args:
        role (`str`):
            What the recipe calls it.
        name (`str`):
            Folder or hub id.
        file (`str`, *optional*, defaults to `"config.json"`):
            What such a folder holds.

    Raises:
        ValueError: it is a folder of something else, or can be neither.
    """
    if Path(name).is_dir():
        if not (Path(name) / file).is_file():
            raise UserError(f"The {role} {name} is a folder without {file}; name one that `save_pretrained` left.")
    elif name.count("/") > 1 or name.startswith((".", "/")):  # a hub id is `name` or `owner/name`
        raise UserError(
            f"There is no {role} {name}: name a folder or a hub id. (`hawaii data easy_vqa` makes all that the "
            "embedded default names.)"
        )
