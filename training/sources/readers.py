"""The supported formats of data files, one class and one module each; `datasets` reads other data."""

import gc
import inspect
from collections.abc import Iterator
from pathlib import Path

from ...files.digest import digest
from ...files.user_error import UserError
from .llava_json import LlavaJson
from .record import Record
from .record_table import RecordTable, save_records


# A reader has a `description` for errors; `matches(path)`; and `read_records(path)`, which yields a `Record` for each
# record of the file, including those with a problem. The first reader that matches reads the file.
READERS = [LlavaJson]
OTHER_FORMATS = "formats of `datasets` (.parquet, .arrow, .tar, a folder of them or of save_to_disk, an id of the Hub)"


def find_reader(path: Path):
    """Returns the reader of a file, or `None`."""
    return next((reader for reader in READERS if reader.matches(path)), None)


def check_data_file(data_path: str) -> None:
    """Raises a `UserError` if there is no such file."""
    if not Path(data_path).is_file():
        raise UserError(f"There is no data file {data_path}.")


def read_records(data_path: str) -> Iterator[Record]:
    """
    Reads a data file of a format in [`READERS`].

    Raises:
        UserError: The file is missing, empty, not UTF-8 or not of a supported format.
    """
    check_data_file(data_path)
    path = Path(data_path)
    reader = find_reader(path)
    if reader is None:
        formats = "; ".join([*(reader.description for reader in READERS), OTHER_FORMATS])
        raise UserError(f"{data_path} has no supported data format: {formats}.")
    # Records have no reference cycles, but the garbage collector would scan all of them repeatedly: 60 % of the time.
    is_collecting = gc.isenabled()
    gc.disable()
    num_records = 0
    try:
        for record in reader.read_records(path):
            yield record
            num_records += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{data_path} is not UTF-8 text: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{data_path}, record {num_records}: it is nested too deeply.") from error
    finally:
        if is_collecting:
            gc.enable()
    if not num_records:
        raise UserError(f"{data_path} must hold a list of records, one or more.")


def code_digest() -> str:
    """A digest of the code that makes records: after a change of the code, cached records are made again."""
    files = {Path(inspect.getfile(reader)) for reader in READERS} | set(Path(__file__).parent.glob("*.py"))
    return digest(*sorted(files))


def read_table(data_path: str) -> RecordTable:
    """
    Returns the records of a data file in Arrow. They are read from the file only if its content was never read before.

    Raises:
        UserError: As for [`read_records`].
    """
    check_data_file(data_path)
    path = Path(data_path)
    key = digest(path, path.suffix.encode(), code_digest().encode())
    return save_records(key, read_records(data_path), data_path)
