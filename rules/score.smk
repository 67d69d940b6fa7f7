# Needs: answers, the benchmarks' questions, a judge or a reward model. Makes: judgments and metrics.json of each benchmark.


# Makes the difficulty table of the world's instructions, which AlpacaEval's length control needs.
rule make_difficulty:
    input:
        questions=questions_of("alpaca_eval"),
    output:
        table=f"{RESULTS}/difficulty/difficulty.csv",
        report=f"{RESULTS}/difficulty/report.json",
    log:
        f"{LOGS}/make_difficulty.log",
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "score"),
    params:
        **JOBS.parameters("make_difficulty"),
        options=options("questions", out="{output.table}", report="{output.report}"),
    shell:
        STAGE


for benchmark in BENCHMARKS:

    rule:
        name:
            f"score_{benchmark.name}"
        input:
            **scored_from(benchmark),
        output:
            **{name: f"{RUN}/{file}" for name, file in benchmark.outputs.items()},
            metrics=f"{RUN}/{benchmark.metrics}",
            judged=f"{RUN}/{benchmark.judged}",
        log:
            f"{LOGS}/score_{benchmark.name}/{{method}}-seed{{seed}}.log",
        benchmark:
            f"{COSTS}/score_{benchmark.name}/{{method}}-seed{{seed}}.tsv"
        conda:
            "../envs/sams.yaml"
        resources:
            **(
                resources.generation(STUDY, GPUS_HERE)
                if benchmark.needs_gpu
                else resources.plain(STUDY, "score")
            ),
        params:
            **JOBS.parameters(f"score_{benchmark.name}"),
            options=scoring_options(benchmark),
        shell:
            STAGE
