"""Trains EAGLE-3 with NVIDIA's Model Optimizer (`modelopt.torch.speculative`); runs in an environment of its own.

Model, training-time test and loss are the library's; this loop feeds it the micro-batches that our trainer would take,
with the same optimiser and course of the learning rate. Usage: python -m planner.bench.trainers.modelopt TASK.json,
which `planner.bench.trainers.compare` writes; one JSON object a step goes to the task's `records`, the drafter to
`checkpoint`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from modelopt.torch import speculative
from transformers import AutoModelForCausalLM


def main(task: dict[str, Any]) -> None:
    """Train and export."""
    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    model = _model(task)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [item for item in trained if item.dim() > 1], "weight_decay": task["weight_decay"]},
        {"params": [item for item in trained if item.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=task["rates"][0], betas=tuple(task["betas"]))
    model.train()
    with Path(task["records"]).open("w", encoding="utf-8") as records:
        for samples, rate in zip(task["steps"], task["rates"], strict=True):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=task["mixed_precision"]):
                loss = _loss(model, samples)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, task["clip"])
            optimizer.step()
            optimizer.zero_grad()
            tokens = sum(len(item["tokens"]) for item in samples)
            record = {"loss": loss.item(), "tokens": tokens, "seconds": time.perf_counter() - started}
            print(json.dumps(record), file=records, flush=True)
    model.get_exporter().export(task["checkpoint"])


def _model(task: dict[str, Any]) -> Any:
    """The target with a drafter of its own width and shapes beside it."""
    model: Any = AutoModelForCausalLM.from_pretrained(task["target"], dtype=torch.float32)
    source = model.config
    keys = ("hidden_act", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    rope = dict(source.rope_parameters)
    drafter = {
        **{key: getattr(source, key) for key in keys},
        "head_dim": getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope,
        "num_hidden_layers": 1,
        "draft_vocab_size": len(task["kept"]),
        "use_aux_hidden_state": True,
        "use_last_layernorm": True,
        # The library counts outputs of layers, the kit inputs.
        "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in task["layers"]],
        "torch_dtype": "float32",
    }
    config = {
        "eagle_architecture_config": drafter,
        "eagle_ttt_steps": task["depth"],
        "eagle_use_torch_compile": False,  # compiles with a C++ compiler, which CPU machines may lack
        "eagle_export_rope_scaling": {},
    }
    speculative.convert(model, [("eagle", config)])
    kept = torch.tensor(task["kept"])
    model.eagle_module.d2t.copy_(kept - torch.arange(len(kept)))
    return model


def _loss(model: Any, samples: list[dict[str, Any]]) -> torch.Tensor:
    # The library keeps the masks of the first batch and takes all others to be as long; here they are not.
    model._cached_attn_blk_masks.clear()
    longest = max(len(item["tokens"]) for item in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
    # A row counts if the token after it is one to learn.
    counted = torch.zeros(len(samples), longest, dtype=torch.int64)
    for row, item in enumerate(samples):
        tokens[row, : len(item["tokens"])] = torch.tensor(item["tokens"])
        for start, end in item["written"]:
            counted[row, max(start - 1, 0) : end - 1] = 1
    return torch.as_tensor(model(input_ids=tokens, loss_mask=counted).loss)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
