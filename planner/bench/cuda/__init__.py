"""Step costs of real models' shapes on one CUDA device, with the attention that the PyTorch runner has.

`python -m planner.bench.cuda --into DIR` checks the attention against a reference on the CPU, then measures for six
minutes: see `planner.bench.cuda.run`. With `--toy` everything is so small that it ends in seconds, on a CPU too.
"""
