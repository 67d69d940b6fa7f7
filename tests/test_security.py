"""Security promises of docs/security.md: one test for each promise that has none elsewhere."""

import ast
import contextlib
import functools
import io
import os
import pickle
import re
import stat
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.api import CheckpointException

from sams.data.forms import read_pairs
from sams.launch import jobs
from sams.runtime import stage
from sams.runtime.errors import UserError
from sams.runtime.files import restrict_umask, write_json
from sams.scoring import fetch
from sams.study.settings import Model
from sams.tables import render
from sams.tables.bundle import unpacked
from sams.tracking import pages as mlflow_pages
from sams.training.export import KEY, export_trained
from sams.training.sharded import load_sharded
from sams.world import local_judge
from tests.bad_input.models import Trap
from tests.conftest import ROOT
from tests.study.test_config import tiny_study

SOURCES = sorted((ROOT / "sams").rglob("*.py"))
RULES = sorted((ROOT / "rules").glob("*.smk"))


@functools.cache
def calls() -> tuple[tuple[str, str, ast.Call], ...]:
    """Every call in the package: file, what is called, the call."""
    return tuple(_calls())


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def said(call: ast.Call, name: str) -> str | None:
    """What a call gives for an argument; `**` when it may be in a dictionary."""
    found = {word.arg: ast.unparse(word.value) for word in call.keywords}
    return found.get(name, "**" if None in found else None)


# --- nothing that comes with data or models is run ---------------------------------------------------


def test_no_code_that_comes_with_a_model_is_run() -> None:
    """Each from_pretrained call has `trust_remote_code=False`, directly or in its options."""
    loading = (".from_pretrained", ".from_config")
    loaders = [(where, call) for where, name, call in calls() if name.endswith(loading)]
    loaders = [(where, call) for where, call in loaders if "GenerationConfig" not in ast.unparse(call.func)]
    assert len(loaders) >= 10
    told = {where: said(call, "trust_remote_code") for where, call in loaders}
    assert set(told.values()) <= {"False", "**"}, told
    assert not [where for where, value in told.items() if value == "**" and "scoring/reward.py" not in where]
    assert 'options: dict[str, Any] = {"revision": revision or None, "trust_remote_code": False}' in (
        ROOT / "sams/scoring/reward.py"
    ).read_text(encoding="utf-8")


def test_weights_are_safetensors_and_torch_loads_no_more_than_weights() -> None:
    for where, name, call in calls():
        if name == "torch.load":
            assert said(call, "weights_only") == "True", where
        if "AutoModel" in name and name.endswith(".from_pretrained"):
            expected = "None if settings.allow_pickle else True" if "policy/model.py" in where else "True"
            assert said(call, "use_safetensors") == expected, where
        assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "dcp.load", "joblib.load") or (
            name == "dcp.load"
            and where.split(":")[0] in ("sams/training/sharded.py", "sams/policy/stored.py")
        ), where
        if name == "yaml.load":  # the first two make subclasses of SafeLoader
            assert ast.unparse(call.args[1]) in ("_loader()", "_values_loader()", "yaml.BaseLoader"), where
        if name == "np.load":
            assert said(call, "allow_pickle") in (None, "False"), where


@pytest.mark.parametrize("place", ["metadata", "values"])
def test_sharded_weights_run_nothing(place: str, tmp_path: Path) -> None:
    state = {"weights": torch.arange(4.0), "step": 3}
    dcp.save(state, checkpoint_id=tmp_path / "ck")
    found: dict[str, Any] = {"weights": torch.zeros(4), "step": 0}
    load_sharded(found, tmp_path / "ck")
    assert found["step"] == 3 and torch.equal(found["weights"], state["weights"])

    if place == "metadata":
        (tmp_path / "ck" / ".metadata").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    else:
        dcp.save({**state, "step": Trap(str(tmp_path / "sprung"))}, checkpoint_id=tmp_path / "ck")
    with pytest.raises(CheckpointException, match=r"must not contain|[Ww]eights.only"):
        load_sharded(found, tmp_path / "ck")
    assert not (tmp_path / "sprung").exists()


def test_an_export_runs_nothing_that_stands_for_a_weight(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **sizes))
    (trained := tmp_path / "trained").mkdir()
    (out := tmp_path / "out").mkdir()
    model.config.save_pretrained(trained)
    state: dict[str, Any] = {f"{KEY}{name}": weight.detach() for name, weight in model.named_parameters()}
    dcp.save(state, checkpoint_id=trained)
    export_trained(trained, Model(path=str(trained)), out, torch.float32)

    state[f"{KEY}model.norm.weight"] = Trap(str(tmp_path / "sprung"))
    dcp.save(state, checkpoint_id=trained)
    with pytest.raises(UserError, match=r"trained: weight .*model\.norm\.weight is not a tensor"):
        export_trained(trained, Model(path=str(trained)), out, torch.float32)
    assert not (tmp_path / "sprung").exists()

    state[f"{KEY}model.norm.weight"] = torch.full((8,), torch.nan)
    dcp.save(state, checkpoint_id=trained)
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN or infinity"):
        export_trained(trained, Model(path=str(trained)), out, torch.float32)


# --- no shell is built from what users write ----------------------------------------------------------

NAMES = [
    "; rm -rf ~",
    "$(id)",
    "`id`",
    "a b",
    "a'b",
    'a"b',
    "a|b",
    "a>b",
    "a\nb",
    "-rf",
    "..",
    "../up",
    "a/b",
    "",
    "ä",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_plain_words(name: str) -> None:
    overlays = ({"study": name}, {"setting": name}, {"methods": ["sft", name], "method_settings": {name: {}}})
    for overlay in overlays:
        with pytest.raises(UserError, match=r"key '.*String should match pattern"):
            tiny_study(**overlay)


def test_rules_quote_what_they_put_into_a_shell() -> None:
    # Modules of the package, options that are quoted (below), and numbers.
    own = {"params.module", "params.options", "resources.nodes", "resources.processes", "threads"}
    own |= {"params.trained", "params.difficulty", "wildcards.half", "ARGUMENTS", "SHOW_WARNINGS"}
    shells = 0
    commands = []
    for file in RULES:
        text = file.read_text(encoding="utf-8")
        blocks = re.findall(r"\n {4,8}shell:\n((?: {8,}\S.*\n)+)", text)
        shells += len(blocks)
        assert len(blocks) == text.count("shell:\n"), file.name
        commands += [block for block in blocks if block.strip() not in ("STAGE", "DISTRIBUTED_STAGE")]
        commands += re.findall(
            r"\n(?:ARGUMENTS|SHOW_WARNINGS|STAGE|DISTRIBUTED_STAGE) = (.+\n(?:(?:    |\)).*\n)*)", text
        )
    assert shells >= 8 and sum("python" in command for command in commands) >= 2
    for command in commands:
        for name in re.findall(r"\{([^}]+)\}", command):
            assert name.endswith(":q") or name in own, f"{{{name}}} in {command}"
    options = jobs.options("data", out="{output.made}")(
        {}, {"data": "$(id)"}, SimpleNamespace(made="a; id"), 1
    )
    assert options == "--data '$(id)' --out 'a; id'"


def test_no_process_is_started_through_a_shell() -> None:
    for where, name, call in calls():
        assert said(call, "shell") in (None, "False", "**"), where
        assert name not in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), (
            where
        )
        if name in ("subprocess.run", "subprocess.Popen") and call.args:
            assert isinstance(call.args[0], ast.List | ast.Name), where


# --- paths stay where they belong -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/sams-out.txt", "study/../../out.txt"])
@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_a_bundle_is_unpacked_into_its_folder_alone(name: str, kind: str, tmp_path: Path) -> None:
    archive = tmp_path / f"bundle{kind}"
    if kind == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("study/SHA256SUMS", "")
            packed.writestr(name, "out")
    else:
        with tarfile.open(archive, "w:gz") as packed_tar:
            for path, data in (("study/SHA256SUMS", b""), (name, b"out")):
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                packed_tar.addfile(entry, io.BytesIO(data))
    before = sorted(tmp_path.iterdir())
    with contextlib.suppress(UserError), unpacked(archive) as folder:
        inside = folder.parent
        assert {path.name for path in inside.rglob("*") if path.is_file()} <= {"SHA256SUMS", "sams-out.txt"}
        assert not (inside.parent / "out.txt").exists()
    assert sorted(tmp_path.iterdir()) == before and not Path("/tmp/sams-out.txt").exists()


def test_links_in_a_bundle_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bundle.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        link = tarfile.TarInfo("study/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    with pytest.raises(UserError, match="cannot be unpacked"), unpacked(archive):
        pass


def test_ids_in_data_name_no_file(tmp_path: Path) -> None:
    row = '{"id": "../../up", "prompt": "a", "chosen": "b", "rejected": "c"}\n'
    (tmp_path / "pairs.jsonl").write_text(row)
    [pair] = read_pairs(str(tmp_path / "pairs.jsonl"), "train")
    assert re.fullmatch("[0-9a-f]{16}", pair.id)


# --- what models say is text -----------------------------------------------------------------------------

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)> \\input{/etc/passwd} $x$ & %'


def test_tables_escape_what_they_show() -> None:
    table = render.Readable([HOSTILE, "n"], [[(HOSTILE,), (HOSTILE, HOSTILE)]])
    page = render.html(HOSTILE, table, [HOSTILE])
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;alert(1)") >= 6
    tex = render.latex(HOSTILE, table, [HOSTILE])
    assert "\\input" not in tex and "$x$" not in tex and " & %" not in tex


def test_templates_escape_by_themselves_and_mark_nothing_safe_but_their_script() -> None:
    made = [(where, call) for where, name, call in calls() if name.endswith("Environment")]
    assert made and all(said(call, "autoescape") == "True" for _, call in made)
    templates = "".join(file.read_text() for file in (ROOT / "sams/tables/templates").glob("*"))
    assert re.findall(r"\{\{[^}]*\|\s*safe[^}]*\}\}", templates) == ["{{ script | safe }}"]
    script = (ROOT / "sams/tables/templates/page.js").read_text()
    assert "{{" not in script and "innerHTML" not in script


def test_captions_of_the_report_hold_no_markup_of_a_judges_name() -> None:
    with pytest.raises(UserError, match=r"key 'benchmarks\.judge\.model'"):
        tiny_study(benchmarks__judge={"kind": "openai", "model": "x\n\n.. raw:: html\n\n   <script>"})


# --- servers, files ----------------------------------------------------------------------------------------


def test_servers_listen_on_loopback_with_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert local_judge.HOST == "127.0.0.1"
    assert local_judge.MAX_REQUEST_BYTES <= 4 << 20 and 0 < local_judge._Handler.timeout <= 300
    started: list[str] = []
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(mlflow_pages, "start_child", lambda words, **_: started.extend(words) or server)
    monkeypatch.setattr(mlflow_pages, "links_to_runs", lambda *_: {})
    monkeypatch.setattr(mlflow_pages, "answers", lambda *_: True)
    monkeypatch.setattr(mlflow_pages, "end_child", lambda _: None)
    monkeypatch.setattr(mlflow_pages, "stop_on_signals", lambda: None)
    (tmp_path / "mlflow.db").touch()
    mlflow_pages.open_ui(tmp_path)
    assert started[started.index("--host") + 1] == "127.0.0.1"
    assert fetch.MOST_BYTES <= 1 << 26 and fetch.WAIT_SECONDS <= 60


def test_nobody_else_can_write_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(out: Path) -> None:
        write_json(out / "folder" / "result.json", {})

    monkeypatch.setattr(sys, "argv", ["stage", "--out", str(tmp_path)])
    before = os.umask(0)
    try:
        with pytest.raises(SystemExit):
            stage.run(main)
        assert os.umask(0o027) == 0o002
        restrict_umask()
        assert os.umask(0o027) == 0o027, "what is stricter already stays"
    finally:
        os.umask(before)
    for path in (tmp_path / "folder", tmp_path / "folder" / "result.json"):
        assert not path.stat().st_mode & stat.S_IWOTH
