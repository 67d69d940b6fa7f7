# Validates the config and names what the rules share. Needs nothing, makes nothing.
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from sams.launch import resources
from sams.study.config import load_study, read_file, read_settings, resolved
from sams.scoring.fetch import PUBLISHED, published
from sams.runtime.errors import UserError
from sams.launch.machine import gpus_here, set_job_environment
from sams.launch.preflight import benchmark_sources
from sams.runtime.provenance import code_digest
from sams.study.recipes import recipe_json, recipe_of, scheduler_is_pretrained
from sams.study.settings import Launch
from sams.launch.workflow import forget_unfinished, hold, leave_if_stopped, stop_jobs_on_signals

try:
    for file in workflow.config_settings.configfiles:
        read_file(file)  # Snakemake takes the last of a key that is given twice
    # In place, because the report's captions read `config` too.
    config |= resolved(
        read_settings([Path(workflow.basedir) / "config" / "config.yaml"]),
        workflow.config_settings.overwrite_config,
    )
    STUDY = load_study(dict(config))
except UserError as error:
    raise WorkflowError(str(error))

RESULTS = STUDY.results.as_posix()
LOGS = f"results/{STUDY.study}/logs/{STUDY.setting}"
COSTS = f"results/{STUDY.study}/benchmarks/{STUDY.setting}"
TABLES = f"results/{STUDY.study}/tables"
OF_SEED = "seed{seed}/" if STUDY.data.world and STUDY.data.world.per_seed else ""
DATA = f"{RESULTS}/data/{OF_SEED}manifest.json"
TOKENS = f"{RESULTS}/tokens/{OF_SEED}manifest.json"
QUESTIONS = f"{RESULTS}/questions/manifest.json"
SCHEDULER = f"{RESULTS}/scheduler/seed{{seed}}/weights/manifest.json"
PRETRAINING = STUDY.pretrain.policy if STUDY.pretrain else "none"
FIGURES = ["learning_curves", "selection", "difficulty", "noise", "cost"]
CHECKPOINTS = f"results/{STUDY.study}/checkpoints/{STUDY.setting}"

GPUS_HERE = gpus_here()
# What tables are made of. How jobs are launched changes no figure, and so no table.
STUDY_SETTINGS = recipe_json(STUDY.model_copy(update={"launch": Launch()}))
TRAINING = resources.training(STUDY, GPUS_HERE)
PROCESSES = TRAINING["processes"]
set_job_environment(STUDY, workflow.basedir)

stop_jobs_on_signals()
if workflow.is_main_process:
    forget_unfinished(Path("results") / STUDY.study / "preflight.json")


onstart:
    try:
        hold(Path("results") / STUDY.study)
    except UserError as error:
        raise WorkflowError(str(error))


onerror:
    leave_if_stopped()


# Jobs go to a scheduler where a number of jobs is given, and none of cores.
SCHEDULED = workflow.resource_settings.nodes is not None
if SCHEDULED and STUDY.launch.nproc_per_node == "auto" and STUDY.launch.device != "cpu":
    raise WorkflowError(
        "launch.nproc_per_node: auto counts the GPUs of this machine, and jobs run on others; "
        "set it to the GPUs of a node, or launch.device to cpu"
    )
if not SCHEDULED:
    # Without a limit Snakemake ignores a resource and starts every training at once.
    workflow.global_resources.setdefault("gpu", max(TRAINING.get("gpu", 0), GPUS_HERE))


wildcard_constraints:
    method="|".join(map(re.escape, STUDY.methods)),
    base="|".join(map(re.escape, STUDY.methods)),
    seed="|".join(str(seed) for seed in STUDY.seeds),
    published="|".join(map(re.escape, PUBLISHED)),


def recipe(stage, benchmark=""):
    """Recipe of a job of this stage: the slice of the config that its result depends on."""

    def of(wildcards):
        return recipe_json(
            recipe_of(
                STUDY,
                stage,
                method=wildcards.get("method", ""),
                seed=int(wildcards.get("seed", 0)),
                benchmark=benchmark,
            )
        )

    return of


def results_folder(wildcards):
    """Folder of the study's setting."""
    return RESULTS


def per_seed(pattern):
    """One file per seed."""
    return sorted(set(expand(f"{RESULTS}/{pattern}", seed=STUDY.seeds)))


def per_run(pattern, methods):
    """One file per method and seed."""
    return expand(f"{RESULTS}/{pattern}", method=methods, seed=STUDY.seeds)


def benchmarks():
    """The benchmarks that the study scores."""
    names = ("alpaca_eval", "mt_bench")
    return [name for name in names if getattr(STUDY.benchmarks, name) is not None]


def scores():
    """Metrics of every method, seed and benchmark."""
    return expand(
        f"{RESULTS}/{{method}}/seed{{seed}}/{{benchmark}}/metrics.json",
        method=STUDY.methods,
        seed=STUDY.seeds,
        benchmark=benchmarks(),
    )


def training_figures():
    """Figures of every training job, metric logs beside them."""
    return per_run("{method}/seed{seed}/train_metrics.json", STUDY.trained_methods)


def pretrained_schedulers():
    """Weights of the pretrained scheduler of every seed; none where the study leaves the stage out."""
    return per_seed("scheduler/seed{seed}/weights/manifest.json") if STUDY.pretrain else []


def data_files():
    """Local files of the study's data; a changed file is prepared again. `preflight` names a missing one."""
    sources = (STUDY.data.train, STUDY.data.test, STUDY.data.sft)
    return [source for source in sources if source is not None and Path(source).is_file()]


def tokenizer_files():
    """Local files that the tokenizer is made of: the chat template, and those of a local model."""
    template = STUDY.model.chat_template
    given = [template] if template is not None and Path(template).is_file() else []
    return given + local_files(
        STUDY.model.path, "token*", "special_tokens_map.json", "vocab*", "merges.txt", "chat*"
    )


def local_files(folder, *patterns):
    """Files of a local model; none of one on the hub. What is replaced in place is read again."""
    if folder is None or not Path(folder).is_dir():
        return []
    return sorted(
        {str(file) for pattern in patterns for file in Path(folder).glob(pattern) if file.is_file()}
    )


def start_files(wildcards):
    """Config and weights of the local model that a stage starts from."""
    model = STUDY.model_of(wildcards.get("method", "sft"))
    return local_files(model.path, "config.json", "*.safetensors", "*.bin")


def prompt_files():
    """Local file of the prompts that on-policy pairs are sampled for."""
    source = STUDY.on_policy.prompts
    return [source] if Path(source).is_file() else []


def benchmark_files():
    """Local files of the benchmarks' inputs: those that are there or can be fetched."""
    return [source for source in benchmark_sources(STUDY).values() if available(source)]


def available(source):
    """Whether a file is there or can be fetched. A dry run does not need it; `preflight` does."""
    return Path(source).is_file() or published(source) is not None


def pretrained_scheduler(wildcards):
    """The scheduler that a method starts from, if it has one."""
    if not scheduler_is_pretrained(STUDY, wildcards.method):
        return []
    return f"{RESULTS}/scheduler/seed{wildcards.seed}/weights/manifest.json"


def scheduler_option(wildcards, input):
    """Command-line option of `pretrained_scheduler`."""
    return f"--scheduler {shlex.quote(str(Path(input.scheduler).parent))}" if input.get("scheduler") else ""


def scheduler_made(wildcards):
    """Command-line option of the scheduler that SFT trains beside the policy."""
    weights = Path(SCHEDULER.format(seed=wildcards.seed)).parent
    return f"--scheduler {shlex.quote(str(weights))}" if PRETRAINING == "moving" else ""


def reference_logps(wildcards):
    """Cached reference log-probs; none for a loss without a reference."""
    if not STUDY.preference_of(wildcards.method).needs_reference:
        return []
    return f"{RESULTS}/reference/seed{wildcards.seed}/manifest.json"


def reference_option(wildcards, input):
    """Command-line option of `reference_logps`."""
    return f"--reference {shlex.quote(str(Path(input.reference).parent))}" if input.get("reference") else ""


def crossfit_losses(wildcards):
    """Losses of both halves of the pairs, for selector `selective`."""
    if wildcards.method not in STUDY.selective_methods:
        return []
    folder = f"{RESULTS}/{wildcards.method}/seed{wildcards.seed}/crossfit"
    return [f"{folder}/half{half}/losses/manifest.json" for half in (0, 1)]


def crossfit_option(wildcards, input):
    """Command-line options of `crossfit_losses`."""
    return " ".join(f"--crossfit {shlex.quote(str(Path(half).parent))}" for half in input.get("crossfit", []))


def difficulty_table(wildcards):
    """The table that AlpacaEval's length control needs: given, made for the world, or none."""
    given = STUDY.benchmarks.alpaca_eval.difficulty
    if given is not None:
        return given if available(given) else []
    return f"{RESULTS}/difficulty/difficulty.csv" if STUDY.data.world is not None else []


def difficulty_option(wildcards, input):
    """Command-line option of `difficulty_table`."""
    return f"--difficulty {shlex.quote(str(input.difficulty))}" if input.get("difficulty") else ""


def trained_weights(wildcards):
    """Trained weights of a method; none for a finished model and the start of a study without SFT."""
    if wildcards.method not in STUDY.trained_methods:
        return []
    return f"{RESULTS}/{wildcards.method}/seed{wildcards.seed}/trained/manifest.json"


def tokens_of_export(wildcards):
    """Token ids, whose tokenizer a trained or fresh model goes with; a model from elsewhere has its own."""
    if wildcards.method not in STUDY.trained_methods and STUDY.model_of(wildcards.method).path is not None:
        return []
    return TOKENS.format(seed=wildcards.seed)


def tokens_option(wildcards, input):
    """Command-line option of `tokens_of_export`."""
    return f"--tokens {shlex.quote(str(Path(input.tokens).parent))}" if input.get("tokens") else ""


def trained_option(wildcards, input):
    """Command-line option of `trained_weights`."""
    return f"--trained {shlex.quote(str(Path(input.trained).parent))}" if input.get("trained") else ""
