# Needs: metric logs and saved weights of the runs to choose from. Makes: the choice by noisy validation pairs, the
# figures of the chosen points, and their table.

if STUDY.chosen:

    use rule main_table as choose with:
        input:
            curves=per_run("{method}/seed{seed}/train.jsonl", STUDY.chosen_runs),
        output:
            choice=f"{RESULTS}/chosen/choice.json",
        log:
            f"{LOGS}/choose.log",
        params:
            **table("choose"),

    rule assess:
        input:
            choice=rules.choose.output.choice,
            trained=expand(
                f"{RESULTS}/{{method}}/seed{{{{seed}}}}/trained/manifest.json", method=STUDY.chosen_runs
            ),
            start=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
            data=DATA,
            tokens=TOKENS,
            reference=f"{RESULTS}/reference/seed{{seed}}/manifest.json",
        output:
            figures=f"{RESULTS}/chosen/seed{{seed}}/figures.json",
        log:
            f"{LOGS}/assess/seed{{seed}}.log",
        benchmark:
            f"{COSTS}/assess/seed{{seed}}.tsv"
        conda:
            "../envs/sams.yaml"
        resources:
            **resources.generation(STUDY, GPUS_HERE),
        params:
            recipe=recipe("assess"),
            code=code_digest("sams.generation.assess"),
            results=RESULTS,
            data=subpath(input.data, parent=True),
            tokens=subpath(input.tokens, parent=True),
            reference=subpath(input.reference, parent=True),
        shell:
            "python -m sams.generation.assess"
            " --recipe {params.recipe:q}"
            " --choice {input.choice:q}"
            " --results {params.results:q}"
            " --data {params.data:q}"
            " --tokens {params.tokens:q}"
            " --reference {params.reference:q}"
            " --out {output.figures:q}"
            " > {log:q} 2>&1"

    use rule main_table as chosen_table with:
        input:
            choice=rules.choose.output.choice,
            figures=per_seed("chosen/seed{seed}/figures.json"),
        output:
            **forms("chosen", "chosen", "chosen on validation pairs"),
        log:
            f"{LOGS}/chosen_table.log",
        params:
            **table("chosen_table"),
