"""Local Hugging Face directories become complete targets, or are refused with the command that helps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.prepare import prepare_target
from build.targets.weights import load_weights
from client import ChatTemplate
from tests.build.targets.tiny_models import (
    CHAT_TEMPLATE,
    FAMILIES,
    random_weights,
    tiny_config,
    tiny_gguf,
    write_huggingface,
    write_sharded,
)

CONFIG = tiny_config("llama")
WEIGHTS = random_weights(Architecture.from_config(CONFIG))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_becomes_a_target(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    weights = random_weights(Architecture.from_config(config))
    source = write_huggingface(tmp_path / "source", config, weights)
    summary = prepare_target(str(source), tmp_path / "target")
    assert summary.architecture == Architecture.from_config(config)
    assert summary.num_parameters == sum(values.size for values in weights.values())
    assert summary.gguf is None
    np.testing.assert_array_equal(
        load_weights(summary.directory)["model.norm.weight"], weights["model.norm.weight"]
    )


def test_shards_are_taken_over_with_their_index(tmp_path: Path) -> None:
    source = write_sharded(tmp_path / "source", CONFIG, WEIGHTS)
    summary = prepare_target(str(source), tmp_path / "target")
    assert set(load_weights(summary.directory)) == set(WEIGHTS)
    assert (summary.directory / "model.safetensors.index.json").is_file()


def test_weights_are_linked_and_outlive_their_source(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    target = prepare_target(str(source), tmp_path / "target").directory
    assert (target / "model.safetensors").stat().st_ino == (source / "model.safetensors").stat().st_ino
    (source / "model.safetensors").unlink()
    assert len(load_weights(target)) == len(WEIGHTS)


def test_what_later_steps_expect_is_filled_in(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    target = prepare_target(str(source), tmp_path / "target").directory
    assert _json(target / "generation_config.json")["eos_token_id"] == 2
    assert _json(target / "tokenizer_config.json")["chat_template"] == CHAT_TEMPLATE
    assert _json(target / "special_tokens_map.json") == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }


def test_a_chat_template_in_a_file_of_its_own_is_taken_in(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    (source / "chat_template.jinja").write_text("{{ 'é' }}", encoding="utf-8")
    target = prepare_target(str(source), tmp_path / "target").directory
    assert _json(target / "tokenizer_config.json")["chat_template"] == "{{ 'é' }}"
    assert not (target / "chat_template.jinja").exists()


def test_templates_by_name_are_taken_in_from_list_and_files(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    listed = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    (source / "chat_template.jinja").write_text("file")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("R")
    target = prepare_target(str(source), tmp_path / "target").directory
    names = {"default": "file", "tool_use": "T", "rag": "R"}
    for name, text in names.items():
        assert ChatTemplate.from_directory(target, name).render([]) == text
    (source / "additional_chat_templates" / "rag.jinja").write_text("other")
    with pytest.raises(TargetError, match="not from what it holds now"):
        prepare_target(str(source), tmp_path / "target")


def test_licence_files_travel_with_the_weights(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    (source / "LICENSE.txt").write_text("terms")
    assert (prepare_target(str(source), tmp_path / "target").directory / "LICENSE.txt").read_text() == "terms"


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(
        TargetError, match=r"pytorch_model\.bin.*python -c .*AutoModelForCausalLM.*-safetensors"
    ):
        prepare_target(str(source), tmp_path / "target")


def test_a_missing_tokenizer_is_refused_with_the_command_that_writes_it(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    (source / "tokenizer.json").unlink()
    with pytest.raises(TargetError, match=r"no tokenizer\.json; .*AutoTokenizer.*save_pretrained"):
        prepare_target(str(source), tmp_path / "target")


def test_a_directory_with_a_gguf_file_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path, _ = tiny_gguf(tmp_path / "source" / "tiny.gguf")
    with pytest.raises(TargetError, match=f"no config.json.*pass the file itself: {path}"):
        prepare_target(str(tmp_path / "source"), tmp_path / "target")


def test_another_family_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", {**CONFIG, "model_type": "gemma2"}, WEIGHTS)
    with pytest.raises(UnsupportedModelError, match="'gemma2' is not supported"):
        prepare_target(str(source), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_of_another_model_is_noticed(tmp_path: Path) -> None:
    config = tiny_config("llama", vocab_size=100)
    source = write_huggingface(tmp_path / "source", config, random_weights(Architecture.from_config(config)))
    with pytest.raises(TargetError, match="token id 264, but the model only 100 tokens"):
        prepare_target(str(source), tmp_path / "target")


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(TargetError, match=r"tokenizer\.json cannot be read"):
        prepare_target(str(source), tmp_path / "target")
