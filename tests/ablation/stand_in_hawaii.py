"""
Replaces `hawaii train` and `hawaii evaluate`: `python stand_in_hawaii.py -m hawaii COMMAND ...` writes their files
immediately. The command `ablate` is the real one, with this file in place of the other two.

STAND_IN in the environment is a JSON object: `calls`, a file that gets a line for each command; `fail`, runs whose
training fails, as ROW/seed-N; `hold`, a file: training does not end while it exists; `killed`, runs whose training is
killed, but leaves a process that it started: the calls list it as `rest`, and it writes the file `asked` on SIGTERM.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


STEPS = {"pretrain": 4, "finetune": 6}
SECONDS = {"pretrain": {"hawaii": 0.6}, "finetune": {"hawaii": 0.3}}  # of a step of 16 samples; 0.2 for other rows
TEACHER_SHARE = {"hawaii": 0.5}
BEST_LAMBDA = 2.0  # at which the accuracy on validation questions is highest
TYPES = ("color", "shape")
ADVANTAGES = {"llava": 0.5, "hawaii": 0.8}


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


REST = 'trap \'touch "$0"; exit\' TERM; touch "$0.listens"; while :; do sleep 0.05; done'


def note(call: str, run: str, process: int, environment: dict, settings: dict) -> None:
    with open(settings["calls"], "a") as calls:
        print(json.dumps([call, run, process, environment]), file=calls, flush=True)


def train(recipe_path: str, settings: dict) -> None:
    import yaml

    recipe = yaml.safe_load(Path(recipe_path).read_text(encoding="utf-8"))
    folder = Path(recipe["output_dir"])
    print(f"{'10%':>5}\r{'100%':>5}", flush=True)
    if name_of(folder) in settings.get("fail", []):
        sys.exit("hawaii train: the dog ate it.")
    if name_of(folder) in settings.get("killed", []):
        rest = subprocess.Popen(["sh", "-c", REST, settings["asked"]])
        note("rest", name_of(folder), rest.pid, {}, settings)
        while not Path(f"{settings['asked']}.listens").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    while Path(settings.get("hold", "nowhere")).exists():
        time.sleep(0.05)
    stages = {}
    for stage, steps in STEPS.items():
        for name in ("model", f"checkpoint-{steps}"):
            (folder / stage / name).mkdir(parents=True, exist_ok=True)
        row = folder.parent.name
        lines = [  # a process gets ready in the first step
            {"step": step, "loss": 1.0, "samples_per_second": 1.0 if step == 1 else 16 / SECONDS[stage].get(row, 0.2)}
            | ({"teacher_share": TEACHER_SHARE[row]} if row in TEACHER_SHARE else {})
            for step in (1, 2, steps)
        ]
        options = {**recipe, **recipe["stages"][stage]}
        if options.get("eval_data_path") is not None:
            accuracy = 0.1 * steps - abs(options.get("lambda_1", BEST_LAMBDA) - BEST_LAMBDA) / 100
            lines.append({"step": steps, "eval_accuracy": accuracy, "train_seconds": 2.0 * steps})
        (folder / stage / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        stages[stage] = {"steps": steps, "seconds": 2.0 * steps, "batch_size": 16}
    results = {"train_seconds": 20.0, "num_parameters": 100, "stages": stages}
    (folder / "train_results.json").write_text(json.dumps(results))
    (folder / "hub").mkdir()


def evaluate(words: list[str]) -> None:
    folder = Path(words[words.index("--output_dir") + 1])
    task = words[words.index("--tasks") + 1]
    row = folder.parent.name
    # The same questions are hard for all runs.
    difficulty, luck = random.Random(0), random.Random(name_of(folder))
    scores = [float(difficulty.random() + 0.1 * luck.random() < ADVANTAGES.get(row, 0.6) + 0.05) for _ in range(40)]
    samples = [
        {
            "doc_id": n,
            "image_id": str(n // 4),
            "accuracy": score,
            "accuracy_by_type": {"question_type": TYPES[n % 2], "score": score},
        }
        for n, score in enumerate(scores)
    ]
    by_type = {name: sum(scores[n::2]) / 20 for n, name in enumerate(TYPES)}
    metrics = {"accuracy": sum(scores) / 40, "accuracy_by_type": by_type, "num_questions": 40}
    (folder / f"samples_{task}.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
    (folder / "results.json").write_text(json.dumps({"tasks": {task: metrics}}))


def main(words: list[str]) -> None:
    assert words[:2] == ["-m", "hawaii"], words
    command, *rest = words[2:]
    if command == "ablate":
        from hawaii.__main__ import main as hawaii
        from hawaii.ablation import run as ablation_run

        ablation_run.HAWAII = (sys.executable, __file__, "-m", "hawaii")
        # Background processes of a shell ignore SIGINT, and their children inherit this.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(hawaii([command, *rest]))
    settings = json.loads(os.environ["STAND_IN"])
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RANK", "LAUNCHED")
    environment = {name: os.environ.get(name) for name in names}
    note(command, name_of(Path(rest[0]).parent), os.getpid(), environment, settings)
    if command == "train":
        train(rest[0], settings)
    else:
        evaluate(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
