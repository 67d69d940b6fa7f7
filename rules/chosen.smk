# Needs: metric logs and kept weights of the runs that methods are chosen from. Makes: the choice by noisy validation
# pairs, figures of what was chosen, and their table.

if STUDY.chosen:

    rule choose:
        input:
            curves=per_run("{method}/seed{seed}/train.jsonl", STUDY.chosen_runs),
        output:
            choice=f"{RESULTS}/chosen/choice.json",
        log:
            f"{LOGS}/choose.log",
        localrule: True
        conda:
            "../envs/sams.yaml"
        resources:
            **resources.plain(STUDY, "tables"),
        params:
            study=STUDY_SETTINGS,
            results=results_folder,
            code=code_digest("sams.tables.choose"),
        shell:
            "python -m sams.tables.choose"
            " --study-config {params.study:q}"
            " --results {params.results:q}"
            " --out {output.choice:q}"
            " > {log:q} 2>&1"

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
            results=results_folder,
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

    rule chosen_table:
        input:
            choice=rules.choose.output.choice,
            figures=per_seed("chosen/seed{seed}/figures.json"),
        output:
            csv=f"{TABLES}/chosen.csv",
            md=f"{TABLES}/chosen.md",
            tex=f"{TABLES}/chosen.tex",
            html=report(
                f"{TABLES}/chosen.html",
                caption="../workflow/report/chosen.rst",
                category="Tables",
                labels={"table": "chosen on validation pairs"},
            ),
        log:
            f"{LOGS}/chosen_table.log",
        localrule: True
        conda:
            "../envs/sams.yaml"
        resources:
            **resources.plain(STUDY, "tables"),
        params:
            study=STUDY_SETTINGS,
            results=results_folder,
            code=code_digest("sams.tables.chosen_table"),
        shell:
            "python -m sams.tables.chosen_table"
            " --study-config {params.study:q}"
            " --results {params.results:q}"
            " --out-csv {output.csv:q}"
            " --out-md {output.md:q}"
            " --out-tex {output.tex:q}"
            " --out-html {output.html:q}"
            " > {log:q} 2>&1"
