"""Every logit, bit for bit, however it is computed: real prompts, precisions and numbers of threads.

    python -m tests.bits deployments/smollm2-anpd.yaml deployments/smollm2-anpd-int4.yaml \\
        --prompts loadtest/prompts/drafthouse.jsonl --count 26 --threads 1 2 4 8 16 --into runs/bits

For each deployment's compiled target and each number of threads a process reads every prompt and decodes greedily,
token by token; then it computes the same rows as verified chains, in trees, in batches, beside prompts that are read
and after reuse of a prefix, and counts rows whose logits differ in any bit. More threads than the machine has
processors are those of a process that sees as many (`tests/processors`). What was done is kept in the directory, so a
run goes on where it ended.
"""
