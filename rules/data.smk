# Needs: the files and data sets that the study's `data` and `benchmarks` name. Makes: preference pairs, benchmark inputs, token ids.


# Checks this machine before any other job: once for each study, or by `snakemake preflight -R preflight`.
# Its parameter is a function with argument `output`, which Snakemake does not compare with the last run. Otherwise a
# changed beta would run preflight again, and Snakemake would not compare the parameters of the jobs after it.
rule preflight:
    output:
        findings=PREFLIGHT,
    log:
        f"{LOGS}/preflight.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.checking(STUDY, GPUS_HERE),
    params:
        study=lambda wildcards, output: recipe_json(STUDY),
    shell:
        "python -m sams.launch.preflight --study {params.study:q} --out {output.findings:q} > {log:q} 2>&1"
        f" && {SHOW_WARNINGS}"


# Reads and checks every example and pair, and gives each an id.
rule prepare_data:
    input:
        preflight=ancient(PREFLIGHT),
        sources=ancient(JOBS.sources("prepare_data")),
    output:
        manifest=DATA,
    log:
        f"{LOGS}/{OF_SEED}prepare_data.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "prepare_data"),
    params:
        **JOBS.parameters("prepare_data"),
        options=options(out=DATA),
    shell:
        WARNING_STAGE


# Fetches a published input of a benchmark if the file does not exist.
# It is a local rule, because compute nodes often have no network.
rule fetch_benchmark_inputs:
    output:
        file="inputs/{published}",
    log:
        f"{LOGS}/fetch_benchmark_inputs/{{published}}.log",
    retries: 2
    localrule: True
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "fetch_benchmark_inputs"),
    params:
        sha256=lambda wildcards: PUBLISHED[wildcards.published].sha256,
    shell:
        "python -m sams.scoring.fetch --out {output.file:q} > {log:q} 2>&1"


# Writes the questions of a benchmark, with references, judge prompts or the baseline's answers.
rule prepare_questions:
    input:
        preflight=ancient(PREFLIGHT),
        sources=ancient(JOBS.sources("prepare_questions")),
    output:
        manifest=questions_of("{asked}"),
    log:
        f"{LOGS}/prepare_questions/{{asked}}.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "prepare_questions"),
    params:
        **JOBS.parameters("prepare_questions"),
        options=options(out="{output.manifest}"),
    shell:
        STAGE


# Trains or loads the tokenizer and turns the data into token ids.
rule tokenise:
    input:
        data=DATA,
        sources=ancient(JOBS.sources("tokenise")),
    output:
        manifest=TOKENS,
    log:
        f"{LOGS}/{OF_SEED}tokenise.log",
    conda:
        "../envs/sams.yaml"
    threads: 8
    resources:
        **resources.plain(STUDY, "tokenise"),
    params:
        **JOBS.parameters("tokenise"),
        options=options("data", processes="{threads}", required=REQUIRED_ROWS, out=TOKENS),
    shell:
        WARNING_STAGE
