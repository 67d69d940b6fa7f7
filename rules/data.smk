# Needs: what the study's `data` and `benchmarks` name. Makes: preference pairs, benchmark inputs, token ids.


# Checks this machine before anything is computed: once for each study, or by `snakemake preflight -R preflight`.
# None of its parameters is compared. While a job upstream has to run again, Snakemake does not look at the parameters
# of what comes after it: a changed beta would run preflight, and train nothing.
rule preflight:
    output:
        found=PREFLIGHT,
    log:
        f"{LOGS}/preflight.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.checking(STUDY, GPUS_HERE),
    params:
        study=lambda wildcards, output: recipe_json(STUDY),
    shell:
        "python -m sams.launch.preflight --study {params.study:q} --out {output.found:q} > {log:q} 2>&1"


# Reads, checks and identifies every example and pair.
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
        STAGE


# Fetches a published input of a benchmark, unless it was put there by hand.
# It runs where snakemake does: compute nodes often reach no network.
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


# Collects questions, references, judge prompts and the baseline's answers.
rule prepare_questions:
    input:
        preflight=ancient(PREFLIGHT),
        sources=ancient(JOBS.sources("prepare_questions")),
    output:
        manifest=QUESTIONS,
    log:
        f"{LOGS}/prepare_questions.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "prepare_questions"),
    params:
        **JOBS.parameters("prepare_questions"),
        options=options(out=QUESTIONS),
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
        STAGE
