"""A study's results as one file to attach to a paper: everything but weights, data and checkpoints.

The same results give the same bytes: files are sorted, their times and owners left out.
"""

import gzip
import io
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST, sha256_of, whole_file
from sams.tables.verify import SUMS

KINDS = (".zip", ".tar.gz")
TEXTS = {".csv", ".html", ".json", ".jsonl", ".log", ".md", ".png", ".svg", ".tex", ".tsv"}
# What is kept of a folder that a manifest seals: weights, token ids and data are not.
OF_SEALED = {MANIFEST, "report.json", "source.json"}
KEPT = {"mlflow_run_id"}


def bundled_files(root: Path) -> list[Path]:
    """Files of a study's results that a bundle holds, sorted."""
    sealed = {path.parent for path in root.rglob(MANIFEST)}
    found = []
    for path in root.rglob("*"):
        place = path.relative_to(root)
        hidden = any(part.startswith(".") for part in place.parts)
        if hidden or place.parts[0] == "checkpoints" or not path.is_file() or path.name == SUMS:
            continue
        if sealed & set(path.parents):
            keep = path.parent in sealed and path.name in OF_SEALED
        else:
            keep = path.suffix in TEXTS or path.name in KEPT
        if keep:
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def pack(root: Path, out: Path) -> int:
    """Write a bundle (`.zip` or `.tar.gz`) of a study's results; returns the number of files.

    Raises:
        UserError: another kind of file is asked for.
    """
    check_kind(out)
    files = bundled_files(root)
    contents = {f"{root.name}/{path.relative_to(root).as_posix()}": path for path in files}
    sums = "".join(f"{sha256_of(path)}  {path.relative_to(root).as_posix()}\n" for path in files).encode()
    with whole_file(out) as part:
        if out.suffix == ".zip":
            _zip(part, contents, f"{root.name}/{SUMS}", sums)
        else:
            _tar(part, contents, f"{root.name}/{SUMS}", sums)
    return len(files) + 1


def check_kind(out: Path) -> None:
    """See that a bundle's name says how it is packed.

    Raises:
        UserError: it does not.
    """
    if not out.name.endswith(KINDS):
        raise UserError("expected a name that ends in .zip or .tar.gz", where=str(out), remedy="rename it so")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the folder of results: `path` itself, or what the bundle at `path` holds, for as long as it is needed.

    Raises:
        UserError: the file is no bundle.
    """
    if not path.is_file():
        yield path
        return
    check_kind(path)
    with TemporaryDirectory() as folder:
        try:
            if path.suffix == ".zip":
                shutil.unpack_archive(path, folder, "zip")
            else:
                shutil.unpack_archive(path, folder, "gztar", filter="data")
        except (OSError, shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(
                f"cannot be unpacked ({error})", where=str(path), remedy="have it sent again"
            ) from None
        inside = [place for place in Path(folder).iterdir() if place.is_dir()]
        if len(inside) != 1 or not (inside[0] / SUMS).is_file():
            raise UserError(
                "no bundle of `sams verify`", where=str(path), remedy="give one that `--bundle` has made"
            )
        yield inside[0]


def _zip(part: Path, contents: dict[str, Path], sums_name: str, sums: bytes) -> None:
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in [*contents, sums_name]:
            entry = zipfile.ZipInfo(name)  # 1980-01-01
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is packed
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, contents[name].read_bytes() if name in contents else sums)


def _tar(part: Path, contents: dict[str, Path], sums_name: str, sums: bytes) -> None:
    with (
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in [*contents, sums_name]:
            data = contents[name].read_bytes() if name in contents else sums
            entry = tarfile.TarInfo(name)  # no time, no owner
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
