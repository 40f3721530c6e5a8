"""The commands that prepare and train a model, one function each."""

from .subcommands import add_command, add_group


DRY_RUN = "training.counting.recipes:describe_recipe"


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
    add_command(
        data_sets,
        "easy_clip",
        "example_data.easy_vqa.clip:prepare_easy_clip",
        "a small CLIP, which learns from the captions of easy-VQA",
        "For the recipe easy_vqa_clip, whose student starts from this CLIP. Needs `hawaii data easy_vqa` in its "
        "folder and downloads nothing.",
    )
    add_command(
        data_sets,
        "emoji_clip",
        "example_data.emoji_vqa.clip:prepare_emoji_clip",
        "a small CLIP, which learns from the captions of EmojiVQA, and further experts",
        "For the recipe emoji_vqa_clip, whose student starts from this CLIP. Needs `hawaii data emoji_vqa` in its "
        "folder and downloads nothing more.",
    )
    for name, parser in data_sets.choices.items():
        name = name.replace("_clip", "_vqa")  # the folder of the data set
        parser.add_argument(
            "--output_dir", default=f"runs/{name}", metavar="DIR", help="folder of the run (default: %(default)s)"
        )
        parser.add_argument(
            "--expert_steps", type=int, metavar="N", help="train each expert, and the language model, for N steps"
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
    summary = "a LLaVA or LLaVA-NeXT in transformers' or its original format, with equal answers"
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
