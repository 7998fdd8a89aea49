"""Commands of line A's engines: every recipe, and that every flag is one the tool has."""

import json
from pathlib import Path

import pytest

from build.trtllm.engines import tools
from build.trtllm.engines.commands import argv, build_steps
from build.trtllm.llm_api.arguments import speculative_config
from build.trtllm.releases import LINE_A
from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX, resolve
from deployments.findings import UnsupportedDeployment
from deployments.spec import SpecError
from tests.build.trtllm.specs import deployment

ENGINE_METHODS = [
    method for method, entry in SUPPORT_MATRIX["A", "engines"].items() if isinstance(entry, Supported)
]
TOOLS = [value for value in vars(tools).values() if isinstance(value, tools.Tool)]


def steps_of(method, **keys):
    return build_steps(resolve(deployment(method, "A", "engines", **keys)))


def _flags(step):
    """Flags of a command by name; a flag without a value has None."""
    found = {}
    for argument in step.command:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            found[name] = value if equals else None
    return found


def _tool(step):
    """The tool that a command calls, by the name of its program or script."""
    return next(
        tool
        for tool in TOOLS
        if any(part.endswith(tool.name.removeprefix("examples/")) for part in step.command)
    )


def assert_commands_are_those_of_the_tools(steps):
    for step in steps:
        if "build.converters" in step.command:
            continue
        for flag, value in _flags(step).items():
            assert tools.problem_of(_tool(step), flag, value) is None


def assert_steps_connect(steps, given):
    """Every input is a model, or an output of a step before."""
    there = {Path(path) for path in given}
    for step in steps:
        assert set(step.inputs) <= there, step.name
        there |= set(step.outputs)


MODELS = ["models/target", "models/draft", "models/heads", "models/eagle", "models/redrafter"]


@pytest.mark.parametrize("method", ENGINE_METHODS)
def test_every_cell_has_steps_whose_flags_exist_and_whose_paths_connect(method):
    steps = steps_of(method)
    assert_commands_are_those_of_the_tools(steps)
    assert_steps_connect(steps, MODELS)
    assert len({step.name for step in steps}) == len(steps)
    assert {step.image for step in steps} == {LINE_A.build_image}
    assert resolve(deployment(method, "A", "engines")).target_engine in steps[-1].outputs


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("none", ["convert-target", "build-target"]),
        ("draft_model", ["convert-target", "convert-draft", "build-draft", "build-target"]),
        ("windowed", ["convert-target", "build-draft", "build-target"]),
        ("anpd", ["convert-target", "build-target"]),
        ("prompt_lookup", ["convert-target", "build-target"]),
        ("lookahead", ["convert-target", "build-target"]),
        ("medusa", ["convert-target", "add-medusa-heads", "build-target"]),
        ("eagle", ["convert-target", "add-eagle-heads", "build-target"]),
        ("redrafter", ["convert-target", "add-redrafter-heads", "build-target"]),
    ],
)
def test_recipes(method, names):
    assert [step.name for step in steps_of(method)] == names


@pytest.mark.parametrize(
    ("method", "mode", "draft_tokens"),
    [
        ("none", None, None),
        ("draft_model", "draft_tokens_external", "5"),
        ("windowed", "draft_tokens_external", "4"),
        ("anpd", "draft_tokens_external", "7"),
        ("prompt_lookup", "draft_tokens_external", "5"),
        ("lookahead", "lookahead_decoding", "83"),
        ("medusa", "medusa", None),
        ("eagle", "eagle", None),
        ("redrafter", "explicit_draft_tokens", None),
    ],
)
def test_the_targets_engine_is_told_how_it_speculates(method, mode, draft_tokens):
    flags = _flags(steps_of(method)[-1])
    assert flags.get("speculative_decoding_mode") == mode
    assert flags.get("max_draft_len") == draft_tokens
    assert flags["use_paged_context_fmha"] == "enable"


@pytest.mark.parametrize(
    ("window", "ngram", "verification_set", "tokens"),
    [(7, 7, 7, 83), (4, 3, 4, 15), (2, 2, 1, 2), (8, 4, 2, 29)],
)
def test_lookahead_draft_tokens_follow_the_formula(window, ngram, verification_set, tokens):
    keys = {"window": window, "ngram": ngram, "verification_set": verification_set}
    assert _flags(steps_of("lookahead", speculation=keys)[-1])["max_draft_len"] == str(tokens)


def test_draft_target_word_for_word():
    convert, convert_draft, build_draft, build = steps_of(
        "draft_model",
        dtype="float16",
        max_batch_size=4,
        max_input_length=3200,
        max_sequence_length=4800,
        max_num_tokens=8192,
        speculation={"use_draft_logits": True, "draft_length": 10},
    )
    root = "runs/trtllm/example"
    llama = "/app/examples/models/core/llama/convert_checkpoint.py"
    assert convert.command == (
        "python3", llama, "--model_dir=models/target", f"--output_dir={root}/target-checkpoint", "--dtype=float16",
        "--tp_size=1", "--pp_size=1", "--workers=1",
    )  # fmt: skip
    assert convert_draft.command[2:4] == ("--model_dir=models/draft", f"--output_dir={root}/draft-checkpoint")
    limits = ("--max_batch_size=4", "--max_input_len=4800")
    more = ("--max_num_tokens=8192", "--gemm_plugin=auto", "--use_paged_context_fmha=enable", "--workers=1")
    assert build_draft.command == (
        "trtllm-build", f"--checkpoint_dir={root}/draft-checkpoint", f"--output_dir={root}/draft-engine", *limits,
        "--max_seq_len=4800", *more, "--gather_generation_logits",
    )  # fmt: skip
    # A draft of ten tokens is counted beside prompt and output.
    assert build.command == (
        "trtllm-build", f"--checkpoint_dir={root}/target-checkpoint", f"--output_dir={root}/target-engine", *limits,
        "--max_seq_len=4810", *more, "--speculative_decoding_mode=draft_tokens_external", "--max_draft_len=10",
        "--gather_generation_logits",
    )  # fmt: skip


def test_windowed_self_drafting_shares_the_checkpoint_unless_the_draft_is_another():
    _, draft, target = steps_of("windowed")
    assert _flags(draft)["checkpoint_dir"] == _flags(target)["checkpoint_dir"]
    assert "speculative_decoding_mode" not in _flags(draft)
    names = [step.name for step in steps_of("windowed", draft={"quantization": "fp8"})]
    assert names == ["convert-target", "quantize-draft", "build-draft", "build-target"]


def test_inputs_may_be_whole_sequences_only_where_drafts_come_from_outside():
    limits = {"max_input_length": 100, "max_sequence_length": 300}
    assert _flags(steps_of("anpd", **limits)[-1])["max_input_len"] == "300"
    assert _flags(steps_of("medusa", **limits)[-1])["max_input_len"] == "100"


def test_parallelism_of_target_and_draft():
    convert, convert_draft, draft, target = steps_of(
        "draft_model", tensor_parallel=4, pipeline_parallel=2, draft={"tensor_parallel": 2}
    )
    assert (_flags(convert)["tp_size"], _flags(convert)["pp_size"], _flags(convert)["workers"]) == (
        "4",
        "2",
        "8",
    )
    assert (_flags(convert_draft)["tp_size"], _flags(convert_draft)["pp_size"]) == ("2", "1")
    assert (_flags(draft)["workers"], _flags(target)["workers"]) == ("2", "8")


def test_quantisation_calibrates_instead_of_converting():
    engine = {"quantization": "fp8", "kv_cache": {"dtype": "fp8"}, "calibration_dataset": "data/calibration"}
    quantize, build = steps_of("none", **engine)
    assert quantize.name == "quantize-target"
    assert quantize.command[1] == "/app/examples/quantization/quantize.py"
    flags = _flags(quantize)
    assert (flags["qformat"], flags["kv_cache_dtype"], flags["dtype"]) == ("fp8", "fp8", "bfloat16")
    assert flags["calib_dataset"] == "data/calibration"
    assert_commands_are_those_of_the_tools([quantize, build])
    awq = _flags(steps_of("none", quantization="int4_awq")[0])
    assert awq["qformat"] == "int4_awq"
    assert "kv_cache_dtype" not in awq
    draft = steps_of("draft_model", quantization="fp8", draft={"quantization": "none"})
    assert [step.name for step in draft][:2] == ["quantize-target", "convert-draft"]


def test_heads_are_added_to_the_targets_checkpoint():
    _, heads, build = steps_of("medusa", tensor_parallel=2)
    assert heads.command == (
        "python3", "-m", "build.converters", "medusa", "--drafter=models/heads",
        "--target=runs/trtllm/example/target-checkpoint",
        "--output=runs/trtllm/example/target-with-heads-checkpoint", "--tp-size=2", "--dtype=bfloat16",
        "--num-medusa-heads=4", "--max-draft-length=63",
    )  # fmt: skip
    assert _flags(build)["checkpoint_dir"] == "runs/trtllm/example/target-with-heads-checkpoint"
    eagle = steps_of("eagle", speculation={"max_draft_tokens": 40, "depth": 3, "max_non_leaves": 7})[1]
    assert eagle.command[-3:] == (
        "--max-draft-length=40", "--num-eagle-layers=3", "--max-non-leaves-per-layer=7",
    )  # fmt: skip
    assert steps_of("redrafter")[1].command[-2:] == ("--num-beams=5", "--draft-length=5")
    sampling = steps_of("redrafter", speculation={"greedy_search": False})[1]
    assert sampling.command[-1] == "--sampling"


def test_a_small_medusa_tree_still_holds_its_heads():
    step = steps_of("medusa", speculation={"choices": [[0], [0, 0]]})[1]
    assert "--max-draft-length=4" in step.command


@pytest.mark.parametrize(
    ("model_type", "script"),
    [("mistral", "llama"), ("mixtral", "llama"), ("qwen2", "qwen"), ("qwen3", "qwen"), ("phi3", "phi")],
)
def test_the_converter_follows_the_model_type(model_type, script):
    steps = steps_of("draft_model", model_type=model_type)
    assert steps[0].command[1] == f"/app/examples/models/core/{script}/convert_checkpoint.py"
    assert_commands_are_those_of_the_tools(steps)


def test_the_model_type_is_read_from_the_model(tmp_path):
    spec = deployment("none", model_type=None, model=tmp_path)
    with pytest.raises(SpecError, match=r"target\.model_type"):
        build_steps(resolve(spec))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert "/core/qwen/" in build_steps(resolve(spec))[0].command[1]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": ["qwen2"]}))
    with pytest.raises(SpecError, match="no name"):
        build_steps(resolve(spec))


def test_a_draft_of_another_family_has_its_own_converter(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    steps = steps_of("draft_model", speculation={"model": tmp_path})
    assert "/core/llama/" in steps[0].command[1]
    assert "/core/qwen/" in steps[1].command[1]


@pytest.mark.parametrize(
    ("method", "model_type", "engine", "reason"),
    [
        ("none", "gpt_oss", {}, "builds no engines of model type gpt_oss"),
        ("redrafter", "mistral", {}, "no redrafter heads on model type mistral"),
        ("eagle", "qwen2", {}, "no eagle heads on model type qwen2"),
        ("medusa", "phi3", {}, "no medusa heads on model type phi3"),
        ("none", "phi3", {"pipeline_parallel": 2}, "no pipeline parallelism"),
    ],
)
def test_families_that_a_method_does_not_have_are_refused_before_a_step_exists(
    method, model_type, engine, reason
):
    with pytest.raises(UnsupportedDeployment, match=reason):
        steps_of(method, model_type=model_type, **engine)


def test_images_say_where_the_examples_are():
    release = steps_of("none", images={"build": "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"})[0]
    assert release.image == "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
    assert release.command[1].startswith("/app/tensorrt_llm/examples/models/core/llama/")
    own = steps_of("none", images={"build": "mine", "examples": "/opt/examples"})[0]
    assert own.command[1] == "/opt/examples/models/core/llama/convert_checkpoint.py"


def test_more_build_flags_reach_both_engines():
    flags = {"fast_build": "", "gemm_plugin": "fp8", "norm_quant_fusion": "enable"}
    for step in steps_of("draft_model", build_flags=flags)[2:]:
        assert "--fast_build" in step.command
        assert "--gemm_plugin=fp8" in step.command
        assert "--gemm_plugin=auto" not in step.command
        assert "--norm_quant_fusion=enable" in step.command


def test_the_llm_api_compiles_nothing():
    assert build_steps(resolve(deployment("mtp", "A", "llm_api"))) == ()
    assert build_steps(resolve(deployment("eagle3", "B"))) == ()


def test_an_eagle3_drafter_is_converted_where_both_checkpoints_are_here():
    (step,) = build_steps(resolve(deployment("eagle3", "A")))
    assert step.command[1:] == (
        *("-m", "build.converters", "eagle3", "--drafter=models/eagle3", "--target=models/target"),
        "--output=runs/trtllm/example/eagle3-drafter",
    )
    assert step.image == ""  # no program of NVIDIA's is in it
    for target, drafter in (("models/target", "organisation/head"), ("organisation/model", "models/eagle3")):
        spec = deployment("eagle3", "A", model=target, speculation={"checkpoint": drafter})
        assert build_steps(resolve(spec)) == ()
        config = speculative_config(resolve(spec))
        assert config is not None and config["speculative_model_dir"] == drafter


@pytest.mark.parametrize(
    ("tool", "flags", "reason"),
    [
        (tools.TRTLLM_BUILD, {"paged_kv_cache": "enable"}, "has lost --paged_kv_cache"),
        (tools.TRTLLM_BUILD, {"speculative_decoding_mode": "redrafter"}, "explicit_draft_tokens"),
        (tools.TRTLLM_BUILD, {"use_paged_context_fmha": "true"}, "enable, disable"),
        (tools.CONVERT_PHI, {"load_model_on_cpu": None}, "has no --load_model_on_cpu"),
        (tools.CONVERT_QWEN, {"model_dir": None}, "needs a value"),
        (tools.QUANTIZE, {"qformat": "int4"}, "int4_awq"),
    ],
)
def test_flags_that_a_tool_lacks_never_become_a_command(tool, flags, reason):
    with pytest.raises(ValueError, match=reason):
        argv(tool, flags)
