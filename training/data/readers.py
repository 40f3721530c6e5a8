"""The supported data formats, one class and one module each."""

import gc
from pathlib import Path

from ...files.user_error import UserError
from .llava_json import LlavaJson
from .record import Record


# A reader has a `description` for errors; `matches(path)`; and `read_records(path)`, which yields a `Record` for each
# record of the file, including those with a problem. The first reader that matches reads the file.
READERS = [LlavaJson]


def read_records(data_path: str) -> list[Record]:
    """
    Reads a data file of any supported format.

    Raises:
        UserError: The file is missing, empty, not UTF-8 or not of a supported format.
    """
    path = Path(data_path)
    if not path.is_file():
        raise UserError(f"There is no data file {data_path}.")
    reader = next((reader for reader in READERS if reader.matches(path)), None)
    if reader is None:
        formats = "; ".join(reader.description for reader in READERS)
        raise UserError(f"{data_path} has no supported data format: {formats}.")
    # Records have no reference cycles, but the collector would scan all of them again and again: 60 % of the time.
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        records = list(reader.read_records(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{data_path} is not UTF-8 text: {error}.") from error
    finally:
        if is_collecting:
            gc.enable()
    if not records:
        raise UserError(f"{data_path} must hold a list of records, one or more.")
    return records
