"""`hawaii demo`: the page of a Space with the installed classes, and the importance of patches."""

import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from hawaii.__main__ import main
from hawaii.figures.demo import ImportanceMaps, check_run
from hawaii.figures.importance import importance_figure
from hawaii.files.manifest import write_manifest
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import save_hub_folder
from hawaii.tests.tiny.pages import ask, browser, served, upload
from hawaii.tests.tiny.tiled_models import make_tiled_model, make_tiled_processor
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_image, save_stage
from hawaii.tests.tiny.waiting import HANG_SECONDS


QUESTION = "what color is the shape ?"
SLOW = 2  # seconds in which the importance of a picture is computed
SLOW_DEMO = f"""
import sys, time
from hawaii.__main__ import main
from hawaii.figures.demo import ImportanceMaps
compute = ImportanceMaps.__call__
def compute_slowly(self, *args):
    time.sleep({SLOW})
    return compute(self, *args)
ImportanceMaps.__call__ = compute_slowly
sys.exit(main(["demo", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher_folders):
    """A finished run with random values."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    save_stage(run / "finetune" / "model", teacher_folders)
    (run / "train_results.json").write_text(json.dumps({"stages": {"finetune": {}}}))
    save_hub_folder(run / "hub")
    return run


def test_a_missing_gradio_is_one_sentence(run, capsys, monkeypatch):
    monkeypatch.setattr("hawaii.figures.demo.find_spec", lambda name: None)
    assert main(["demo", str(run / "hub")]) == 2
    assert capsys.readouterr().err == "hawaii demo: The demo needs Gradio: pip install 'hawaii-vlm[space]'\n"


@pytest.mark.browser
def test_a_port_in_use_is_one_sentence(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", str(run / "hub"), "--port", str(port)]) == 2
    assert f"hawaii demo: The demo cannot use port {port} of 127.0.0.1 (" in capsys.readouterr().err


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_does_not_exist_is_one_sentence(run, port, capsys, monkeypatch):
    monkeypatch.setattr("hawaii.figures.demo.find_spec", lambda name: True)
    assert main(["demo", str(run / "hub"), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"hawaii demo: --port is {port}, but must be from 1 to 65535.\n"


def test_a_run_has_the_model_of_its_own_folder_and_of_copies(run, tmp_path):
    published = [run, run / "finetune", run / "finetune/model"]
    for name in published:
        check_run(name, run / "hub")
    copy = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UserError, match=f"hub lacks manifest.json.* Name {copy}/hub"):
        check_run(copy, run / "hub")
    write_manifest(copy / "hub", {})
    downloaded = shutil.copytree(copy / "hub", tmp_path / "downloaded")
    check_run(copy, downloaded)
    (downloaded / "model.safetensors").write_bytes(b"other weights")
    write_manifest(downloaded, {})
    with pytest.raises(UserError, match=f"{copy} trained another model than {downloaded}"):
        check_run(copy, downloaded)


def test_with_tiles_the_importance_is_that_of_the_figure_over_the_whole_picture(tmp_path, teacher_folders):
    save_stage(tmp_path / "run/model", teacher_folders)
    make_tiled_model(vision={"num_teacher_adapters": 2}).save_pretrained(tmp_path / "run/model")
    make_tiled_processor().save_pretrained(tmp_path / "run/model")
    write_manifest(tmp_path / "run/model", {})
    image = make_image(3, 32, 24)
    image.save(tmp_path / "wide.png")
    picture, maps = ImportanceMaps(tmp_path / "run", "cpu")(image, QUESTION)
    assert picture.size == (32, 24)
    assert [*maps] == [*TEACHER_GRIDS, "instruction"]
    (row,) = importance_figure(tmp_path / "run", tmp_path, [str(tmp_path / "wide.png")], [QUESTION])["images"]
    for name in TEACHER_GRIDS:
        assert maps[name] == row["teachers"][name]
        assert (len(maps[name]), len(maps[name][0])) == (6, 8)


@pytest.mark.browser
def test_a_run_without_its_objective_is_one_sentence(run, tmp_path, capsys):
    assert main(["demo", str(run / "hub"), "--run", str(run / "hub")]) == 2
    assert "contains no finished stage with its objective" in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_shows_importance_and_ctrl_c_ends_it(run, tmp_path):
    make_image(3, 40, 20).save(tmp_path / "wide.png")
    command = ["-m", "hawaii", "demo", str(run / "hub"), "--run", str(run)]
    with tempfile.TemporaryDirectory() as uploads, browser() as visitors:
        with served(command, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": uploads}) as (url, process):
            with visitors.visit(url) as page:
                upload(page, tmp_path / "wide.png")
                page.wait_for_selector("#adapters svg.picture")
                ask(page, QUESTION)
                page.locator("[data-testid=bot]").first.wait_for()
                page.click("#compute_importance")
                page.wait_for_selector("#importance figure")
                titles = page.locator("#importance figcaption").all_inner_texts()
                shares = page.locator("#importance figure").first.locator("title").all_text_contents()
                upload(page, tmp_path / "wide.png")
                page.wait_for_selector("#importance figure", state="detached")  # it was of the last picture
                assert len(list(Path(uploads).glob("hawaii-space-*/**/wide.png"))) > 0
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=HANG_SECONDS) == 0
            output = process.stdout.read()
        assert [path for path in Path(uploads).rglob("*") if path.is_file()] == []
        assert visitors.foreign_hosts() == set()
    assert output.splitlines()[-1] == "Stopped."
    assert titles == [*TEACHER_GRIDS, "instruction"]
    # The map of the first teacher is that of Figure 5.
    (row,) = importance_figure(run, tmp_path, [str(tmp_path / "wide.png")], [QUESTION])["images"]
    expected = [share * 16 for line in row["teachers"][titles[0]] for share in line]
    assert [float(text.split()[0]) for text in shares] == pytest.approx(expected, abs=0.01)


@pytest.mark.browser
def test_importance_that_comes_late_is_not_shown_next_to_a_new_picture(run, tmp_path):
    make_image(3, 40, 20).save(tmp_path / "wide.png")
    make_image(4, 20, 20).save(tmp_path / "other.png")
    command = ["-c", SLOW_DEMO, str(run / "hub"), "--run", str(run)]
    with served(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as (url, _), browser() as visitors:
        with visitors.visit(url) as page:
            upload(page, tmp_path / "wide.png")
            page.wait_for_selector("#adapters svg.picture")
            page.fill("#question textarea", QUESTION)
            page.click("#compute_importance")
            page.wait_for_timeout(1000 * SLOW / 4)  # until the server computes it
            upload(page, tmp_path / "other.png")
            page.wait_for_timeout(2000 * SLOW)
            assert page.locator("#importance figure").count() == 0
            page.click("#compute_importance")
            page.wait_for_selector("#importance figure")
