"""Bundles: a study's results in one file to attach to a paper, without weights, data and checkpoints.

Equal results give equal bytes: files are sorted, their times and owners are omitted.
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
# Bundled files of a folder with a manifest, whose other files are weights, token ids or data.
OF_SEALED = {MANIFEST, "report.json", "source.json"}
OTHERS = {"mlflow_run_id", "pairs.parquet"}


def bundled_files(root: Path) -> list[Path]:
    """Return the files of a study's results that belong in a bundle, sorted."""
    sealed = {path.parent for path in root.rglob(MANIFEST)}
    files = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or relative.parts[0] == "checkpoints" or not path.is_file() or path.name == SUMS:
            continue
        if sealed & set(path.parents):
            keep = path.parent in sealed and path.name in OF_SEALED
        else:
            keep = path.suffix in TEXTS or path.name in OTHERS
        if keep:
            files.append(path)
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def pack(root: Path, out: Path) -> int:
    """Write a bundle (`.zip` or `.tar.gz`) of a study's results and return its number of files.

    Raises:
        UserError: `out` has another suffix.
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
    """Check the suffix of a bundle's name.

    Raises:
        UserError: it is neither `.zip` nor `.tar.gz`.
    """
    if not out.name.endswith(KINDS):
        raise UserError("expected a name that ends in .zip or .tar.gz", where=str(out), remedy="rename it")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a folder of results: `path` itself, or the temporarily unpacked content of the bundle at `path`.

    Raises:
        UserError: the file is not a bundle.
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
                f"cannot be unpacked ({error})", where=str(path), remedy="download it again"
            ) from None
        inside = [child for child in Path(folder).iterdir() if child.is_dir()]
        if len(inside) != 1 or not (inside[0] / SUMS).is_file():
            raise UserError(
                "not a bundle of `sams verify`", where=str(path), remedy="give a file made by `--bundle`"
            )
        yield inside[0]


def _zip(part: Path, contents: dict[str, Path], sums_name: str, sums: bytes) -> None:
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in [*contents, sums_name]:
            entry = zipfile.ZipInfo(name)  # 1980-01-01
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, on every system
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
