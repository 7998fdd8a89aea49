"""The TensorRT-LLM of this machine, if there is one: inside NVIDIA's containers, or installed by hand."""

from build.installed import InstalledPackage, beside_the_path_s, beside_this_interpreter

_PACKAGE = "tensorrt_llm"
LLM_ARGUMENTS = "tensorrt_llm/llmapi/llm_args.py"
"""Where its LLM API's classes are."""


def installed_release() -> InstalledPackage | None:
    """The release beside this interpreter or, failing that, beside the `python3` of PATH."""
    return beside_this_interpreter(_PACKAGE) or beside_the_path_s(_PACKAGE)


def installed_version() -> str | None:
    """The installed release's version, or None."""
    release = installed_release()
    return None if release is None else release.version
