"""
The command line, `hawaii` or `python -m hawaii`. One function per command declares its summary, arguments and handler;
`COMMANDS` lists them. A handler is a function of this package that is imported when the command runs, so that `--help`
answers at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from .files.user_error import Stopped, describe_error


DRY_RUN = "training.counting.recipes:describe_recipe"
# What a command does if it is started again after Ctrl-C.
CONTINUED = {
    "train": "continues from the last checkpoint",
    "cache": "computes the missing features",
    "ablate": "continues the interrupted runs",
}
COST_OPTIONS = ("devices", "strategy", "gpu", "mfu", "tokens")


def add_command(commands, name: str, handler: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """
    Adds a command.

    Args:
        commands:
            Subparsers of `hawaii` or of a group of commands.
        name (`str`):
            Name of the command.
        handler (`str`):
            Function to call, as `module:function`. It gets the given options; text that it returns is printed.
        summary (`str`):
            Line of the command in `hawaii --help`.
        details (`str`, *optional*):
            More sentences for the command's own `--help`.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_group(commands, name: str, metavar: str, summary: str):
    """Adds a command that has commands of its own."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    return parser.add_subparsers(metavar=metavar, required=True)


def add_questions(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the options for the data of tasks; `default` describes the default for the built-in data sets."""
    parser.add_argument("--data_file", metavar="PATH", help=f"questions of easy_vqa or emoji_vqa (default: {default})")
    parser.add_argument(
        "--data_folder", metavar="DIR", help="the benchmarks' data, saved by datasets, to evaluate without a network"
    )


def data(commands) -> None:
    data_sets = add_group(commands, "data", "DATA_SET", "prepare a data set for training and evaluation")
    contents = "images, LLaVA's JSON, a small pretrained language model and the small experts that become teachers"
    add_command(
        data_sets,
        "easy_vqa",
        "example_data.easy_vqa.prepare:prepare_easy_vqa",
        "easy-VQA: 64x64 images of one shape and questions about it",
        f"The PyPI package easy-vqa contains them, so nothing is downloaded. Writes {contents}.",
    )
    add_command(
        data_sets,
        "emoji_vqa",
        "example_data.emoji_vqa.prepare:prepare_emoji_vqa",
        "EmojiVQA: 64x64 canvases of real drawings and seven kinds of questions, tested on another vendor's drawings",
        f"Downloads 14 MB of packages from the npm registry. Writes {contents}. A "
        "card names the authors and licences of the drawings.",
    )
    for name, parser in data_sets.choices.items():
        parser.add_argument(
            "--output_dir", default=f"runs/{name}", metavar="DIR", help="folder of the run (default: %(default)s)"
        )
        parser.add_argument(
            "--expert_steps", type=int, metavar="N", help="train each expert, and the language model, for N steps"
        )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the option to run a checkpoint's own code."""
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code contained in a checkpoint that is not a HAWAII"
    )


def convert(commands) -> None:
    models = add_group(
        commands, "convert", "MODEL", "convert another model's checkpoint in safetensors to a HAWAII folder"
    )
    module = "training.students.convert"
    summary = "the encoder of a CLIP, SigLIP or SigLIP 2, without the layers that are not used"
    clip = add_command(models, "clip", f"{module}:save_clip", summary)
    clip.add_argument(
        "--vision_feature_layer", type=int, metavar="N", help="hidden states that it outputs (default: -2)"
    )
    summary = "a LLaVA in transformers' or its original format, with equal answers"
    llava = add_command(models, "llava", f"{module}:save_llava", summary)
    move_kd = add_command(models, "move_kd", f"{module}:save_move_kd", "MoVE-KD's weights, with equal answers")
    for parser in (llava, move_kd):
        parser.add_argument(
            "--vision_tower", metavar="NAME", help="the CLIP of a LLaVA in its original format (default: its own)"
        )
    for parser in models.choices.values():
        parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or a repository of the Hub")
        parser.add_argument("folder", metavar="FOLDER", help="new folder to write")
        parser.add_argument(
            "--dtype", metavar="NAME", help="precision of the weights, such as bfloat16 (default: CHECKPOINT's)"
        )


def train(commands) -> None:
    parser = add_command(
        commands,
        "train",
        "training.train:train",
        "run the stages of a recipe and write a folder to publish",
        "Resumes where an earlier run with the same output_dir stopped. SIGTERM and SIGUSR1 finish the step, save a "
        "checkpoint and exit with status 75: the same command continues. On many devices: accelerate launch -m hawaii "
        "train RECIPE.",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="YAML file, or the name of a built-in recipe (see `hawaii recipes`)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of the recipe; stages.NAME.KEY for one stage"
    )
    parser.add_argument(
        "--dry-run",
        action="store_const",
        dest="handler",
        const=DRY_RUN,
        help="count parameters, memory, operations and hours, without weights, and stop",
    )
    costs = parser.add_argument_group("options of --dry-run")
    costs.add_argument("--devices", type=int, metavar="N", help="number of GPUs (default: 1)")
    costs.add_argument("--strategy", metavar="NAME", help="ddp, fsdp2, zero2 or zero3 (default: ddp on several GPUs)")
    costs.add_argument(
        "--gpu",
        metavar="NAME",
        help="A100, H100, H200, L40S, RTX4090 or RTX3090 (default: H100), for hours and memory",
    )
    costs.add_argument("--mfu", type=float, metavar="X", help="share of the GPU's peak that is reached (default: 0.4)")
    costs.add_argument("--tokens", type=int, metavar="N", help="mean positions of a sample (default: the data's)")


def cache(commands) -> None:
    parser = add_command(
        commands,
        "cache",
        "training.teacher_cache.build:build_cache",
        "compute the teachers' features of a recipe's images once, for training without teachers",
        "Continues where an earlier run stopped. On many devices: accelerate launch -m hawaii cache RECIPE.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a built-in recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of the recipe")
    parser.add_argument(
        "--output_dir", metavar="DIR", help="folder of the cache (default: the recipe's teacher_cache)"
    )
    parser.add_argument("--storage", choices=("int8", "bfloat16"), help="int8 is half as large (default: int8)")


def check(commands) -> None:
    parser = add_command(
        commands,
        "check",
        "training.checking.check:check",
        "read all data of a recipe once and report every bad row",
        "Decodes every image and tokenizes every conversation, in parallel. Training does not repeat it. The exit "
        "status is 2 if training would stop.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a built-in recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of the recipe")
    parser.add_argument("--num_processes", type=int, metavar="N", help="read with N processes (default: all cores)")


def recipes(commands) -> None:
    handler, details = "training.recipes.built_in:describe_recipes", "Train one with `hawaii train NAME`."
    add_command(commands, "recipes", handler, "list the built-in recipes", details)


def teachers(commands) -> None:
    add_command(
        commands,
        "teachers",
        "training.counting.teachers:describe_presets",
        "list the preset experts and their cost at full size",
        "Counted on models without weights: nothing is downloaded. ConvNeXt and EVA-02 need timm.",
    )


def evaluate(commands) -> None:
    summary = "score a checkpoint with lmms-eval and write DIR/results.json"
    parser = add_command(commands, "evaluate", "evaluation.evaluate:evaluate", summary)
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    tasks = parser.add_mutually_exclusive_group(required=True)
    tasks.add_argument("--tasks", metavar="TASKS", help="tasks of lmms-eval, separated by commas")
    tasks.add_argument("--suite", choices=("paper",), help="the ten benchmarks of the paper's Table 1")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--num_processes", type=int, metavar="N", help="divide the questions among N devices")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N questions of each task")
    parser.add_argument("--batch_size", type=int, metavar="N", help="questions per batch")
    add_questions(parser, "DIR/data/test.parquet")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 (default: the first accelerator, or the CPU)")
    parser.add_argument(
        "--dtype", metavar="NAME", help="precision of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    add_trust(parser)


class ValuesBeforeOverrides(argparse.Action):
    """Stores the values of an option up to the first KEY=VALUE, which is an override of the recipe."""

    def __call__(self, parser, namespace, values, option_string=None):
        assert values is not None
        overrides = [value for value in values if "=" in value]
        if overrides:
            namespace.overrides = [*getattr(namespace, "overrides", []), *overrides]
        values = [value for value in values if "=" not in value]
        try:
            setattr(namespace, self.dest, [int(value) for value in values] if self.dest == "seeds" else values)
        except ValueError:
            parser.error(f"argument {option_string}: {' '.join(values)} are not all whole numbers, as seeds must be")


def ablate(commands) -> None:
    parser = add_command(
        commands,
        "ablate",
        "ablation.ablate:ablate",
        "train a recipe with and without each of its parts, and compare",
        "Writes DIR/ablation.md, a table of each row's scores with intervals. Finished runs are skipped, interrupted "
        "runs continue.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file or built-in recipe; its output_dir has the data")
    # Added to the overrides that ValuesBeforeOverrides found.
    parser.add_argument("overrides", nargs="*", action="extend", metavar="KEY=VALUE", help="changes a key in all rows")
    parser.add_argument("--tasks", metavar="TASKS", help="tasks of lmms-eval, with commas (default: the recipe's)")
    parser.add_argument("--output_dir", metavar="DIR", help="for runs and table (default: ablation in the recipe's)")
    several = {"nargs": "+", "action": ValuesBeforeOverrides}
    parser.add_argument("--seeds", metavar="N", help="train each row from each seed (default: 0 1 2)", **several)
    parser.add_argument("--rows", metavar="ROW", help="rows to compare (default: Table 2, MoVE-KD, RADIO)", **several)
    parser.add_argument("--baseline", metavar="ROW", help="row that the others are compared with (default: llava)")
    parser.add_argument("--jobs", type=int, metavar="N", help="number of simultaneous runs (default: 1)")
    parser.add_argument(
        "--launcher", metavar="COMMAND", help="starts each training, as in 'accelerate launch --num_processes 8'"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="Ray cluster that executes the runs; auto and local")
    parser.add_argument("--devices_per_run", type=int, metavar="N", help="GPUs of each run on a cluster (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N questions of each task")
    parser.add_argument("--batch_size", type=int, metavar="N", help="questions per batch")
    add_questions(parser, "the recipe's")


def figures(commands) -> None:
    names = add_group(
        commands, "figures", "FIGURE", "draw the paper's Figures 5 and 6 for your model, with the numbers behind them"
    )
    summary = "Figure 5: image patches that matter to each teacher and to the question"
    parser = add_command(names, "importance", "figures.importance:importance_figure", summary)
    parser.add_argument("run", metavar="RUN", help="output_dir of a finished `hawaii train`")
    parser.add_argument(
        "--image", required=True, action="append", metavar="IMAGE", help="path or address; repeat it for more images"
    )
    parser.add_argument("--question", action="append", metavar="TEXT", help="the question about each image")
    summary = "Figure 6: adapters that each layer chooses for the images of a benchmark"
    parser = add_command(names, "routing", "figures.routing:routing_figure", summary)
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    parser.add_argument("--tasks", metavar="TASKS", help="tasks of lmms-eval, separated by commas")
    parser.add_argument("--images", nargs="+", metavar="NAME=DIR", help="folders of images, with or without tasks")
    parser.add_argument("--limit", type=int, metavar="N", help="use N questions or images of each (default: 500)")
    add_questions(parser, "DIR/data/test.parquet")
    for parser in names.choices.values():
        parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder for the figure")


def plot(commands) -> None:
    parser = add_command(
        commands,
        "plot",
        "figures.training_curves:plot_run",
        "draw the curves of a training run",
        "Loss terms, learning rate, throughput, load of the adapters and accuracy of each stage, as PNG with their "
        "numbers. The run may still be training.",
    )
    parser.add_argument("run", metavar="RUN", help="output_dir of `hawaii train`, or the folder of one of its stages")
    parser.add_argument("--output_dir", metavar="DIR", help="folder for the figures (default: RUN)")


def chat(commands) -> None:
    parser = add_command(commands, "chat", "evaluation.chat:answer", "answer one question about one image")
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    parser.add_argument("--image", required=True, metavar="IMAGE", help="path or address of the image")
    parser.add_argument("--question", required=True, metavar="TEXT", help="the question")
    add_trust(parser)


def publish(commands) -> None:
    parser = add_command(commands, "publish", "hub_cards.publish:publish", "upload a published folder to the Hub")
    parser.add_argument("folder", metavar="FOLDER", help="folder that `hawaii train` wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository of the Hub, as in user/name")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--dry-run", action="store_true", help="check and list the files, without an upload")
    card = parser.add_argument_group("the card", "what to set in its metadata; its text stays as it is")
    card.add_argument("--license", metavar="ID", help="license of the model, as in llama2, or other")
    card.add_argument("--license_name", metavar="NAME", help="name of another license, as in my-license-1.0")
    card.add_argument("--license_link", metavar="URL", help="address of another license")
    card.add_argument("--language", nargs="+", metavar="CODE", help="ISO 639 codes, as in en")
    for name in ("datasets", "base_model"):
        card.add_argument(
            f"--{name}", nargs="+", metavar="REPO_ID", help="repositories of the Hub that it was made from"
        )


COMMANDS = [data, convert, check, cache, train, recipes, teachers, evaluate, ablate, figures, plot, chat, publish]


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser, whose result has the `command`'s name, its `handler`, and the handler's arguments."""
    parser = argparse.ArgumentParser(
        prog="hawaii",
        description="HAWAII: a vision-language model whose one encoder learned from several.",
        epilog="`hawaii COMMAND --help` explains a command. HAWAII_DEBUG=1 shows the traceback of every error.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command(commands)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments. Overrides may be anywhere; argparse alone accepts them only next to RECIPE."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    takes_overrides = arguments.command in ("cache", "check", "train", "ablate")
    if unknown := [word for word in rest if not takes_overrides or "=" not in word or word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    costs = [name for name in COST_OPTIONS if hasattr(arguments, name)]
    if arguments.command == "train" and costs and arguments.handler != DRY_RUN:
        parser.error(f"--{costs[0]} needs --dry-run: it describes the GPUs whose costs are counted")
    if rest:
        arguments.overrides = [*getattr(arguments, "overrides", []), *rest]
    return arguments


def fail(command: str, message: str, status: int) -> int:
    # One write, including the line end, because several processes of a run may print at the same time.
    print(f"hawaii {command}: {message}\n", end="", file=sys.stderr)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after `hawaii`; those of the process if not given.

    Returns:
        `int`: the exit status. It is 2, with one sentence on stderr, for an error that the user can correct: a
            [`UserError`], an error of the operating system or a damaged file. It is 75 if a signal stopped a training
            that the same command continues, and 130 after Ctrl-C. With `HAWAII_DEBUG=1` in the environment, the
            traceback is shown instead.

    Raises:
        Exception: any other error. It is a bug of this package or of a library, and needs its traceback.
    """
    options = vars(parse(argv))
    command = options.pop("command")
    handler = options.pop("handler")
    module, _, function = handler.partition(":")
    is_debugged = os.environ.get("HAWAII_DEBUG") == "1"
    try:
        result = getattr(import_module(f".{module}", __package__), function)(**options)
        if isinstance(result, str):
            print(result)
    except Stopped as stopped:
        return fail(command, str(stopped), Stopped.STATUS)
    except KeyboardInterrupt:
        if is_debugged:
            raise
        continues = f": the same command {CONTINUED[command]}" if command in CONTINUED and handler != DRY_RUN else ""
        return fail(command, f"Interrupted{continues}.", 128 + signal.SIGINT)
    except Exception as error:
        message = describe_error(error)
        if message is None or is_debugged:
            raise
        return fail(command, message, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
