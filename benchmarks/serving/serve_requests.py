"""
Answers questions with a model of vLLM for `serving.py`, in an environment that needs nothing but vLLM.

    python benchmarks/serving/serve_requests.py FOLDER NUM_REQUESTS NUM_TOKENS

Prints its answers as JSON, and then, for each line that it reads, the CPU seconds in which it gave them again.
"""

import json
import os
import sys
import time


# Read by vLLM when it is imported: the engine is in this process, whose seconds are counted.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

from PIL import Image  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402  # pyright: ignore[reportMissingImports]


def main(folder: str, num_requests: int, num_tokens: int) -> None:
    # What libraries print goes to the other stream.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llm = LLM(
        model=folder,
        trust_remote_code=True,
        model_impl="transformers",
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=num_requests,
        gpu_memory_utilization=0.2,  # of the memory of the machine, which others use, too
        # Nothing of a request is kept for the next one.
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
    )
    images = [Image.effect_noise((400, 400), 40 + 10 * index).convert("RGB") for index in range(num_requests)]
    text = "USER: <image>\nis there a red circle in the image ? ASSISTANT:"
    prompts = [{"prompt": text, "multi_modal_data": {"image": image}} for image in images]
    options = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)

    def answer() -> list[list[int]]:
        return [list(result.outputs[0].token_ids) for result in llm.generate(prompts, options, use_tqdm=False)]

    print(json.dumps({"answers": answer()}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        answer()
        print(json.dumps({"seconds": time.process_time() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
