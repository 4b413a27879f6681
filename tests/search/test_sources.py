"""List the sounds to index: folders, links, lists, data sets; odd names, odd files, unreadable folders."""

import os
import time

import datasets
import numpy as np
import pytest
import soundfile

from wavlink.search.listing import SOUNDS, file_of, list_sounds


@pytest.fixture
def sounds(tmp_path):
    """Files named like sounds, of a few bytes: none is opened."""
    for name in (
        "b.wav",
        "a.FLAC",
        "dog/1.mp3",
        "dog/far/2.opus",
        "dog-2.aiff",
        "notes.txt",
        ".hidden.wav",
        ".git/x.wav",
    ):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path / "sounds"


def paths(listing) -> list[str]:
    return [sound.path for sound in listing.sounds]


def test_a_folder_with_all_below(sounds):
    listing = list_sounds([str(sounds)])
    assert paths(listing) == ["a.FLAC", "b.wav", "dog-2.aiff", "dog/1.mp3", "dog/far/2.opus"]
    assert listing.root == str(sounds) and listing.covers("gone.wav") and not listing.unreadable
    sound = listing.sounds[1]
    known = os.stat(sounds / "b.wav")
    assert (sound.size, sound.version, sound.error) == (5, known.st_mtime_ns, "")
    assert listing.content(sound) == file_of(listing.root, sound.path) == str(sounds / "b.wav")


def test_recent_modification_time_in_whole_seconds_is_not_trusted(sounds):
    """Within that second, or two, the file may change again and keep it."""
    now = int(time.time())
    for name, when in (("a.FLAC", now), ("b.wav", now - 60), ("dog-2.aiff", now + 0.25), ("dog/1.mp3", now + 3600)):
        os.utime(sounds / name, ns=(int(when * 10**9),) * 2)
    versions = {sound.path: sound.version for sound in list_sounds([str(sounds)]).sounds}
    assert versions["a.FLAC"] == -1
    for name in ("b.wav", "dog-2.aiff", "dog/1.mp3"):
        assert versions[name] == os.stat(sounds / name).st_mtime_ns


def test_a_part_of_a_root_covers_that_part_alone(sounds):
    listing = list_sounds([str(sounds / "dog")], root=str(sounds))
    assert paths(listing) == ["dog/1.mp3", "dog/far/2.opus"]
    assert listing.covers("dog/9.wav") and not listing.covers("dog-9.wav") and not listing.covers("b.wav")


def test_files_and_a_list_of_files(sounds, monkeypatch):
    monkeypatch.chdir(sounds.parent)
    (sounds.parent / "list.txt").write_text("sounds/dog/1.mp3\n\nsounds/gone.wav\nsounds/notes.txt\nsounds/dog\n")
    listing = list_sounds(["@list.txt", "sounds/b.wav"])
    assert listing.root == str(sounds)
    assert paths(listing) == ["b.wav", "dog/1.mp3", "dog/far/2.opus", "gone.wav", "notes.txt"]
    errors = {sound.path: sound.error for sound in listing.sounds if sound.error}
    assert errors == {"gone.wav": "No such file or directory"}
    assert not listing.covers("a.FLAC") and listing.covers("dog/9.wav")


def test_links_are_followed_once_and_loops_end(sounds):
    os.symlink(sounds, sounds / "dog/loop")
    os.symlink(sounds / "dog", sounds / "a-link")
    outside = sounds.parent / "outside"
    outside.mkdir()
    (outside / "o.wav").write_bytes(b"1")
    os.symlink(outside, sounds / "linked")
    os.symlink(sounds / "nowhere.wav", sounds / "dangling.wav")
    listing = list_sounds([str(sounds)])
    expected = ["a.FLAC", "b.wav", "dangling.wav", "dog-2.aiff", "dog/1.mp3", "dog/far/2.opus", "linked/o.wav"]
    assert paths(listing) == expected
    assert listing.sounds[2].error == "No such file or directory" and listing.sounds[2].version == -1


def test_hostile_file_names_are_listed(tmp_path):
    """Bytes that are no UTF-8, line ends, quotes, and what a shell or a terminal would act on."""
    names = [
        b"caf\xe9.wav",
        "é\u202e.wav".encode(),
        b"a\nb.wav",
        b"$(rm x);'\".wav",
        b"\x1b[31m.wav",
        b"..wav.wav"[1:],
    ]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"1")
    listing = list_sounds([str(tmp_path)])
    assert len(listing.sounds) == len(names) - 1  # the last is hidden
    assert "caf\\xe9.wav" in paths(listing)
    for sound in listing.sounds:
        sound.path.encode("utf-8")
        assert os.path.samefile(file_of(listing.root, sound.path), sound.source)


@pytest.mark.parametrize("path", ["../b.wav", "/etc/passwd", "dog/../../b.wav", "a//b", "", "x\0.wav", "."])
def test_path_that_leaves_the_root_is_none(sounds, path):
    assert file_of(str(sounds), path) is None
    assert file_of("", "b.wav") is None and file_of("dataset:user/name@train", "b.wav") is None


def test_special_and_unreadable_files_are_reported_without_opening(sounds, monkeypatch):
    os.mkfifo(sounds / "pipe.wav")
    (sounds / "empty.wav").touch()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("b.wav") and real(path, mode))
    errors = {
        sound.path: (sound.error, sound.version < 0) for sound in list_sounds([str(sounds)]).sounds if sound.error
    }
    assert errors == {
        "pipe.wav": ("it is not a file", True),
        "empty.wav": ("it holds no bytes", False),
        "b.wav": ("there is no right to read it", True),  # read again next time: permissions leave no trace
    }


def test_unlistable_folder_does_not_cover_its_sounds(sounds, monkeypatch):
    real = os.scandir

    def scandir(folder):
        if folder == str(sounds / "dog"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_sounds([str(sounds)])
    assert paths(listing) == ["a.FLAC", "b.wav", "dog-2.aiff"]
    assert listing.unreadable == {"dog/": "Permission denied"}
    assert not listing.covers("dog/1.mp3") and listing.covers("gone.wav")
    with pytest.raises(ValueError, match="dog/ cannot be listed: Permission denied"):
        list_sounds([str(sounds / "dog")], root=str(sounds))


def test_a_data_set_by_the_names_of_its_files_or_by_rows(tmp_path):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(10 + number), 16000)
    content = [(tmp_path / f"{number}.wav").read_bytes() for number in range(3)]
    features = datasets.Features({"audio": datasets.Audio(decode=False)})
    for folder, names in (("named", ["c.wav", "a.wav", "b.wav"]), ("alike", ["audio.wav"] * 3)):
        rows = [{"audio": {"bytes": each, "path": name}} for each, name in zip(content, names, strict=True)]
        (tmp_path / folder / "data").mkdir(parents=True)
        data = datasets.Dataset.from_list(rows).cast(features)
        data.to_parquet(tmp_path / folder / "data/train-00000-of-00001.parquet")
    listing = list_sounds([str(tmp_path / "named")])
    assert paths(listing) == ["a.wav", "b.wav", "c.wav"] and listing.covers("gone.wav")
    assert [listing.content(sound) for sound in listing.sounds] == [content[1], content[2], content[0]]
    assert listing.root == f"dataset:{tmp_path / 'named'}@train"
    again = list_sounds([str(tmp_path / "named")], root=listing.root)
    assert again.sounds == listing.sounds and len({sound.version for sound in again.sounds}) == 3
    assert paths(list_sounds([str(tmp_path / "alike")])) == ["row 0000000", "row 0000001", "row 0000002"]
    with pytest.raises(ValueError, match=r"the index is of dataset:.*named@train: index .*alike@train into another"):
        list_sounds([str(tmp_path / "alike")], root=listing.root)
    with pytest.raises(ValueError, match="the index is of dataset:"):
        list_sounds([str(tmp_path / "0.wav")], root=listing.root)
    with pytest.raises(ValueError, match="^gone is no file or folder here; the index is of "):
        list_sounds(["gone"], root=str(tmp_path))


def test_invalid_sources_are_refused(sounds, tmp_path):
    with pytest.raises(ValueError, match="name what to index"):
        list_sounds([])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/x.txt").touch()
    with pytest.raises(ValueError, match=r"no sounds in .*bare: files are taken that end in \.wav, \.flac"):
        list_sounds([str(tmp_path / "bare")])
    with pytest.raises(ValueError, match=r"/no/such/folder does not exist"):
        list_sounds(["/no/such/folder"])
    with pytest.raises(ValueError, match=r"nowhere/else/at/all does not exist"):
        list_sounds([str(sounds), "nowhere/else/at/all"])
    with pytest.raises(ValueError, match=r"cannot read the list .*missing.txt: No such file"):
        list_sounds([f"@{tmp_path}/missing.txt"])
    with pytest.raises(ValueError, match=r"b\.wav is not below .*dog, which the index's paths are relative to"):
        list_sounds([str(sounds / "b.wav")], root=str(sounds / "dog"))


def test_extensions_are_those_of_formats_that_libsndfile_has():
    formats = {name.lower() for name in soundfile.available_formats()}
    assert {"wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64", "voc"} <= formats & {
        e[1:] for e in SOUNDS
    }
