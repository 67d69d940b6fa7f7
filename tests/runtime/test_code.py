"""What counts as code: the modules that a job runs, without what computes nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sams.runtime import code as code_digests
from sams.runtime.code import code_of, imported_modules
from sams.study import code as job_code
from sams.study.code import ENTRY_POINTS, code_of_job, named_modules
from sams.study.files import load_study, read_settings
from sams.study.recipes import recipe_of
from sams.study.study import Study
from tests.conftest import ROOT

PREFERENCE = "sams.training.preference"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package in a folder where it may be edited, read by `sams.runtime.code`."""
    shutil.copytree(ROOT / "sams", tmp_path / "sams", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_digests, "PACKAGE", tmp_path / "sams")
    code_digests._code.cache_clear()
    yield tmp_path / "sams"
    code_digests._code.cache_clear()


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that occurs in a file."""
    text = file.read_text()
    assert old in text, f"{file} has no {old!r}"
    file.write_text(text.replace(old, new, 1))
    code_digests._code.cache_clear()


def lines(*added: str) -> str:
    return "\n".join(added) + "\n"


SAMPLE = '''"""A module."""

import logging
import math
from typing import TYPE_CHECKING

from sams.runtime.errors import UserError

if TYPE_CHECKING:
    from sams.policy.policy import Policy

log = logging.getLogger(__name__)


class Thing:
    """A thing."""

    size: int = 1


def f(x: float, policy: "Policy | None" = None) -> float:
    """Compute."""
    y: float = math.exp(x)  # a comment
    if y > 2:
        raise UserError("too much", remedy="take less")
    log.info("computed")
    return y
'''


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ('"""A module."""', '"""Another text."""', False),
        ('    """Compute."""\n', "", False),
        ("  # a comment", "", False),
        ('    log.info("computed")\n', '    if y > 1:\n        log.warning("computed %s", y)\n', False),
        ("x: float, ", "x: int, ", False),
        ("    y: float = ", "    y = ", False),
        ('"too much", remedy="take less"', '"more than two"', False),
        ("import Policy\n", "import Policy, bare\n", False),
        ("    size: int = 1\n", "    size: int = 1\n\n    '''Its size.'''\n", False),
        ("    size: int = 1\n", "    size: int = 2\n", True),
        ("math.exp(x)", "math.exp(2 * x)", True),
        ("if y > 2:", "if y > 3:", True),
        ("    return y\n", "    return -y\n", True),
        ("import math\n", "import math\nfrom sams.data import records\n", True),
    ],
)
def test_the_digest_of_a_module_is_that_of_what_it_computes(
    old: str, new: str, counts: bool, copied: Path
) -> None:
    (copied / "sample.py").write_text(SAMPLE)
    before = code_of("sams.sample")
    edit(copied / "sample.py", old, new)
    assert (code_of("sams.sample") != before) == counts


def test_modules_for_the_type_checker_are_not_run(copied: Path) -> None:
    (copied / "sample.py").write_text(SAMPLE)
    assert code_of("sams.sample").keys() == {"sams.sample"}
    edit(copied / "sample.py", "    return y\n", "    from sams.policy import policy\n\n    return y\n")
    assert {"sams.sample", "sams.policy.policy"} <= code_of("sams.sample").keys()


def test_modules_are_followed_but_for_those_that_only_report() -> None:
    found = imported_modules(PREFERENCE)
    assert {"sams.training.loop", "sams.policy.policy", "sams.losses.base"} <= found
    rooms = {name.split(".")[1] for name in found}
    assert not rooms & {"runtime", "study", "tracking", "tables", "launch"}
    assert not any("table" in name for name in found)


@pytest.fixture(scope="module")
def study() -> Study:
    """The default study with methods of several losses and selectors."""
    settings = read_settings([ROOT / "config" / "config.yaml"])
    settings["methods"] = ["sft", "dpo", "ipo", "dpo-top", "dpo-sams"]
    settings["method_settings"] = {
        "dpo": {"selector": "all"},
        "ipo": {"selector": "all", "loss": "ipo"},
        "dpo-top": {"selector": "top_margin", "ratio": 0.5},
        "dpo-sams": {"selector": "sams", "ratio": 0.5},
    }
    return load_study(settings)


def jobs(study: Study) -> dict[str, dict[str, str]]:
    """Code of the study's jobs, by stage, of methods by their name."""
    found = {}
    for stage in ENTRY_POINTS:
        if stage in ("train_crossfit", "assess", "sample_pairs"):
            continue
        methods = {"train_preference": study.preference_methods, "generate_answers": ["sft"]}
        for method in methods.get(stage, [""]):
            name = "score" if stage.startswith("score") or stage == "make_difficulty" else stage
            recipe = recipe_of(study, name, method=method, benchmark="alpaca_eval")
            found[method if stage == "train_preference" else stage] = code_of_job(stage, recipe)
    return found


def test_a_job_runs_its_own_loss_and_its_own_selector_alone(study: Study) -> None:
    code = jobs(study)
    named = ("sams.losses.", "sams.scheduling.selectors.")
    own = {
        job: {module for module in modules if module.startswith(named)} - {f"{room}base" for room in named}
        for job, modules in code.items()
    }
    expected = {
        "dpo": {"sams.losses.dpo", "sams.scheduling.selectors.all"},
        "ipo": {"sams.losses.ipo", "sams.scheduling.selectors.all"},
        "dpo-top": {"sams.losses.dpo", "sams.scheduling.selectors.top_margin"},
        "dpo-sams": {"sams.losses.dpo", "sams.scheduling.selectors.sams"},
        "pretrain_scheduler": {"sams.scheduling.selectors.sams"},
    }
    assert {job: modules for job, modules in own.items() if modules} == expected
    assert "sams.scheduling.networks" in code["dpo-sams"] and "sams.scheduling.networks" not in code["dpo"]


def test_every_module_that_a_recipe_names_exists(study: Study) -> None:
    modules = {
        module
        for method in study.preference_methods
        for module in named_modules(recipe_of(study, "train_preference", method=method))
    }
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def test_export_runs_none_of_the_training_loop(study: Study) -> None:
    assert (
        not {"sams.training.loop", "sams.training.job", "sams.training.tasks"}
        & jobs(study)["export_model"].keys()
    )


def test_the_code_of_a_selector_of_ones_own_is_in_the_cache_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    files = {
        tmp_path / "my_selector.py": "import my_helper\nfrom my_package.deep import x\n",
        tmp_path / "my_helper.py": "import torch\n\n\ndef f():\n    return 1\n",
        tmp_path / "unused.py": "",
        package / "__init__.py": "",
        package / "deep.py": "from . import near\nfrom .near import y\nx = 1\n",
        package / "near.py": "from sams.scheduling.calibration import rank_correlation\ny = 2\n",
    }
    for file, text in files.items():
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def found() -> dict[str, str]:
        code_digests._code.cache_clear()
        code_digests._base.cache_clear()
        return code_of("sams.scheduling.rewards", "my_selector")

    before = found()
    own = {name for name in before if not name.startswith("sams.")}
    assert own == {"my_selector", "my_helper", "my_package", "my_package.deep", "my_package.near"}
    assert "sams.scheduling.calibration" in before
    (tmp_path / "unused.py").write_text("z = 1\n")
    (tmp_path / "my_selector.py").write_text('"""A text."""\n' + files[tmp_path / "my_selector.py"])
    assert found() == before
    (tmp_path / "my_helper.py").write_text("import torch\n\n\ndef f():\n    return 2\n")
    assert {name for name in before if found()[name] != before[name]} == {"my_helper"}
    code_digests._base.cache_clear()


@pytest.mark.parametrize("installed", ["site-packages", "dist-packages"])
def test_an_installed_selector_counts_with_its_package_alone(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / installed
    site.mkdir()
    (site / "their_selector.py").write_text("import their_neighbour\n")
    (site / "their_neighbour.py").write_text("")
    monkeypatch.syspath_prepend(site)
    code_digests._base.cache_clear()
    assert "their_neighbour" not in code_of("sams.scheduling.rewards", "their_selector")
    code_digests._base.cache_clear()


def test_a_name_of_a_module_counts_with_what_it_uses_alone(copied: Path) -> None:
    used = "def used() -> float:\n    return math.exp(SIZE)\n\n\nSIZE = 1\n"
    (copied / "sample.py").write_text(f"import math\n\nfrom sams.data import records, sources\n\n{used}\n")
    edit(copied / "sample.py", "return math", "records.f()\n    return math")
    before = code_of("sams.sample:used")
    assert {"sams.data.records"} == before.keys() - {"sams.sample:used", "sams.data"}
    edit(copied / "sample.py", "import math\n", "import math\n\nOTHER = sources.f()\n")
    assert code_of("sams.sample:used") == before
    edit(copied / "sample.py", "SIZE = 1", "SIZE = 2")
    assert code_of("sams.sample:used") != before


ASKED, SCORED = {"prepare_questions", "generate mt_bench"}, {"score_mt_bench"}


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("scoring/mt_bench.py", 'verdicts=[f"rated', 'verdicts=[f"got', set()),
        ("scoring/benchmark.py", "return Work()", "return Work(1)", set()),
        ("scoring/mt_bench.py", '"tstamp": 0.0', '"tstamp": 1.0', ASKED),
        ("scoring/mt_bench.py", '"n_failed": ', '"failed": ', SCORED),
        ("judge/calls.py", "ANSWER_TOKENS = 2048", "ANSWER_TOKENS = 1024", {*SCORED, "make_difficulty"}),
    ],
)
def test_answers_depend_on_a_benchmarks_questions_and_scores_on_its_judge(
    file: str, old: str, new: str, stages: set[str], study: Study, copied: Path
) -> None:
    def code() -> dict[str, dict[str, str]]:
        asked = {
            f"generate {name}": code_of_job(
                "generate_answers", recipe_of(study, "generate_answers", method="sft", benchmark=name)
            )
            for name in ("alpaca_eval", "mt_bench", "samples")
        }
        judged = recipe_of(study, "score")
        questions = code_of_job("prepare_questions", recipe_of(study, "prepare_questions"))
        scores = {stage: code_of_job(stage, judged) for stage in ("score_mt_bench", "make_difficulty")}
        return asked | scores | {"prepare_questions": questions}

    job_code._code_of.cache_clear()
    before = code()
    edit(copied / file, old, new)
    job_code._code_of.cache_clear()
    after = code()
    assert {stage for stage in before if before[stage] != after[stage]} == stages
