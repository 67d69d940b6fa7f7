# Needs: the config. Makes: the study, paths of files, and the functions that the rules share.
import re
import sys
from pathlib import Path

# A checkout need not be installed.
sys.path.insert(0, workflow.current_basedir.join("..").get_path_or_uri(secret_free=True))

from sams.launch import resources
from sams.launch.brief import shorten_log
from sams.launch.changes import code_text
from sams.launch.jobs import Jobs, literal, options
from sams.launch.machine import gpus_here, job_environment
from sams.launch.workflow import (
    forget_unfinished,
    leave_if_stopped,
    lock_results,
    name_changes,
    stop_jobs_on_signals,
)
from sams.runtime.digests import remember
from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json, restrict_umask
from sams.runtime.code import code_of
from sams.runtime.source import PACKAGE
from sams.scoring.fetch import PUBLISHED
from sams.scoring.table import judged, parts_of, scored
from sams.study.files import DEFAULT, from_command_line, load_study, read_settings
from sams.study.recipes import recipe_json
from sams.study.rounds import required_rows
from sams.study.settings import Launch
from sams.tables.figures import figures_of
from sams.tables.side_by_side import pairs

try:
    if workflow.modifier.is_main_snakefile():
        files, given = workflow.config_settings.configfiles, workflow.config_settings.config
    else:  # `module`, whose `config:` holds the study's own keys
        files, given = [], config
    settings = read_settings([DEFAULT, *files], from_command_line(given))
    STUDY = load_study(settings)
except UserError as error:
    raise WorkflowError(str(error))
config = settings  # read by the captions of the report

RESULTS = STUDY.results.as_posix()
LOGS = f"results/{STUDY.study}/logs/{STUDY.setting}"
COSTS = f"results/{STUDY.study}/benchmarks/{STUDY.setting}"
CHECKPOINTS = f"results/{STUDY.study}/checkpoints/{STUDY.setting}"
TABLES = f"results/{STUDY.study}/tables"
PREFLIGHT = f"results/{STUDY.study}/preflight.json"
OF_SEED = "seed{seed}/" if STUDY.data.world and STUDY.data.world.per_seed else ""
DATA = f"{RESULTS}/data/{OF_SEED}manifest.json"
TOKENS = f"{RESULTS}/tokens/{OF_SEED}manifest.json"
START = f"{RESULTS}/sft/seed{{seed}}/model/manifest.json"
SCHEDULER = f"{RESULTS}/scheduler/seed{{seed}}/weights/manifest.json"
RUN = f"{RESULTS}/{{method}}/seed{{seed}}"
PRETRAINING = STUDY.pretrain.policy if STUDY.pretrains else "none"
FIGURES = figures_of(STUDY)
BENCHMARKS = scored(STUDY)

# Parameter of the tables, without launch settings, which change no figure.
TABLED = STUDY.model_copy(update={"launch": Launch()})
STUDY_SETTINGS = recipe_json(TABLED)
JOBS = Jobs(STUDY)
REQUIRED_ROWS = literal(canonical_json(required_rows(STUDY)))
GPUS_HERE = gpus_here()
TRAINING = resources.training(STUDY, GPUS_HERE)

# Commands of a stage with one process, and of a stage with several processes.
ARGUMENTS = "-m {params.module} --recipe {params.recipe:q} {params.options} > {log:q} 2>&1"
STAGE = f"python {ARGUMENTS}"
SHOW_WARNINGS = "sed -n 's/.*: warning: /warning: /p' {log:q} >&2"  # on the terminal too
WARNING_STAGE = f"{STAGE} && {SHOW_WARNINGS}"
DISTRIBUTED_STAGE = (
    "exec python -m sams.launch.nodes"
    " --nodes {resources.nodes} --processes {resources.processes} --cpus {threads} "
) + ARGUMENTS

# Braces are doubled because Snakemake formats the prefix.
shell.prefix(job_environment(STUDY).replace("{", "{{").replace("}", "}}"))
remember(Path(".snakemake") / "sams" / "digests.json")
name_changes()
shorten_log(workflow)
stop_jobs_on_signals()
if workflow.is_main_process:
    forget_unfinished(Path(PREFLIGHT))


onstart:
    if "preflight" in workflow.dag_settings.forcerun and len(workflow.dag.jobs) > 1:
        raise WorkflowError(
            "with -R preflight Snakemake runs no other job; run `snakemake preflight -R preflight` before this command"
        )
    restrict_umask()
    try:
        lock_results(Path("results") / STUDY.study)
    except UserError as error:
        raise WorkflowError(str(error))


onerror:
    leave_if_stopped()


# With `--jobs` and without `--cores`, jobs go to a cluster's scheduler.
SCHEDULED = workflow.resource_settings.nodes is not None
if SCHEDULED and STUDY.launch.nproc_per_node == "auto" and STUDY.launch.device != "cpu":
    raise WorkflowError(
        "launch.nproc_per_node: auto counts the GPUs of this machine, but jobs run on other machines; "
        "set it to the GPUs of a node, or launch.device to cpu"
    )
if not SCHEDULED:
    # Without a limit Snakemake ignores a resource and starts every training at once.
    workflow.global_resources.setdefault("gpu", max(TRAINING.get("gpu", 0), GPUS_HERE))


def one_of(names):
    """Pattern of a wildcard with these values; without values, a pattern that matches no file of the study."""
    return "|".join(re.escape(str(name)) for name in names) or "none"


wildcard_constraints:
    method=one_of(STUDY.started_methods),
    base=one_of(STUDY.methods),
    asked=one_of(name for name, group in STUDY.benchmarks.scored.items() if group.question_keys),
    seed=one_of(STUDY.seeds),
    published=one_of(PUBLISHED),
    half="0|1",


def code(module):
    """Parameter of a rule with the digests of a module's code, and of the study's benchmarks."""
    return code_text(code_of(module, *parts_of(STUDY)))


def without(section):
    """Input of a target that the study makes nothing for: an error where the target is requested."""

    def say(wildcards):
        raise WorkflowError(
            f"the study makes nothing for this target: see section `{section}` of docs/settings.md"
        )

    return say


def per_seed(pattern):
    """One file per seed."""
    return sorted(set(expand(f"{RESULTS}/{pattern}", seed=STUDY.seeds)))


def per_run(pattern, methods):
    """One file per method and seed."""
    return expand(f"{RESULTS}/{pattern}", method=methods, seed=STUDY.seeds)


def scores():
    """Metrics of every method, seed and benchmark."""
    return [
        f
        for benchmark in BENCHMARKS
        for f in per_run(f"{{method}}/seed{{seed}}/{benchmark.metrics}", STUDY.methods)
    ]


def prepared():
    """Data, and token ids where a model is trained."""
    files = [DATA, TOKENS] if STUDY.sft or STUDY.preference_methods else [DATA]
    return sorted({f for file in files for f in expand(file, seed=STUDY.seeds)})


def models(methods):
    """Models of methods, with the weights that they are exported from."""
    trained = [method for method in methods if method in STUDY.trained_methods]
    return [
        *per_run("{method}/seed{seed}/trained/manifest.json", trained),
        *per_run("{method}/seed{seed}/model/manifest.json", methods),
    ]


def references():
    """Log-probs of the reference models; none where no loss has a reference."""
    needed = any(STUDY.preference_of(method).needs_reference for method in STUDY.preference_methods)
    return per_seed("reference/seed{seed}/manifest.json") if needed else []


def answers():
    """Answers of every method, seed and benchmark."""
    return [
        f
        for benchmark in BENCHMARKS
        if benchmark.answers
        for f in per_run(f"{{method}}/seed{{seed}}/{benchmark.answers}", STUDY.methods)
    ]


def training_figures():
    """Figures of every training job."""
    return per_run("{method}/seed{seed}/train_metrics.json", STUDY.trained_methods)


def pair_records():
    """Records of the pairs of every run of a preference method."""
    return per_run("{method}/seed{seed}/pairs.parquet", STUDY.preference_methods)


def pair_records_of(wildcards):
    """Records of the pairs of every run of one method."""
    return [f"{RESULTS}/{wildcards.method}/seed{seed}/pairs.parquet" for seed in STUDY.seeds]


def pair_pages():
    """Pages of the pairs of every preference method, and the figure of their margins."""
    pages = [f"{TABLES}/pairs/{method}.html" for method in STUDY.preference_methods]
    return [*pages, f"{TABLES}/pair_margins.svg"] if pages else []


def study_of_method(wildcards):
    """The study with one method only: another method does not change its page."""
    return recipe_json(TABLED.with_methods(wildcards.method))


def pretrained_schedulers():
    """Weights of the pretrained scheduler of every seed; none where no method starts from them."""
    return per_seed("scheduler/seed{seed}/weights/manifest.json") if STUDY.pretrains else []


def pretrained_scheduler(wildcards):
    """Weights of the pretrained scheduler that a method starts from; none for other methods."""
    return SCHEDULER if STUDY.scheduler_is_pretrained(wildcards.method) else []


def reference_logps(wildcards):
    """Log-probs of the reference model; none for a loss without a reference."""
    needed = STUDY.preference_of(wildcards.method).needs_reference
    return f"{RESULTS}/reference/seed{{seed}}/manifest.json" if needed else []


def crossfit_losses(wildcards):
    """Losses of both halves of the pairs, for selector `selective`."""
    if wildcards.method not in STUDY.selective_methods:
        return []
    return [f"{RUN}/crossfit/half{half}/losses/manifest.json" for half in (0, 1)]


def trained_weights(wildcards):
    """Trained weights of a method; none for a finished model, and for `sft` in a study without SFT."""
    return f"{RUN}/trained/manifest.json" if wildcards.method in STUDY.trained_methods else []


def base_of_adapters(wildcards):
    """Model into which a method's adapters are merged; none without adapters, and for `sft`, whose recipe names it."""
    adapted = wildcards.method in STUDY.preference_methods and STUDY.preference_of(wildcards.method).lora
    return START if adapted else []


def tokens_of_export(wildcards):
    """Token ids, with the tokenizer of a trained or fresh model; none for a finished model, which has its own."""
    is_finished = wildcards.method not in STUDY.trained_methods and STUDY.model_of(wildcards.method).path
    return [] if is_finished else TOKENS


def questions_of(benchmark):
    """Questions of a benchmark."""
    return f"{RESULTS}/questions/{benchmark}/manifest.json"


def scored_from(benchmark):
    """Inputs of a benchmark's scoring."""
    files = {
        "answers": f"{RUN}/{benchmark.answers}",
        "questions": questions_of(benchmark.name),
        "data": DATA,
        "model": f"{RUN}/model/manifest.json",
        "start": start_of(benchmark.start),
        "difficulty": difficulty_table,
    }
    return {name: files[name] for name in benchmark.inputs}


def difficulty_table(wildcards):
    """Difficulty table of AlpacaEval's length control: the file of the study, that made for the world, or none."""
    if STUDY.benchmarks.alpaca_eval.difficulty is not None:
        return ancient(JOBS.sources("score_alpaca_eval")(wildcards))
    return f"{RESULTS}/difficulty/difficulty.csv" if STUDY.data.world is not None else []


def start_of(file):
    """Function of the wildcards: a file of the start model; none for the start model, and without one."""

    def of_seed(wildcards):
        has_start = "sft" in STUDY.started_methods and wildcards.method != "sft"
        return f"{RESULTS}/sft/seed{{seed}}/{file}" if has_start else []

    return of_seed


def scoring_options(benchmark):
    """Options of a benchmark's scoring."""
    folder = f"{RESULTS}/questions/{benchmark.name}"
    own = {name: value.replace("{questions}", folder) for name, value in benchmark.options.items()}
    return options(*benchmark.given, out="{output.metrics}", **own)


def agreement_file(wildcards):
    """Agreement of the judge with recorded judgments, if the study names its file."""
    return STUDY.benchmarks.judge.agreement or []


def agreement_copy():
    """The copy of that file next to the tables, which a bundle holds."""
    return {"agreement": f"{TABLES}/agreement.json"} if STUDY.benchmarks.judge.agreement else {}


def table(script):
    """Parameters of a script: its name, the study, the folder of its setting, and the digests of its code."""
    return {
        "script": script,
        "study": lambda wildcards: STUDY_SETTINGS,  # its paths may have braces
        "results": lambda wildcards: RESULTS,  # as text, `snakemake --lint` takes it for a part of a file name
        "code": code(f"workflow.scripts.{script}"),
    }


def forms(name, caption, label):
    """Outputs of a table: a CSV file with all figures; Markdown, LaTeX and HTML for reading."""
    page = report(
        f"{TABLES}/{name}.html",
        caption=f"../workflow/report/{caption}.rst",
        category="Tables",
        labels={"table": label},
    )
    return {"html": page} | {kind: f"{TABLES}/{name}.{kind}" for kind in ("csv", "md", "tex")}


FIGURE_LABELS = {"difficulty": "drift of difficulty", "noise": "accuracy under noise"}


def figure(name):
    """Output of a figure."""
    return report(
        f"{TABLES}/{name}.svg",
        caption=f"../workflow/report/{name}.rst",
        category="Figures",
        labels={"figure": FIGURE_LABELS.get(name, name.replace("_", " "))},
    )


def samples():
    """Answers of the start model and every method to test prompts, for the first seed; none without `samples`."""
    seed = STUDY.seeds[0]
    methods = STUDY.sampled_methods if STUDY.samples else []
    return [f"{RESULTS}/{method}/seed{seed}/samples/answers.jsonl" for method in methods]


def answer_pages():
    """Pages of two methods' answers."""
    return [f"{TABLES}/answers/{method}/with_{base}.html" for method, base in pairs(STUDY)]


def study_of_pair(wildcards):
    """The study with the two methods of a page only: another method does not change the page."""
    return recipe_json(TABLED.with_methods(wildcards.method, wildcards.base))


def judged_answers(wildcards):
    """Answers, verdicts and metrics of two methods for the first seed."""
    return [
        f"{RESULTS}/{method}/seed{STUDY.seeds[0]}/{file}"
        for method in (wildcards.method, wildcards.base)
        for benchmark in judged(STUDY)
        for file in (benchmark.answers, benchmark.judged, benchmark.metrics)
    ]
