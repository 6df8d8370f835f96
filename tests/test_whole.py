"""Files that are written whole: links, what is no file, what fails halfway."""

import os

import pytest

from jaxprune._whole import whole_file, write_whole


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "model", tmp_path / "link"
    link.symlink_to("there/model")
    for data in (b"first", b"second"):  # there is no such file at first
        write_whole(link, data)
        assert link.is_symlink()
        assert file.read_bytes() == data
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link", "model", "there"]


def test_what_is_no_file_is_left_alone(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, ""):
        with pytest.raises(OSError, match="is no file, expected the name of one"):
            write_whole(path, b"data")
    assert pipe.is_fifo()
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'"):
        write_whole(tmp_path / "nowhere" / "model", b"data")
    assert list(tmp_path.iterdir()) == [pipe]


def test_what_fails_halfway_leaves_the_file_of_before(tmp_path):
    file = tmp_path / "model"
    write_whole(file, b"before")

    def fail():
        with whole_file(file) as part:
            part.write_bytes(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]
