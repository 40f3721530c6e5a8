"""
Loads local folders of the same name in one process that cannot import the package; run by `test_same_names.py`.

    python load_same_names.py PROCESSOR_FOLDER MODEL_FOLDER...

Prints for each folder the mark of the code that runs in its model's layers, or the error.
"""

import sys


sys.modules["hawaii"] = None

from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402


AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
for folder in sys.argv[2:]:
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
        marks = {
            sys.modules[type(module).__module__].MARK
            for module in model.modules()
            if type(module).__module__.endswith("_hawaii")
        }
        print(*sorted(marks))
    except ImportError as error:
        print(error)
