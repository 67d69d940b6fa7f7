# Needs: answers, the benchmarks' questions, a judge. Makes: judgments and metrics.json of each benchmark.


# AlpacaEval's length control needs a table of how hard each instruction is: the world's own is made here.
rule make_difficulty:
    input:
        questions=QUESTIONS,
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
        recipe=recipe("score"),
        code=code_digest("sams.scoring.difficulty"),
        questions=subpath(input.questions, parent=True),
    shell:
        "python -m sams.scoring.difficulty"
        " --recipe {params.recipe:q}"
        " --questions {params.questions:q}"
        " --out {output.table:q}"
        " --report {output.report:q}"
        " > {log:q} 2>&1"


rule score_alpaca_eval:
    input:
        answers=f"{RESULTS}/{{method}}/seed{{seed}}/alpaca_eval/answers.json",
        questions=QUESTIONS,
        difficulty=difficulty_table,
    output:
        metrics=f"{RESULTS}/{{method}}/seed{{seed}}/alpaca_eval/metrics.json",
        annotations=f"{RESULTS}/{{method}}/seed{{seed}}/alpaca_eval/annotations.json",
    log:
        f"{LOGS}/score_alpaca_eval/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/score_alpaca_eval/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "score"),
    params:
        recipe=recipe("score"),
        code=code_digest("sams.scoring.alpaca_eval"),
        reference=f"{RESULTS}/questions/alpaca_eval.json",
        difficulty=difficulty_option,
    shell:
        "python -m sams.scoring.alpaca_eval"
        " --recipe {params.recipe:q}"
        " --model-outputs {input.answers:q}"
        " --reference-outputs {params.reference:q}"
        " {params.difficulty}"
        " --out {output.metrics:q}"
        " --annotations-out {output.annotations:q}"
        " > {log:q} 2>&1"


rule score_mt_bench:
    input:
        answers=f"{RESULTS}/{{method}}/seed{{seed}}/mt_bench/answers.jsonl",
        questions=QUESTIONS,
    output:
        metrics=f"{RESULTS}/{{method}}/seed{{seed}}/mt_bench/metrics.json",
        judgments=f"{RESULTS}/{{method}}/seed{{seed}}/mt_bench/judgments.jsonl",
    log:
        f"{LOGS}/score_mt_bench/{{method}}-seed{{seed}}.log",
    benchmark:
        f"{COSTS}/score_mt_bench/{{method}}-seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    resources:
        **resources.plain(STUDY, "score"),
    params:
        recipe=recipe("score"),
        code=code_digest("sams.scoring.mt_bench"),
        questions=subpath(input.questions, parent=True),
    shell:
        "python -m sams.scoring.mt_bench"
        " --recipe {params.recipe:q}"
        " --answers {input.answers:q}"
        " --questions {params.questions:q}/mt_bench_questions.jsonl"
        " --references {params.questions:q}/mt_bench_references.jsonl"
        " --judge-prompts {params.questions:q}/judge_prompts.jsonl"
        " --out {output.metrics:q}"
        " --judgments-out {output.judgments:q}"
        " > {log:q} 2>&1"
