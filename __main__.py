"""
The one command, `hawaii` or `python -m hawaii`: data, convert, teachers, train, evaluate, ablate, figures, chat,
publish.

Each handler imports what it runs, so that `--help` answers at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from .files.user_error import UserError


# A data loader's worker passes its error on as text; the last line is the message.
WORKER_ERROR = re.compile(
    r"Caught UserError in DataLoader worker process \d+\.\n.*^[\w.]*UserError: (.*)", re.DOTALL | re.M
)


def add_command(commands, name: str, handler, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Adds one subcommand; `summary` is its line in `hawaii --help`. Options not given are not passed to `handler`."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=handler)
    return parser


def data_easy_vqa(data_set: str, **options) -> None:
    from .example_data.easy_vqa.prepare import prepare_easy_vqa

    prepare_easy_vqa(**options)


def data_emoji_vqa(data_set: str, **options) -> None:
    from .example_data.emoji_vqa.prepare import prepare_emoji_vqa

    prepare_emoji_vqa(**options)


def add_data(commands) -> None:
    parser = commands.add_parser(
        "data", help="prepare a data set", description="Prepare a data set for training and evaluation."
    )
    data_sets = parser.add_subparsers(dest="data_set", metavar="DATA_SET", required=True)
    easy_vqa = add_command(
        data_sets,
        "easy_vqa",
        data_easy_vqa,
        "easy-VQA: 64x64 images of one shape and questions about it",
        "The PyPI package easy-vqa ships them, so nothing is downloaded. Leaves images, LLaVA's JSON, a "
        "small language model that has learned to read, and the small experts that become the teachers.",
    )
    emoji_vqa = add_command(
        data_sets,
        "emoji_vqa",
        data_emoji_vqa,
        "EmojiVQA: 64x64 canvases of real drawings and seven kinds of questions, tested on another vendor's drawings",
        "Fetches 14 MB of packages from the npm registry. Leaves images, LLaVA's JSON, a small language "
        "model that has learned to read, the small experts that become the teachers, and a card that says whose the "
        "drawings are.",
    )
    for name, data_set in (("easy_vqa", easy_vqa), ("emoji_vqa", emoji_vqa)):
        data_set.add_argument(
            "--output_dir", default=f"runs/{name}", metavar="DIR", help="folder of the run (default: %(default)s)"
        )
        data_set.add_argument(
            "--expert_steps", type=int, metavar="N", help="train each expert, and the language model, for N steps"
        )


def convert_clip(kind: str, **options) -> None:
    from .training.students.convert import save_clip

    save_clip(**options)


def convert_llava(kind: str, **options) -> None:
    from .training.students.convert import save_llava

    save_llava(**options)


def convert_move_kd(kind: str, **options) -> None:
    from .training.students.convert import save_move_kd

    save_move_kd(**options)


def add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="make a folder of another model's checkpoint",
        description="Make a folder to start from, or to ask, of another model's checkpoint in safetensors.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    clip = add_command(
        kinds, "clip", convert_clip, "the encoder of a CLIP, SigLIP or SigLIP 2, cut at the layer that is seen"
    )
    clip.add_argument(
        "--vision_feature_layer", type=int, metavar="N", help="hidden states that it ends at (default: -2)"
    )
    llava = add_command(kinds, "llava", convert_llava, "a LLaVA in transformers' form or its own, with equal answers")
    move_kd = add_command(kinds, "move_kd", convert_move_kd, "MoVE-KD's weights, with equal answers")
    for original in (llava, move_kd):
        original.add_argument(
            "--vision_tower", metavar="NAME", help="the CLIP of a LLaVA of its own form (default: what it names)"
        )
    for kind in (clip, llava, move_kd):
        kind.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or a repository of the Hub")
        kind.add_argument("folder", metavar="FOLDER", help="new folder to write")
        kind.add_argument("--dtype", metavar="NAME", help="of the weights, such as bfloat16 (default: CHECKPOINT's)")


def train_recipe(**options) -> None:
    if options.pop("dry_run", False):
        from .training.counting.recipes import describe_recipe

        print(describe_recipe(**options))
        return
    from .training.train import train

    train(**options)


def add_train(commands) -> None:
    parser = add_command(
        commands,
        "train",
        train_recipe,
        "run the stages of a recipe and leave a folder to publish",
        "Resumes where an earlier run of the same output_dir stopped. On many devices: accelerate launch -m hawaii "
        "train RECIPE.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file of the recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of the recipe; stages.NAME.KEY for one stage"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="count what would be trained, without weights or data, and stop"
    )


def describe_teachers() -> None:
    from .training.counting.teachers import describe_presets

    print(describe_presets())


def add_teachers(commands) -> None:
    add_command(
        commands,
        "teachers",
        describe_teachers,
        "what the preset experts are and cost at full size",
        "Counted on empty models: nothing is downloaded. ConvNeXt and EVA-02 need timm.",
    )


def add_questions(parser: argparse.ArgumentParser, default: str) -> None:
    """Where the questions of tasks lie; `default` is said of those that `hawaii data` makes."""
    parser.add_argument("--data_file", metavar="PATH", help=f"questions of easy_vqa or emoji_vqa (default: {default})")
    parser.add_argument(
        "--data_folder", metavar="DIR", help="the benchmarks' data as datasets saves it, for want of a network"
    )


def evaluate_folder(**options) -> None:
    from .evaluation.evaluate import evaluate

    evaluate(**options)


def add_evaluate(commands) -> None:
    parser = add_command(
        commands, "evaluate", evaluate_folder, "score a checkpoint with lmms-eval and write DIR/results.json"
    )
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--tasks", metavar="TASKS", help="tasks of lmms-eval, separated by commas")
    asked.add_argument("--suite", choices=("paper",), help="the ten benchmarks of the paper's Table 1")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--num_processes", type=int, metavar="N", help="share the questions among N devices")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions of each task")
    parser.add_argument("--batch_size", type=int, metavar="N", help="questions answered at once")
    add_questions(parser, "DIR/data/test.parquet")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 (default: the first accelerator, or the CPU)")
    parser.add_argument("--dtype", metavar="NAME", help="of the weights, such as bfloat16 (default: the checkpoint's)")


class WordsBeforeOverrides(argparse.Action):
    """The words of an option with several, up to the first KEY=VALUE: those are the recipe's."""

    def __call__(self, parser, namespace, values, option_string=None):
        assert values is not None
        words = [value for value in values if "=" not in value]
        if len(words) < len(values):
            overrides = [value for value in values if "=" in value]
            namespace.overrides = [*getattr(namespace, "overrides", []), *overrides]
        try:
            setattr(namespace, self.dest, [int(word) for word in words] if self.dest == "seeds" else words)
        except ValueError:
            parser.error(f"argument {option_string}: a seed is a whole number, not all of {' '.join(words)}")


def ablate_recipe(**options) -> None:
    from .ablation.ablate import ablate

    ablate(**options)


def add_ablate(commands) -> None:
    parser = add_command(
        commands,
        "ablate",
        ablate_recipe,
        "train a recipe with and without each of its parts, and compare",
        "Writes DIR/ablation.md, a table of each row's scores with intervals. What is done is skipped, what was "
        "interrupted goes on, and any number of these commands may share DIR.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file of the recipe; its own output_dir holds the data")
    # Beside those that WordsBeforeOverrides found.
    parser.add_argument("overrides", nargs="*", action="extend", metavar="KEY=VALUE", help="changes a key in all rows")
    parser.add_argument("--tasks", metavar="TASKS", help="lmms-eval tasks, with commas (default: the recipe's own)")
    parser.add_argument("--output_dir", metavar="DIR", help="of runs and table (default: ablation in the recipe's)")
    words = {"nargs": "+", "action": WordsBeforeOverrides}
    parser.add_argument("--seeds", metavar="N", help="train each row from each seed (default: 0 1 2)", **words)
    parser.add_argument("--rows", metavar="ROW", help="what to compare (default: Table 2, MoVE-KD and RADIO)", **words)
    parser.add_argument("--baseline", metavar="ROW", help="what the others are compared with (default: llava)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: 1)")
    parser.add_argument(
        "--launcher", metavar="COMMAND", help="starts each training, as in 'accelerate launch --num_processes 8'"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions of each task")
    parser.add_argument("--batch_size", type=int, metavar="N", help="questions answered at once")
    add_questions(parser, "the recipe's own")


def importance_figure(figure: str, **options) -> None:
    from .figures.importance import importance_figure

    importance_figure(**options)


def routing_figure(figure: str, **options) -> None:
    from .figures.routing import routing_figure

    routing_figure(**options)


def add_figures(commands) -> None:
    parser = commands.add_parser(
        "figures",
        help="draw the paper's Figures 5 and 6 of a model of yours",
        description="Draw a figure of the paper of a model of yours; leaves a PNG and the numbers behind it.",
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)
    importance = add_command(
        figures, "importance", importance_figure, "Figure 5: which places matter to each teacher and to the question"
    )
    importance.add_argument("run", metavar="RUN", help="output_dir of a finished `hawaii train`")
    importance.add_argument(
        "--image", required=True, action="append", metavar="IMAGE", help="path or address; give it once for each image"
    )
    importance.add_argument("--question", action="append", metavar="TEXT", help="the question about each image")
    routing = add_command(
        figures, "routing", routing_figure, "Figure 6: which adapters the images of a benchmark take in each layer"
    )
    routing.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    routing.add_argument("--tasks", metavar="TASKS", help="tasks of lmms-eval, separated by commas")
    routing.add_argument("--images", nargs="+", metavar="NAME=DIR", help="folders of images, beside tasks or instead")
    routing.add_argument("--limit", type=int, metavar="N", help="look at N questions or images of each (default: 500)")
    add_questions(routing, "DIR/data/test.parquet")
    for figure in (importance, routing):
        figure.add_argument("--output_dir", required=True, metavar="DIR", help="folder for the figure")


def ask(**options) -> None:
    from .evaluation.chat import answer

    print(answer(**options))


def add_chat(commands) -> None:
    parser = add_command(commands, "chat", ask, "answer one question about one image")
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    parser.add_argument("--image", required=True, metavar="IMAGE", help="path or address of the image")
    parser.add_argument("--question", required=True, metavar="TEXT", help="the question")


def publish_folder(**options) -> None:
    from .hub_cards.publish import publish

    print(publish(**options))


def add_publish(commands) -> None:
    parser = add_command(commands, "publish", publish_folder, "upload a published folder to the Hub")
    parser.add_argument("folder", metavar="FOLDER", help="folder that `hawaii train` left")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository of the Hub, as in user/name")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser: `command` is the subcommand's name, `handler` its function, the rest are its arguments."""
    parser = argparse.ArgumentParser(
        prog="hawaii",
        description="HAWAII: a vision-language model whose one encoder learned from several.",
        epilog="`hawaii COMMAND --help` explains a command. HAWAII_DEBUG=1 shows the traceback of every error.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_data(commands)
    add_convert(commands)
    add_train(commands)
    add_teachers(commands)
    add_evaluate(commands)
    add_ablate(commands)
    add_figures(commands)
    add_chat(commands)
    add_publish(commands)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the words after `hawaii`. Overrides may stand anywhere; argparse takes them next to RECIPE alone."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    takes_overrides = arguments.command in ("train", "ablate")
    if unknown := [word for word in rest if not takes_overrides or "=" not in word or word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*getattr(arguments, "overrides", []), *rest]
    return arguments


def sentence(error: Exception) -> str:
    """The message of an error, on one line."""
    message = str(error)
    if in_worker := WORKER_ERROR.fullmatch(message):
        message = in_worker[1]
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.strerror}: {error.filename}"
    return " ".join(message.split())


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one subcommand.

    Args:
        argv (`Sequence[str]`, *optional*):
            The words after `hawaii`; `None` takes the process's own.

    Returns:
        `int`: the exit status. 2 for an error that the user can correct, a [`UserError`] or an error of the operating
        system or of a damaged file; stderr then has one sentence. `HAWAII_DEBUG=1` in the environment shows the
        traceback instead.

    Raises:
        Exception: any other error. It is a bug of this package or of a library, and needs its traceback.
    """
    arguments = vars(parse(argv))
    command, handler = arguments.pop("command"), arguments.pop("handler")
    try:
        handler(**arguments)
    except Exception as error:
        from safetensors import SafetensorError  # a full disk or a damaged file

        is_bug = not isinstance(error, UserError | OSError | SafetensorError)
        if is_bug or os.environ.get("HAWAII_DEBUG") == "1":
            raise
        print(f"hawaii {command}: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
