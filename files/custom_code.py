"""The code that a checkpoint brings along: what its configurations ask transformers to run."""

from typing import Any


def find_code(values: Any) -> list[str]:
    """Classes in every `auto_map` of a JSON file's content, as `module.Class` or `owner/name--module.Class`."""
    if isinstance(values, list):
        return [name for value in values for name in find_code(value)]
    if not isinstance(values, dict):
        return []
    found = []
    for key, value in values.items():
        if key == "auto_map":
            for classes in value.values() if isinstance(value, dict) else [value]:
                # A tokenizer has two, of which one may be null.
                found += [str(name) for name in (classes if isinstance(classes, list) else [classes]) if name]
        else:
            found += find_code(value)
    return list(dict.fromkeys(found))
