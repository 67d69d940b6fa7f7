# Needs: token ids, the exported SFT model. Makes: log-probs of every pair under the reference, by pair id.


rule compute_reference:
    input:
        tokens=TOKENS,
        model=f"{RESULTS}/sft/seed{{seed}}/model/manifest.json",
    output:
        manifest=f"{RESULTS}/reference/seed{{seed}}/manifest.json",
    log:
        f"{LOGS}/compute_reference/seed{{seed}}.log",
    benchmark:
        f"{COSTS}/compute_reference/seed{{seed}}.tsv"
    conda:
        "../envs/sams.yaml"
    threads: PROCESSES * STUDY.launch.threads_per_process
    resources:
        **TRAINING,
    params:
        recipe=recipe("compute_reference"),
        code=code_digest("sams.training.reference"),
        tokens=subpath(input.tokens, parent=True),
        model=subpath(input.model, parent=True),
        out=subpath(output.manifest, parent=True),
    shell:
        "exec python -m sams.launch.nodes --nodes {resources.nodes} --processes {resources.processes} --cpus {threads}"
        " -m sams.training.reference"
        " --recipe {params.recipe:q}"
        " --tokens {params.tokens:q}"
        " --model {params.model:q}"
        " --out {params.out:q}"
        " > {log:q} 2>&1"
