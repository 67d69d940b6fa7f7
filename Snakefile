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


configfile: f"{workflow.basedir}/config/config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/generate.smk"
include: "rules/score.smk"
include: "rules/tables.smk"
include: "rules/chosen.smk"


rule all:
    default_target: True
    input:
        rules.tables.input,
        per_run("{method}/seed{seed}/model/manifest.json", STUDY.exported_methods),


# The three scripts of the paper's release, one after the other.
rule sft:
    input:
        per_seed("sft/seed{seed}/model/manifest.json"),


rule pretrain:
    input:
        pretrained_schedulers(),


rule dpo:
    input:
        per_run("{method}/seed{seed}/model/manifest.json", STUDY.preference_methods),


rule on_policy:
    input:
        per_seed("sft/seed{seed}/on_policy/pairs.jsonl") if STUDY.on_policy else [],


rule train_all:
    input:
        per_run("{method}/seed{seed}/model/manifest.json", STUDY.methods),


rule score_all:
    input:
        scores(),
