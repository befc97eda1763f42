"""Public data sets by name, from a server on this machine: resumed, checked, unpacked, and never outside of their folder."""

import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import socket
import stat
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import own
import pytest

from msdetr.cli import main
from msdetr.data import check, download, public
from msdetr.data.layouts import open_layout
from msdetr.errors import ConfigError, DataError, DownloadError, WriteError

CONTENT = bytes(range(256)) * 400
NAMES = ["ant", "bee"]


class Server:
    """content: what there is to fetch. cut: after how many bytes each of the next answers breaks off. tag: its ETag."""

    def __init__(self):
        self.content, self.cut, self.tag, self.ranges = CONTENT, [], '"1"', True
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path != "/set.zip":
                    return self.send_error(404)
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                start = 0
                if asked and outer.ranges and self.headers.get("If-Range") == outer.tag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(outer.content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(outer.content)}")
                        return self.end_headers()
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                else:
                    self.send_response(200)
                self.send_header("ETag", outer.tag)
                self.send_header("Content-Length", str(len(outer.content) - start))
                self.end_headers()
                end = outer.cut.pop(0) if outer.cut else len(outer.content)
                self.wfile.write(outer.content[start : start + end])
                return None

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.zip"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy elsewhere does not know this machine's server
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def digest(content):
    return hashlib.sha256(content).hexdigest()


def fetch(server, target, sha256=None, **options):
    return download.download(server.url, target, sha256, timeout=5, pause=0, **options)


def test_a_file_is_fetched_and_its_checksum_told(server, tmp_path):
    seen = []
    assert fetch(server, tmp_path / "a", on_bytes=lambda *numbers: seen.append(numbers)) == digest(CONTENT)
    assert (tmp_path / "a").read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.fault("F120")
def test_a_download_that_breaks_off_goes_on_from_there(server, tmp_path):
    server.cut = [1000, 5000, 0, 0]
    assert fetch(server, tmp_path / "a", digest(CONTENT)) == digest(CONTENT)
    assert server.asked == [None, "bytes=1000-", *["bytes=6000-"] * 3]


@pytest.mark.fault("F120")
def test_the_next_call_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.cut = [1000, 0, 0]
    with pytest.raises(
        DownloadError, match="broke off after 1,000 bytes, which are kept in .*a.part .*say the same again.*--from"
    ):
        fetch(server, tmp_path / "a", tries=2)
    assert not (tmp_path / "a").exists()
    fetch(server, tmp_path / "a")
    assert server.asked[-1] == "bytes=1000-" and (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.fault("F120")
@pytest.mark.parametrize("what", ["changed", "no ranges", "complete", "damaged record"])
def test_what_came_is_used_only_where_it_is_of_the_same_file(server, tmp_path, what):
    server.cut = [len(CONTENT) if what == "complete" else 1000, 0]
    if what == "complete":
        (tmp_path / "a.part").write_bytes(CONTENT)
        (tmp_path / "a.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"1\\""}}')
    else:
        with pytest.raises(DownloadError):
            fetch(server, tmp_path / "a", tries=1)
    if what == "changed":
        server.content, server.tag = CONTENT[::-1], '"2"'
    if what == "no ranges":
        server.ranges = False
    if what == "damaged record":
        (tmp_path / "a.part.json").write_text("{")
    server.cut = []
    fetch(server, tmp_path / "a", digest(server.content))
    assert (tmp_path / "a").read_bytes() == server.content and os.listdir(tmp_path) == ["a"]


@pytest.mark.fault("F121")
def test_a_wrong_checksum(server, tmp_path):
    with pytest.raises(DownloadError, match=f"has SHA-256 {digest(CONTENT)}, not {'0' * 64}; it was deleted"):
        fetch(server, tmp_path / "a", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_addresses_that_lead_nowhere_and_files_that_are_too_large(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        download.download(server.url.replace("set", "other"), tmp_path / "a", pause=0)
    with pytest.raises(DownloadError, match="the limit is 10; is it another file"):
        fetch(server, tmp_path / "a", limit=10)
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(server, tmp_path / "a", tries=2)


# ---------------------------------------------------------------- archives


def zip_of(path, members, links=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return path


@pytest.mark.fault("F122")
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_members_that_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="leads out of the folder; nothing was unpacked"):
        download.unpack(zip_of(tmp_path / "a.zip", {"good": "1", name: "2"}), tmp_path / "out")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        archive.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match="leads out of the folder"):
        download.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()


@pytest.mark.fault("F122")
def test_links_bombs_and_what_is_no_archive(tmp_path):
    with pytest.raises(DataError, match="'a link' is a link or device"):
        download.unpack(zip_of(tmp_path / "a.zip", {}, ["a link"]), tmp_path / "out")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("pipe")
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    with pytest.raises(DataError, match="'pipe' is a link or device"):
        download.unpack(tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(DataError, match="would unpack to 5,000 bytes"):
        download.unpack(zip_of(tmp_path / "b.zip", {"zeros": "0" * 5000}), tmp_path / "out", limit=1000)
    (tmp_path / "c").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no .zip or tar archive"):
        download.unpack(tmp_path / "c", tmp_path / "out")
    whole = zip_of(tmp_path / "d.zip", {"a": os.urandom(1000)}).read_bytes()
    (tmp_path / "d.zip").write_bytes(whole[:60] + b"x" + whole[61:])
    with pytest.raises(DataError, match="cannot be unpacked"):
        download.unpack(tmp_path / "d.zip", tmp_path / "out2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_any_damage_is_told(tmp_path, kind):
    """A bit of the compressed content is another one, or the end is missing."""
    path, content = tmp_path / f"a.{kind}", os.urandom(3000) * 2
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", content)
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as archive:
            info = tarfile.TarInfo("a")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    for at in range(100, 3000, 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match="fetch it again"):
            download.unpack(path, tmp_path / "out")
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match="fetch it again"):
        download.unpack(path, tmp_path / "out")


@pytest.mark.fault("F95")
def test_no_room_is_no_fault_of_the_network(server, tmp_path, monkeypatch):
    (tmp_path / "full.part").symlink_to("/dev/full")
    with pytest.raises(WriteError, match="full.part: cannot be written: No space left"):
        fetch(server, tmp_path / "full")
    assert len(server.asked) == 1, "it is not tried again"
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        public.get("bccd", tmp_path / "file" / "data", tmp_path)


# ---------------------------------------------------------------- data sets


@pytest.mark.fault("F121")
def test_a_copy_without_a_split_is_not_the_data_set(tmp_path, monkeypatch):
    root = own.coco(tmp_path / "whole", NAMES, {"train": own.objects(3, 2), "val": own.objects(2, 2)})
    digests = public.part_digests(open_layout(root))
    monkeypatch.setitem(public.SETS, "bccd", dataclasses.replace(public.SETS["bccd"], copies=digests))
    assert check(public.get("bccd", tmp_path / "data", root)).ok
    (root / "annotations" / "instances_val.json").unlink()
    with pytest.raises(
        DataError, match="annotations of val, images of val of the copy is not there; take a whole copy"
    ):
        public.get("bccd", tmp_path / "more", root)
    assert not (tmp_path / "more" / "bccd").exists()


@pytest.fixture
def tiny(server, tmp_path, monkeypatch):
    """A public set of five images in a zip archive, on the server and at hand."""
    root = own.voc(tmp_path / "made", NAMES, {"train": own.objects(3, 2), "val": own.objects(2, 2)})
    members = {
        f"repository-main/Tiny/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    archive = zip_of(tmp_path / "tiny.zip", {"repository-main/README.md": "read me", **members})
    server.content = archive.read_bytes()
    found = public.PublicSet(
        "tiny", "tiny things", 2, "https://example.org", "CC0", "nobody", server.url, digest(server.content), "Tiny", 5
    )
    monkeypatch.setitem(public.SETS, "tiny", found)
    monkeypatch.setattr(public, "download", lambda *a, **k: download.download(*a, **k, pause=0, tries=2))
    return found


def test_get_fetches_checks_and_unpacks(server, tiny, tmp_path, capsys):
    server.cut = [1000]
    assert main(["data", "get", "tiny", "--root", str(tmp_path / "data")]) == 0
    text = capsys.readouterr().out
    for words in ("https://example.org", "CC0", "nobody", server.url, digest(server.content), "SHA-256 of the archive"):
        assert words in text
    folder = tmp_path / "data" / "tiny"
    assert text.endswith(f"msdetr train photos/ms-detr-c --data {folder}\n") and check(folder).ok
    assert os.listdir(tmp_path / "data") == ["tiny"], "nothing else is left"
    asked = len(server.asked)
    assert public.get("tiny", tmp_path / "data") == folder and len(server.asked) == asked, "it is there already"
    assert main(["data", "list", "--root", str(tmp_path / "data")]) == 0
    text = capsys.readouterr().out
    assert f"in {folder}" in text and text.count("not here") == len(public.SETS) - 1


def test_from_an_archive_or_a_folder_at_hand(server, tiny, tmp_path):
    (tmp_path / "b").mkdir()
    for number, source in enumerate([tmp_path / "tiny.zip", tmp_path / "made"]):
        folder = public.get("tiny", tmp_path / str(number), source)
        assert check(folder).ok and public.record_of(folder)["from"] == str(source)
    assert not server.asked and (tmp_path / "tiny.zip").is_file()


def test_two_that_get_one_set_at_once(server, tiny, tmp_path, monkeypatch):
    """The second one waits, says so, and finds it there."""
    begun, said = threading.Event(), []
    fetch_slowly = public.download

    def slow(*arguments, **more):
        begun.set()
        while not said:  # the other one waits by now
            time.sleep(0.05)
        return fetch_slowly(*arguments, **more)

    monkeypatch.setattr(public, "download", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(public.get, "tiny", tmp_path / "data")
        assert begun.wait(30)
        second = pool.submit(public.get, "tiny", tmp_path / "data", say=said.append)
        assert first.result(60) == second.result(60) == tmp_path / "data" / "tiny"
    assert said == [f"process {os.getpid()} on {socket.gethostname()} is getting it; waiting for that"]
    assert len(server.asked) == 1 and os.listdir(tmp_path / "data") == ["tiny"]


def test_a_set_on_a_drive_without_locks(tiny, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(
        DataError, match=r"\.tiny\.lock: cannot be locked: No locks available; this file system has no locks"
    ):
        public.get("tiny", tmp_path / "data")


@pytest.mark.fault("F121")
def test_what_is_not_the_data_set_leaves_nothing(server, tiny, tmp_path, monkeypatch):
    data = tmp_path / "data"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="there is no such folder or archive to take tiny from"):
        public.get("tiny", data, tmp_path / "absent")
    with pytest.raises(DataError, match="tiny: what came holds no data set"):
        public.get("tiny", data, tmp_path / "nothing")
    monkeypatch.setitem(public.SETS, "tiny", dataclasses.replace(tiny, sha256="0" * 64))
    with pytest.raises(DataError, match="not 0000"):
        public.get("tiny", data, tmp_path / "tiny.zip")
    with pytest.raises(DownloadError, match="not 0000"):
        public.get("tiny", data)
    monkeypatch.setitem(public.SETS, "tiny", dataclasses.replace(tiny, images=6, sha256=None))
    with pytest.raises(DataError, match="there are 5 images, 6 were expected"):
        public.get("tiny", data, tmp_path / "made")
    (data / "tiny").mkdir()
    with pytest.raises(DataError, match="was not put there by `msdetr data get`"):
        public.get("tiny", data)
    (tmp_path / "made" / "link").symlink_to("/etc")
    with pytest.raises(DataError, match="is a link"):
        public.get("tiny", tmp_path / "other", tmp_path / "made")
    with pytest.raises(ConfigError, match="unknown data set 'x'; there are bccd, aquarium"):
        public.get("x", data)
    with pytest.raises(DataError, match="take a copy with --from"):
        public.get("pcb", data)
    assert os.listdir(data) == ["tiny"] and not os.listdir(tmp_path / "other")


@pytest.mark.fault("F121")
def test_a_converted_copy_is_compared_part_by_part(tiny, tmp_path, monkeypatch):
    root = own.coco(tmp_path / "copy", NAMES, {"train": own.objects(3, 2), "val": own.objects(2, 2)})
    copies = public.part_digests(open_layout(root))
    monkeypatch.setitem(public.SETS, "tiny", dataclasses.replace(tiny, copies=copies))
    folder = public.get("tiny", tmp_path / "a", root)
    assert public.record_of(folder)["checked"].startswith("SHA-256 of annotations and images")
    image = next((root / "val").iterdir())
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(DataError, match="images of val of the copy is not the one that is known"):
        public.get("tiny", tmp_path / "b", root)


def test_every_set_says_where_it_is_from_and_under_which_licence():
    for name, found in public.SETS.items():
        assert found.name == name and found.licence in ("MIT", "CC BY 4.0", "CC0 1.0") and found.attribution
        assert found.source.startswith("https://") and (found.url.startswith("https://") or not found.url)
        assert all(len(value) == 64 for value in found.copies.values())


@pytest.mark.parametrize("name", ["bccd", "aquarium"])
def test_the_copies_at_hand(name, tmp_path):
    shared = Path(__file__).parents[3] / "shared"
    source = next((p for p in (shared / name, shared / "real" / name) if p.is_dir()), None)
    if source is None:
        pytest.skip(f"no copy of {name} in {shared}")
    folder = public.get(name, tmp_path, source)
    assert open_layout(folder).splits == ["test", "train", "val"]
