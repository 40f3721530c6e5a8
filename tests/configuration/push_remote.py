"""
Pushes a model and a processor that their own code loaded, in a process that cannot import the package; run by
`test_push_hawaii.py`.

    python push_remote.py FOLDER REPOSITORY
"""

import sys


sys.modules["hawaii"] = None

from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402


folder, repository = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
model.push_to_hub(repository, max_shard_size="50KB")
AutoProcessor.from_pretrained(folder, trust_remote_code=True).push_to_hub(repository)
model.model.vision_tower.push_to_hub(f"{repository}-encoder")
for source in (repository, folder):  # what was pushed is complete
    AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True)
    AutoProcessor.from_pretrained(source, trust_remote_code=True)
