"""The kit's own attention kernel: C++ behind an operator of OpenVINO, compiled where there is a compiler.

`build` compiles it, `library` calls it, `attention.hpp` says what it computes and why its output is exact.
"""
