"""How NVIDIA's `llmapi` model turns YAML into arguments."""


def update_llm_args_with_extra_dict(arguments, extra):
    return {**arguments, **extra}
