"""An upload that is killed leaves the repository as it was, and the same command completes it."""

import os
import subprocess
import sys
import time

from hawaii.files.manifest import write_manifest
from hawaii.hub_cards.publish import publish
from hawaii.tests.folders import uploaded
from hawaii.tests.tiny.models import make_model


def test_a_killed_upload_is_completed_in_one_commit_without_sending_a_complete_file_again(folder, hub, tmp_path):
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="30KB")
    write_manifest(folder, {}, left_out=["README.md"])
    command = [sys.executable, "-m", "hawaii", "publish", str(folder), "user/name", "--tag", "v1"]
    options = {"env": {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}, "cwd": tmp_path}

    def publish_and_kill(method, pattern, after=0):
        """Kills the upload when `after` files have arrived and another request waits."""
        with hub.stalling(method, pattern, after) as waits:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
            try:
                assert waits.wait(timeout=300)
                while len(hub.received) < after:  # the body of the last one comes after its request
                    assert process.poll() is None
                    time.sleep(0.01)
            finally:
                process.kill()
                process.wait()

    publish_and_kill("PUT", "/objects/", after=3)
    assert uploaded(hub) == set() and len(hub.received) == 3  # three of the large files are complete
    publish_and_kill("POST", "/tag/")
    repository = hub.repositories["user/name"]
    assert len(repository.commits) == 2 and repository.tags == {}
    answer = publish(str(folder), "user/name", tag="v1")
    assert answer.startswith("Nothing was uploaded, the repository has these files already")
    assert len(repository.commits) == 2 and repository.tags == {"v1": repository.commits[1].sha}
    contents = hub.contents("user/name")
    assert uploaded(hub) == {path.name for path in folder.iterdir()}
    assert all(contents[path.name] == path.read_bytes() for path in folder.iterdir())
    assert len(hub.objects) > 5
    assert hub.received == {oid: len(content) for oid, content in hub.objects.items()}
