"""The student's tokenizer: the one that the recipe names, with a token for images."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...files.atomic import read_json
from ...files.custom_code import find_code, refuse_code
from ...files.model_folder import TOKENIZER_FILES, find_damage
from ...files.sources import check_source
from ...files.user_error import UserError
from ...modeling_hawaii.conversion.checkpoint_tensors import find_file
from ...processing.processing_hawaii import IMAGE_TOKEN
from ..recipes.arguments import ModelArguments


def read_tokenizer(source: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """
    Loads a tokenizer and adds a token for images if it has none.

    Args:
        source (`str`):
            Folder or hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with it.

    Raises:
        UserError: the tokenizer cannot be read, lacks a feature that training needs, or needs code that is not
            trusted.
    """
    try:
        path = find_file(source, "tokenizer_config.json")
        code = [] if path is None else find_code(read_json(path))
        try:
            # Without the option transformers would ask on the terminal.
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except ValueError as error:
            if not code or "trust_remote_code" not in str(error):
                raise
            if not trust_remote_code:
                hint = "set trust_remote_code: true in the recipe"
                raise refuse_code(f"The tokenizer {source}", source, code, hint) from None
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain exceptions for a damaged file
        reason = find_damage(Path(source), TOKENIZER_FILES) or error
        raise UserError(f"The tokenizer {source} cannot be read: {reason}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {source} ({type(tokenizer).__name__}) is written in Python: it does not give the position "
            "of its tokens in the text, which is needed to find the answers. Name one that has a tokenizer.json."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"The tokenizer {source} has neither a padding token nor an end token, so batches cannot be padded. Set "
            "pad_token or eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # batches are also padded when the model is used
    # Tested with two tokens in a row, like those of an image: ordinary text would be split or merged.
    ids = tokenizer(IMAGE_TOKEN * 2, add_special_tokens=False)["input_ids"]
    if IMAGE_TOKEN not in tokenizer.get_vocab() or ids != [tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)] * 2:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """
    Loads the recipe's tokenizer, with a token for images.

    Raises:
        UserError: [`read_tokenizer`] refuses it.
    """
    source = model_args.tokenizer or model_args.language_model or model_args.llava
    assert source is not None
    check_source("tokenizer", source, "tokenizer_config.json")
    return read_tokenizer(source, model_args.trust_remote_code)


def default_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the tokenizer's chat template, the one named `default` if it has several, or `None`."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
