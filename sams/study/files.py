"""Read a study: the default study, overlays over it, and values from the command line."""

import copy
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sams.runtime.errors import UserError, first_line, nearest
from sams.runtime.problems import first_problem
from sams.runtime.source import IS_CHECKOUT, SOURCE, here_or_packaged
from sams.study.study import Study

if TYPE_CHECKING:
    import yaml

DEFAULT = SOURCE / "config" / "config.yaml"

# Numbers, booleans and null of YAML 1.2, which reads 5e-7 as a number; YAML 1.1 and PyYAML need 5.0e-7.
WORDS = {"true": True, "false": False, "null": None, "~": None}
INTEGER = re.compile(r"[-+]?\d+")
FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")


def load_study(settings: dict[str, Any], *, where: str = "config") -> Study:
    """Validate a study.

    Raises:
        UserError: the first mistake, naming its key.
    """
    try:
        return Study.model_validate(settings)
    except ValidationError as error:
        key, problem = first_problem(error, Study)
        where = f"{where}: key '{key}'" if key else where
        written = "" if IS_CHECKOUT else ", which `sams schema` writes,"
        raise UserError(problem, where=where, remedy=f"docs/settings.md{written} lists every key") from None


def read_settings(files: list[Path], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read the default study, overlaid with the other files and `more`.

    Raises:
        UserError: naming the file and line that cannot be read.
    """
    default, *overlays = files
    given: dict[str, Any] = {}
    folder = SOURCE
    for file in overlays:
        settings = read_file(file)
        folder = file.parent if "extends" in settings else folder
        _overlay(given, settings)
    _overlay(given, more or {})
    return resolved(read_file(default), given, folder)


def resolved(default: dict[str, Any], given: dict[str, Any], folder: Path = SOURCE) -> dict[str, Any]:
    """Return the settings of a study: the default study, overlaid with the studies that it extends and its own keys.

    Groups merge and lists replace, as in Snakemake; an architecture of another type replaces too. With
    `rehearse: true` the settings are those of the rehearsal.

    Args:
        default: the default study.
        given: the study's own keys.
        folder: folder of the file with `extends`, in which the extended study is looked for first.

    Raises:
        UserError: an extended study cannot be read or extends itself, or `rehearse` is not a boolean.
    """
    settings: dict[str, Any] = {}
    for layer in [default, *_extended(given, folder), given]:
        _overlay(settings, layer)
    rehearse = settings.setdefault("rehearse", False)
    if not isinstance(rehearse, bool):
        raise UserError(
            f"expected a boolean, found {rehearse!r:.80}",
            where="key 'rehearse'",
            remedy="set it to true or false",
        )
    if rehearse:
        from sams.study.rehearsal import rehearsal_of

        return rehearsal_of(settings)
    return settings


def from_command_line(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings given on a command line, with groups for dotted keys and numbers for their text.

    Args:
        given: values by key. `preference.beta` and `preference__beta` mean key `beta` of group `preference`.
    """
    return _grouped({key: _typed(value) for key, value in given.items()})


def _grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with groups for dotted keys."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = re.split(r"\.|__", key)
        nested: dict[str, Any] = {last: value}
        for group in reversed(groups):
            nested = {group: nested}
        _overlay(settings, nested)
    return settings


def from_options(entries: Iterable[str]) -> dict[str, Any]:
    """Return settings given as `key=value`, the value in YAML.

    Raises:
        UserError: an entry has no value, or the value is not YAML.
    """
    import yaml

    given = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        try:
            if not key or not equals:
                raise ValueError("expected key=value")
            given[key] = yaml.load(text, _values_loader()) if text else None
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(
                first_line(error), where=f"--set {entry}", remedy="for example --set preference.beta=0.3"
            ) from None
    return _grouped(given)


@functools.cache
def _values_loader() -> type["yaml.SafeLoader"]:
    """Return a loader with YAML 1.2's scalars, in which quotes make a text of a number: study='"2024"'."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def text(_: Loader, node: Any) -> Any:
        return node.value if node.style else _typed(node.value)

    Loader.add_constructor("tag:yaml.org,2002:str", text)
    return Loader


def _typed(value: Any) -> Any:
    """Return a value with YAML 1.2 scalars instead of their text."""
    if isinstance(value, Mapping):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    if INTEGER.fullmatch(value):
        return int(value)
    return float(value) if FLOAT.fullmatch(value) else value


def _extended(given: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the studies that a study extends, the lowest first.

    Each is a file next to the one that names it, or else one of the package.
    """
    layers: list[dict[str, Any]] = []
    files: list[Path] = []
    while isinstance(name := given.get("extends"), str):
        file = next((file for base in (folder, SOURCE) if (file := base / name).is_file()), SOURCE / name)
        if file in files:
            raise UserError(
                f"extends itself: {' -> '.join(map(str, [*files, file]))}",
                where=name,
                remedy="drop one `extends`",
            )
        files.append(file)
        folder, given = file.parent, read_file(file)
        layers.insert(0, given)
    return layers


def read_file(file: Path) -> dict[str, Any]:
    """Read keys and values of a YAML file.

    Raises:
        UserError: naming the file, and the line that cannot be read.
    """
    import yaml

    try:
        settings = yaml.load(file.read_text(encoding="utf-8-sig"), _loader())
    except FileNotFoundError:
        others = [path.name for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        studies = ", ".join(sorted(path.stem for path in (SOURCE / "config" / "studies").glob("*.yaml")))
        raise UserError(
            f"no such file{nearest(file.name, others)}",
            where=str(file),
            remedy=f"name a file, or a study of the package ({studies})",
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(file), remedy="name a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"not YAML: {problem}", where=f"{file}{line}", remedy="correct it there") from None
    if not isinstance(settings, dict):
        raise UserError(
            "expected keys and values at the top", where=str(file), remedy="write `key: value` lines"
        )
    return {key: _with_packaged_files(value) for key, value in settings.items()}


def _with_packaged_files(group: Any) -> Any:
    """Return a group with the paths of files that the package has, and the current folder has not."""
    if isinstance(group, dict):
        return {
            key: str(here_or_packaged(value))
            if isinstance(value, str) and value.startswith("config/")
            else _with_packaged_files(value)
            for key, value in group.items()
        }
    return group


@functools.cache
def _loader() -> type["yaml.SafeLoader"]:
    """Return YAML's safe loader with an error for a key that is given twice, instead of taking the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.MarkedYAMLError(
                        problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                    )
                if isinstance(key, yaml.ScalarNode):
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            if key == "architecture" and value.get("model_type") not in (None, below[key].get("model_type")):
                below[key] = {}  # the sizes of another type have other names
            _overlay(below[key], value)
        else:
            below[key] = copy.deepcopy(value)
