"""The commands that use, measure and publish a trained model, one function each."""

import argparse

from .subcommands import add_command, add_group, add_questions, add_trust


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
    parser.add_argument("--more_rows", metavar="FILE", help="YAML file of further rows")
    parser.add_argument(
        "--grid",
        nargs="+",
        metavar="'KEY=VALUE ...'",
        help="settings to choose from: each row gets those with which it answers most validation questions",
    )
    parser.add_argument(
        "--match",
        metavar="WHAT",
        help="steps (default), seconds or student_seconds (without the teachers'): what is equal for all rows",
    )
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
        commands,
        "figures",
        "FIGURE",
        "draw Figures 5 and 6 of the paper and those of MoVE-KD for your model, with the numbers behind them",
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
    summary = "MoVE-KD's Figures 2 and 5: attention of the class token before training and after it"
    parser = add_command(names, "attention", "figures.attention:attention_figure", summary)
    parser.add_argument(
        "folder", metavar="FOLDER", help="output_dir of a finished `hawaii train`, or a published folder with --start"
    )
    parser.add_argument(
        "--image", required=True, action="append", metavar="IMAGE", help="path or address; repeat it for more images"
    )
    parser.add_argument("--start", metavar="NAME", help="CLIP or SigLIP before training (default: that of the run)")
    parser.add_argument("--layer", type=int, metavar="N", help="layer, from 1 (default: the last of the student)")
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
    parser = add_command(
        commands,
        "chat",
        "evaluation.chat:chat",
        "answer questions about images, in a conversation or one at a time",
        "Without --question it opens a conversation, in which /help shows the commands; from a pipe it reads one "
        "question or command per line.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    parser.add_argument(
        "--image", action="append", metavar="IMAGE", help="path or address of an image; repeat it for more images"
    )
    parser.add_argument("--question", metavar="TEXT", help="answer this question and stop")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="maximum length of an answer (default: 256)")
    add_trust(parser)


def demo(commands) -> None:
    parser = add_command(
        commands,
        "demo",
        "figures.demo:demo",
        "chat about pictures in the browser, with a map of the adapters that act",
        "The page is that of the model's Space. Only this machine can open it, unless --host says otherwise.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="published folder, or a repository of the Hub")
    parser.add_argument("--run", metavar="RUN", help="output_dir of a finished `hawaii train`: shows importance, too")
    parser.add_argument("--port", type=int, metavar="N", help="port of the page (default: the first free from 7860)")
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen at (default: 127.0.0.1)")
    add_trust(parser)


def publish(commands) -> None:
    parser = add_command(
        commands,
        "publish",
        "hub_cards.publish:publish",
        "upload a published folder to the Hub",
        "The files appear in one commit. After an interruption, the same command sends only what is missing.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder that `hawaii train` wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository of the Hub, as in user/name")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--tag", metavar="NAME", help="tag the version, as in v1.0")
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
