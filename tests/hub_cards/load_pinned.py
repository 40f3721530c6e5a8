"""
Loads a repository of the Hub at a revision, then its main branch, in a process that cannot import the package; run by
`test_pinning.py`.

    python load_pinned.py REPOSITORY REVISION OUTPUT TRACE

Saves the logits of both for one question in OUTPUT. Prints for both whether the file TRACE exists afterwards.
"""

import os
import sys


sys.modules["hawaii"] = None

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402


repository, revision, output, trace = sys.argv[1:]
logits = {}
for name, pinned in {"pinned": {"revision": revision, "code_revision": revision}, "main": {}}.items():
    model = AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True, **pinned).eval()
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True, **pinned)
    inputs = processor(text="what color is the shape ?", return_tensors="pt")
    with torch.no_grad():
        logits[name] = model(**inputs).logits
    if pinned:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    print(name, os.path.exists(trace))
save_file(logits, output)
