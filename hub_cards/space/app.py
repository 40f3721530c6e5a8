"""Serves the page for the model that HAWAII_MODEL names: a local folder, or a repository with its HAWAII_REVISION."""

import os
import re
import sys
from pathlib import Path

from hawaii_space.answerer import Answerer  # pyright: ignore[reportMissingImports]
from hawaii_space.interface import serve_page  # pyright: ignore[reportMissingImports]
from hawaii_space.loading import find_title, load_model  # pyright: ignore[reportMissingImports]


name, revision = os.environ.get("HAWAII_MODEL"), os.environ.get("HAWAII_REVISION")
if not name:
    sys.exit("No model is named: set the variable HAWAII_MODEL to a folder, or to a repository of the Hub.")
if not Path(name).is_dir() and not re.fullmatch("[0-9a-f]{40}", revision or ""):
    sys.exit(
        f"No commit of {name} is named: set the variable HAWAII_REVISION to the 40 digits of one, not to a branch or "
        "a tag. The code of the model runs here, and must not change without your knowledge."
    )
model, processor, facts = load_model(name, revision)
serve_page(Answerer(model, processor, facts), find_title(facts, name), facts)
