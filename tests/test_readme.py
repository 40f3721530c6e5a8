"""What the README says to run is run."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_lines_that_ask_a_checkpoint_run_in_a_process_without_the_package(hub_folder, tmp_path):
    (code,) = blocks("python")
    (tmp_path / "runs" / "easy_vqa").mkdir(parents=True)
    (tmp_path / "runs" / "easy_vqa" / "hub").symlink_to(hub_folder)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "image.png")
    code = "import sys\nsys.modules['hawaii'] = None\n" + code
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_each_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "".join(blocks("bash")), flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_recipe_that_the_readme_trains_can_be_read():
    from hawaii.training.recipe import parse_stage, read_recipe

    (recipe,) = re.findall(r"-m hawaii train (\S+)", "".join(blocks("bash")))
    stages = read_recipe(str(ROOT / recipe))
    assert list(stages) == ["pretrain", "finetune"]
    for name, options in stages.items():
        _, data, training = parse_stage(options, name)
        assert data.image_folder == "runs/easy_vqa/data/images" and training.output_dir == f"runs/easy_vqa/{name}"


def test_every_file_that_the_readme_names_is_there():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links and all((ROOT / link).is_file() for link in links)
