"""One holds a claim, with those it gave it to, and nobody when they are gone."""

import subprocess
import sys

from hawaii.ablation.claim import Claim


def test_one_at_a_time_holds_it(tmp_path):
    first, second = Claim(tmp_path / "new" / "claim"), Claim(tmp_path / "new" / "claim")
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()


def test_it_is_held_in_a_block_and_free_after_an_error(tmp_path):
    try:
        with Claim(tmp_path / "claim"):
            assert not Claim(tmp_path / "claim").take()
            raise RuntimeError
    except RuntimeError:
        assert Claim(tmp_path / "claim").take()


def test_it_is_held_as_long_as_a_process_lives_that_was_given_it(tmp_path):
    claim = Claim(tmp_path / "claim")
    claim.take()
    wait = [sys.executable, "-c", "input()"]
    given = subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=(claim.descriptor,))
    other = subprocess.Popen(wait, stdin=subprocess.PIPE)
    claim.release()  # as it is when its process is killed
    assert not claim.take()
    given.communicate(b"\n")
    assert claim.take()
    other.communicate(b"\n")
