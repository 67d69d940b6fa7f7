# Needs: metric logs and saved weights of the runs to choose from. Makes: the choice of runs and lengths on noisy
# validation pairs, test accuracies of the chosen weights, and their table.

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
            start=START,
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
            **JOBS.parameters("assess"),
            options=options("choice", "data", "tokens", "reference", results=RESULTS, out="{output.figures}"),
        shell:
            STAGE

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
