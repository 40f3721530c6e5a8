"""Names of models in a recipe: a local folder or a hub id."""

from pathlib import Path

from .model_folder import TOKENIZER_FILES, check_json_files, check_model_folder
from .user_error import UserError


def check_source(option: str, name: str, file: str = "config.json") -> None:
    """
    Checks that a name can be a model, before a library fails with a less helpful message.

    Args:
        option (`str`):
            Option of the recipe that names the model, such as `vision_tower`.
        name (`str`):
            Folder or hub id.
        file (`str`, *optional*, defaults to `"config.json"`):
            File that a folder must contain.

    Raises:
        UserError: the folder lacks the file, has a damaged one or only a part of a model, or the name is neither an
            existing folder nor a possible hub id.
    """
    if Path(name).is_dir():
        try:
            if file == "config.json":  # a tokenizer's folder may contain only a part of a model
                check_model_folder(Path(name))
            else:
                check_json_files(Path(name), TOKENIZER_FILES)
        except UserError as error:
            raise UserError(f"hawaii-vlm cannot load the {option} {name}: {error}") from error
        if not (Path(name) / file).is_file():
            raise UserError(
                f"The {option} {name} is a folder without {file}. Name a folder that `save_pretrained` wrote."
            )
    elif name.count("/") > 1 or name.startswith((".", "/")):  # a hub id is `name` or `owner/name`
        raise UserError(
            f"There is no {option} {name}: name a folder or a hub id, which has one slash at most. (`hawaii data "
            "easy_vqa` creates all that the recipe easy_vqa names.)"
        )
