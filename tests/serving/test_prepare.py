"""What `make serve-check` prepares: it deletes nothing of others, and says what it leaves out."""

import pytest

from hawaii.tests.serving import prepare


def test_a_folder_of_others_is_not_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="name another folder"):
        prepare.clear(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


def test_the_folder_of_an_earlier_check_is_emptied(tmp_path):
    for output in (tmp_path / "a", tmp_path / "b" / "check"):
        prepare.clear(output)
        (output / "folders").mkdir()
        prepare.clear(output)
        assert [path.name for path in output.iterdir()] == [prepare.MARK]


@pytest.mark.parametrize("name", [None, "run"])
def test_a_missing_demo_is_said(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "FOLDERS", {})
    prepare.save_folders(tmp_path, None if name is None else tmp_path / name)
    assert "demo and demo_untied are left out" in capsys.readouterr().out


def test_only_the_folders_with_a_word_in_their_names_are_saved(tmp_path, monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(prepare, "FOLDERS", {name: (saved.append, {}) for name in ("llama_tiles", "llama", "tiles")})
    prepare.save_folders(tmp_path, None, "tiles")
    assert [folder.name for folder in saved] == ["llama_tiles", "tiles"]
    assert not capsys.readouterr().out  # the demo was not asked for
