"""Checkpoints that bring code of their own, which leaves a trace when it runs."""

import json
from pathlib import Path


CODE = """
from pathlib import Path
from transformers import {config}, {model}, {tokenizer}

Path({trace!r}).touch()


class StrangeConfig({config}):
    model_type = "strange"


class StrangeModel({model}):
    config_class = StrangeConfig


class StrangeTokenizer({tokenizer}):
    pass
"""


def add_code(folder: Path, config: str, model: str, tokenizer: str = "PreTrainedTokenizerFast") -> Path:
    """
    Adds `strange.py` with subclasses of transformers' classes.

    Returns:
        `Path`: the file that exists once the code has run.
    """
    trace = folder.parent / f"{folder.name}-code-has-run"
    code = CODE.format(config=config, model=model, tokenizer=tokenizer, trace=str(trace))
    (folder / "strange.py").write_text(code)
    return trace


def change_json(path: Path, **fields) -> None:
    """Replaces fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
