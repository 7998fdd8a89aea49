"""Drafter checkpoints into the layouts that TensorRT-LLM 1.2.1 reads, and back; every check before the first byte.

    python3 -m build.converters medusa --drafter HEADS --target LLAMA_CHECKPOINT --output MEDUSA_CHECKPOINT

| family | `checkpoint` layout, for trtllm-build | `source` layout |
|---|---|---|
| medusa | MedusaForCausalLM | what NVIDIA's `convert_checkpoint.py --medusa_model_dir` reads |
| eagle | EagleForCausalLM | what its `--eagle_model_dir` reads |
| redrafter | ReDrafterForLLaMALM, ReDrafterForQWenLM | what its `--drafter_model_dir` reads |
| eagle3 | none: TensorRT-LLM has no engine for it | what the LLM API's `speculative_model_dir` reads |
| mlp_speculator | none is exact (`build.converters.mlp_speculator` says why) | none |

It runs inside NVIDIA's container: PyTorch (for pickles only), safetensors, NumPy, ml_dtypes and pydantic are enough.
"""
