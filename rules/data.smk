# Needs: what the study's `data` and `benchmarks` name. Makes: preference pairs, benchmark inputs, token ids.


# Checks what depends on the machine, before anything is computed: once for each study, or with -R preflight.
# It has no parameter on purpose. While a job upstream has to run again, Snakemake does not look at the parameters
# of what comes after it: a changed beta would run preflight, and train nothing.
rule preflight:
    output:
        found=f"results/{STUDY.study}/preflight.json",
    log:
        f"{LOGS}/preflight.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.checking(STUDY, GPUS_HERE),
    shell:
        'python -m sams.launch.preflight --study "$SAMS_STUDY" --out {output.found:q} > {log:q} 2>&1'


# Reads, checks and identifies every example and pair.
rule prepare_data:
    input:
        preflight=ancient(rules.preflight.output.found),
        files=data_files(),
    output:
        manifest=DATA,
    log:
        f"{LOGS}/{OF_SEED}prepare_data.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "prepare_data"),
    params:
        recipe=recipe("prepare_data"),
        code=code_digest("sams.data.prepare"),
        out=subpath(output.manifest, parent=True),
    shell:
        "python -m sams.data.prepare --recipe {params.recipe:q} --out {params.out:q} > {log:q} 2>&1"


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
        preflight=ancient(rules.preflight.output.found),
        files=benchmark_files(),
    output:
        manifest=f"{RESULTS}/questions/manifest.json",
    log:
        f"{LOGS}/prepare_questions.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "prepare_questions"),
    params:
        recipe=recipe("prepare_questions"),
        code=code_digest("sams.scoring.questions"),
        out=subpath(output.manifest, parent=True),
    shell:
        "python -m sams.scoring.questions --recipe {params.recipe:q} --out {params.out:q} > {log:q} 2>&1"


# Trains or loads the tokenizer and turns the data into token ids.
rule tokenise:
    input:
        data=DATA,
        tokenizer=tokenizer_files(),
        start=start_files,
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
        recipe=recipe("tokenise"),
        code=code_digest("sams.data.tokenise"),
        data=subpath(input.data, parent=True),
        out=subpath(output.manifest, parent=True),
    shell:
        "python -m sams.data.tokenise"
        " --processes {threads}"
        " --recipe {params.recipe:q}"
        " --data {params.data:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
