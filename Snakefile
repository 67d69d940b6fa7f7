# Trains and scores the methods of one study, chosen by --configfile (default: config/config.yaml).
#
#   snakemake --cores all                       the default study
#   snakemake --cores all -n                    what would run, and why
#   snakemake --cores all --configfile config/studies/own_data.yaml
#
# Results:  results/<study>/<setting>/<stage or method>/seed<k>/
# Other files:  results/<study>/{tables,logs,benchmarks,checkpoints}
from snakemake.utils import min_version

min_version("9.19")


configfile: workflow.current_basedir.join("config/config.yaml").get_path_or_uri(secret_free=True)


# In a `module` it would be filled in with the other workflow's config.
if workflow.modifier.is_main_snakefile():

    report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/generate.smk"
include: "rules/score.smk"
include: "rules/tables.smk"
include: "rules/chosen.smk"


# Targets name the files of all stages, not of the last one only: Snakemake does not miss a file between two that exist,
# and a job that was killed leaves such a gap.
rule all:
    default_target: True
    input:
        prepared(),
        models(STUDY.exported_methods),
        per_run("{method}/seed{seed}/trained/manifest.json", STUDY.trained_methods),
        references(),
        pretrained_schedulers(),
        answers(),
        samples(),
        rules.tables.input,


# The three scripts of the paper's release, one after the other.
rule sft:
    input:
        prepared(),
        models(["sft"]),


rule pretrain:
    input:
        prepared(),
        models(["sft"]),
        pretrained_schedulers() or without("pretrain"),


rule dpo:
    input:
        prepared(),
        models(["sft", *STUDY.preference_methods]),
        references(),
        pretrained_schedulers(),


rule on_policy:
    input:
        per_seed("sft/seed{seed}/on_policy/pairs.jsonl") if STUDY.on_policy else without("on_policy"),


rule train_all:
    input:
        prepared(),
        models(STUDY.methods),
        references(),
        pretrained_schedulers(),


rule score_all:
    input:
        prepared(),
        models(STUDY.methods),
        references(),
        pretrained_schedulers(),
        answers(),
        scores() or without("benchmarks"),
