"""What each method of speculation needs before it drafts: weights, training, memory.

Times and sizes under "trained here" are those of `speculators/weights`: SmolLM2-135M, two CPU cores, 520,565 answer
tokens that the target wrote in 20 minutes, hidden states in 22. Published recipes are those of the methods' papers and
repositories, for targets of 7 to 70 billion parameters.
"""

from dataclasses import dataclass

EMBEDDED, TENSORRT_LLM, VLLM = ENGINES = ("the embedded engine", "TensorRT-LLM", "vLLM")
_DATA = "0.5M answer tokens that the target writes (20 min), hidden states (22 min)"


@dataclass(frozen=True)
class Needs:
    """One method.

    Attributes:
        weights: what has to be there.
        training: data and time; empty if there is nothing to train.
        memory: beside the target's.
        engines: that run it.
    """

    weights: str
    training: str = ""
    memory: str = ""
    engines: tuple[str, ...] = ENGINES

    @property
    def runs_on(self) -> str:
        """Its engines in words."""
        return "all engines" if self.engines == ENGINES else " and ".join(self.engines)


NEEDS = {
    "none": Needs("nothing"),
    "plan": Needs(
        "a plan, and what the methods in it need", memory="that of the methods in it", engines=(EMBEDDED,)
    ),
    "anpd": Needs("nothing", memory="tables of the request's n-grams, on the host"),
    "prompt_lookup": Needs("nothing", memory="tables of n-grams of all requests, on the host"),
    "suffix_automaton": Needs("nothing", memory="the request's text or a tree of it, on the host"),
    "token_recycling": Needs(
        "nothing",
        memory="a row of successors for each token of the vocabulary, on the host",
        engines=(EMBEDDED,),
    ),
    "lookahead": Needs(
        "nothing",
        memory="a pool of the request's n-grams, on the host; a step computes about (window + verification_set) x "
        "(ngram - 1) tokens more",
        engines=(EMBEDDED, TENSORRT_LLM),
    ),
    "windowed": Needs(
        "nothing: the target drafts",
        memory="the embedded engine: none; TensorRT-LLM: a second engine of the target, a cache of `window` tokens",
        engines=(EMBEDDED, TENSORRT_LLM),
    ),
    "low_bit": Needs(
        "nothing: the target drafts",
        memory="a copy of the target's weights, layers in 4 bits and the rest in 8; no cache",
        engines=(EMBEDDED,),
    ),
    "draft_model": Needs(
        "a small model with the target's tokenizer",
        f"published ones: none. Trained here, cut out of the target: {_DATA}, then 20 min",
        "its weights (20 MiB trained here), and the KV cache of its layers",
    ),
    "medusa": Needs(
        "heads trained for this target",
        f"trained here: {_DATA}, then 5 min. Published: ShareGPT answered by the target, 1 to 2 passes",
        "for each head a matrix hidden x draft vocabulary (6 MiB trained here); no cache",
    ),
    "mlp_speculator": Needs(
        "stages trained for this target",
        f"trained here: {_DATA}, then 14 min. Published: a few days",
        "for each stage two matrices of its width x draft vocabulary (19 MiB trained here); no cache",
        engines=(EMBEDDED, VLLM),
    ),
    "eagle": Needs(
        "a layer trained for this target, which the kit does not train",
        "published: 68,000 dialogues; 1 to 2 days on four A100-40G for a target of 70 billion parameters",
        "one decoder layer, and its KV cache; on the embedded engine copies of embedding and output matrix",
    ),
    "eagle3": Needs(
        "a layer trained for this target",
        f"trained here: {_DATA}, then 48 min. Published: 532,000 dialogues answered by the target",
        "one decoder layer, a matrix 3 hidden x hidden, an output matrix of the draft vocabulary (19 MiB trained "
        "here), and the KV cache of one layer; on the embedded engine a copy of the target's embedding",
    ),
    "peagle": Needs(
        "a drafter trained for this target",
        "trained by `drafthouse train`, from the same data as EAGLE-3. Published: 4 layers on eight H200",
        "its decoder layers, a matrix 3 hidden x hidden, an output matrix of the draft vocabulary, and the KV cache of "
        "its layers; on the embedded engine a copy of the target's embedding",
        engines=(EMBEDDED, VLLM),
    ),
    "redrafter": Needs(
        "a head trained for this target, which the kit does not train",
        "published: ShareGPT, 2 passes; 1.5 h on eight H100 for Vicuna-7B",
        "one head of 2 hidden x vocabulary; no cache",
        engines=(TENSORRT_LLM,),
    ),
    "mtp": Needs(
        "layers that the target was trained with",
        memory="these layers, and their KV cache",
        engines=(TENSORRT_LLM, VLLM),
    ),
    "pard": Needs(
        "a draft model with mask tokens, one for a family of targets, which the kit does not train",
        "published: a small model trained further for 4 passes",
        "its weights, and the KV cache of its layers",
        engines=(TENSORRT_LLM, VLLM),
    ),
    "dflash": Needs(
        "a block drafter trained for this target, which the kit does not train",
        "published: 800,000 samples answered by the target",
        "5 to 8 layers, and their KV cache",
        engines=(TENSORRT_LLM, VLLM),
    ),
}
