"""
vLLM serves published folders as they are, with the answers of transformers' `generate`.

`make serve-check` runs it in an environment that has vLLM and not this package. `prepare.py` makes the folders, the
questions and the answers of transformers before.
"""

import base64
import json
import mimetypes
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest


pytestmark = pytest.mark.vllm

CHECK = Path(os.environ.get("HAWAII_SERVE_CHECK", "serve-check-is-not-prepared")).resolve()
REFERENCES = sorted(CHECK.glob("references/*.json"))
DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CONCURRENCY = 16
# The options that leave images to the processor.
KEPT_MODES = ["--mm-processor-cache-gb", "0", "--media-io-kwargs", '{"image": {"image_mode": null}}']
FEW_POSITIONS = 120  # enough for one image in tiles and not for three
# Of the logarithm of a probability. One level of one pixel would make a difference of 1e-2.
ROUNDING = 1e-3
ENVIRONMENT = {
    **os.environ,
    "HF_MODULES_CACHE": str(CHECK / "modules"),
    "VLLM_CACHE_ROOT": str(CHECK / "cache"),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
SERVER_OPTIONS = [
    *("--trust-remote-code", "--dtype", "float32", "--enforce-eager"),
    *("--limit-mm-per-prompt", '{"image": 3}'),
    *("--gpu-memory-utilization", "0.2"),  # of the memory of the machine, which others use, too
]


def test_all_folders_are_prepared():
    assert len(REFERENCES) >= 16, f"make serve-check makes the folders; there are {len(REFERENCES)} in {CHECK}"


@pytest.fixture(scope="module", params=REFERENCES, ids=lambda file: file.stem)
def reference(request):
    return request.param


@pytest.fixture(scope="module")
def folder(reference):
    return CHECK / "folders" / reference.stem


@pytest.fixture(scope="module")
def questions(reference):
    return json.loads(reference.read_text())["questions"]


@pytest.fixture(scope="module")
def offline(folder, reference):
    """What `answer_offline.py` writes."""
    output = CHECK / f"{folder.name}.offline.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, Path(__file__).with_name("answer_offline.py"), folder, reference, output]
    # In one process, which starts sooner; the server has its engine in another one, as it does by default.
    environment = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(output.read_text())


def start_server(folder, *options):
    """Yields the address of vLLM's server of a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", port]
    command += ["--model", str(folder), "--served-model-name", "hawaii", *SERVER_OPTIONS, *options]
    log = CHECK / f"{folder.name}.server.log"
    with log.open("w") as file, subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file) as process:
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 1800
            while not answers(f"{address}/health"):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.2)
            yield f"{address}/v1"
        finally:
            process.terminate()


def answers(url):
    try:
        with urlopen(url, timeout=10):
            return True
    except (URLError, OSError):
        return False


@pytest.fixture(scope="module")
def any_server():
    """A server of one folder, for facts that do not depend on the folder."""
    yield from start_server(CHECK / "folders" / "llama_untied")


@pytest.fixture(scope="module")
def server_that_keeps_modes():
    yield from start_server(CHECK / "folders" / "llama_untied", *KEPT_MODES)


@pytest.fixture(scope="module")
def server(folder):
    yield from start_server(folder)


@pytest.fixture(scope="module")
def server_of_few_positions():
    yield from start_server(CHECK / "folders" / "llama_tiles", "--max-model-len", str(FEW_POSITIONS))


def connect(address):
    from openai import OpenAI

    return OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600)


def image_url(path):
    kind = mimetypes.guess_type(path)[0]
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def api_messages(question):
    """A conversation in the form of OpenAI's API."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image_url", "image_url": {"url": image_url(item["image"])}}
                if item["type"] == "image"
                else item
                for item in message["content"]
            ],
        }
        for message in question["messages"]
    ]


def options(question, ignore_eos):
    return {
        "model": "hawaii",
        "messages": api_messages(question),
        "temperature": 0,
        "max_tokens": len(question["tokens"]),
        "extra_body": {"ignore_eos": ignore_eos, "return_token_ids": True},
    }


def complete(client, question):
    response = client.chat.completions.create(**options(question, ignore_eos=False))
    assert response.prompt_token_ids == question["prompt_ids"]
    return response.choices[0].token_ids


def stream(client, question):
    chunks = list(client.chat.completions.create(**options(question, ignore_eos=True), stream=True))
    assert chunks[0].prompt_token_ids == question["prompt_ids"]
    return [
        token for chunk in chunks for choice in chunk.choices for token in choice.model_extra.get("token_ids") or []
    ]


def check(record_answers, folder, way, found, expected):
    """Compares all answers; the first ones that differ are shown with their numbers."""
    different = [index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    record_answers(folder.name, way, f"{len(expected) - len(different)}/{len(expected)}")
    assert not different, [(index, found[index], expected[index]) for index in different[:3]]


def test_the_questions_have_clear_and_different_answers(folder, reference, questions, record_answers):
    margin = min(question["margin"] for question in questions)
    record_answers(folder.name, "least margin", f"{margin:.4f}")
    num_unclear = json.loads(reference.read_text())["num_unclear"]
    record_answers(folder.name, "unclear", str(num_unclear))
    numbers = {sum(item["type"] == "image" for m in q["messages"] for item in m["content"]) for q in questions}
    assert len(questions) == 50 and numbers == {0, 1, 2, 3}
    assert num_unclear <= len(questions) // 5  # a margin that leaves out more would hide differences
    assert len({tuple(question["tokens"]) for question in questions}) > 10


def test_the_backend_is_that_of_transformers(offline):
    assert offline["architecture"] == "TransformersMultiModalForCausalLM"


def test_prompts_are_expanded_to_the_tokens_of_the_processor(offline, questions):
    assert offline["prompt_ids"] == [question["prompt_ids"] for question in questions]


def test_the_first_tokens_have_the_probabilities_of_transformers(offline, questions, folder, record_answers):
    difference = max(
        abs(one - other)
        for found, question in zip(offline["first_logprobs"], questions, strict=True)
        for one, other in zip(found, question["first_logprobs"], strict=True)
    )
    record_answers(folder.name, "log-probabilities", f"{difference:.1e}")
    assert difference < ROUNDING


@pytest.mark.parametrize("way", ["one batch", "reversed", "one by one", "LLM.chat"])
def test_answers_of_a_fixed_length_are_equal(offline, questions, folder, record_answers, way):
    expected = [question["tokens"] for question in questions]
    check(record_answers, folder, way, offline[way], expected[: len(offline[way])])


def test_answers_end_where_transformers_ends_them(offline, questions, folder, record_answers):
    check(record_answers, folder, "to the end", offline["to the end"], [question["ended"] for question in questions])


def test_a_text_whose_template_writes_bos_gets_another_from_generate(offline):
    """The remark in docs/serving.md. vLLM does the same with a language model of transformers alone."""
    is_written = "<bos>" in offline["text_only_prompt"] or "<|begin_of_text|>" in offline["text_only_prompt"]
    assert offline["text_only_ids"].count(offline["bos_token_id"]) == (2 if is_written else 0)


def test_the_api_gives_equal_answers_to_concurrent_requests(server, questions, folder, record_answers):
    client = connect(server)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        found = list(pool.map(lambda question: complete(client, question), questions))
    check(record_answers, folder, "API", found, [question["ended"] for question in questions])


def test_the_api_streams_equal_answers_to_concurrent_requests(server, questions, folder, record_answers):
    client = connect(server)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        found = list(pool.map(lambda question: stream(client, question), questions))
    check(record_answers, folder, "API, streaming", found, [question["tokens"] for question in questions])


def test_opacity_and_16_bits_are_as_in_transformers_if_vllm_keeps_modes(any_server, server_that_keeps_modes):
    assert shlex.join(KEPT_MODES) in DOCUMENT
    questions = json.loads((CHECK / "unusual.json").read_text())["questions"]
    questions = [question for question in questions if '"image"' in json.dumps(question)]
    expected = [question["ended"] for question in questions]
    kept, converted = (
        [complete(connect(address), question) for question in questions]
        for address in (server_that_keeps_modes, any_server)
    )
    assert kept == expected != converted


def test_tiles_that_need_more_positions_are_an_error_of_their_request(server_of_few_positions):
    from openai import BadRequestError

    questions = json.loads((CHECK / "references" / "llama_tiles.json").read_text())["questions"]
    lengths = [len(question["prompt_ids"]) for question in questions]
    longest = questions[lengths.index(max(lengths))]
    fitting = [q for q, n in zip(questions, lengths) if 50 < n <= FEW_POSITIONS - len(q["tokens"])]
    client = connect(server_of_few_positions)
    with pytest.raises(BadRequestError, match=rf"exceeds model's maximum context length \({FEW_POSITIONS}\)"):
        complete(client, longest)
    assert [complete(client, question) for question in fitting] == [question["ended"] for question in fitting]


@pytest.fixture
def document_folder(tmp_path):
    """A folder with the files that the document names."""
    (tmp_path / "runs" / "easy_vqa").mkdir(parents=True)
    (tmp_path / "runs" / "easy_vqa" / "hub").symlink_to(CHECK / "folders" / "llama_untied")
    (tmp_path / "image.png").symlink_to(CHECK / "images" / "0.png")
    return tmp_path


def run_block(command, folder):
    environment = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout


def find_block(language, word):
    """The code block of the document that has a word."""
    (block,) = [b for b in re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.M | re.S) if word in b]
    return block


def test_the_document_asks_with_curl(any_server, document_folder):
    command = find_block("bash", "curl").replace("http://localhost:8000/v1", any_server)
    answer = json.loads(run_block(["bash", "-c", command], document_folder))
    assert answer["choices"][0]["message"]["content"]


def test_the_document_asks_with_the_client(any_server, document_folder):
    code = find_block("python", "openai").replace("http://localhost:8000/v1", any_server)
    assert len(run_block([sys.executable, "-c", code], document_folder).splitlines()) == 2


def test_the_document_asks_without_a_server(document_folder):
    code = find_block("python", "from vllm")
    code = code.replace("trust_remote_code=True,", "trust_remote_code=True, gpu_memory_utilization=0.2,")
    (document_folder / "ask.py").write_text(code)
    assert len(run_block([sys.executable, "ask.py"], document_folder).splitlines()) >= 3
