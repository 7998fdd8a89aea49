"""Parameters of `tensorrt_llm_bls`: what they mean, and which cannot be."""

import pytest

from engine.errors import RequestError
from engine.serving.bls_settings import BlsSettings

TOKENIZER = {"tokenizer_dir": "somewhere"}


def test_nothing_drafts_unless_somebody_is_named() -> None:
    settings = BlsSettings.read(TOKENIZER)
    assert (settings.draft_model, settings.drafter, settings.num_draft_tokens) == ("", "", 0)
    assert settings.embedded and settings.target == "tensorrt_llm"


def test_variables_that_were_not_filled_in_are_not_given() -> None:
    unset = {
        name: f"${{{name}}}" for name in ("tensorrt_llm_draft_model_name", "accumulate_tokens", "drafter")
    }
    assert BlsSettings.read({**TOKENIZER, **unset}) == BlsSettings.read(TOKENIZER)


def test_everything_is_read() -> None:
    settings = BlsSettings.read(
        {
            **TOKENIZER,
            **{"engine": "tensorrt_llm", "tensorrt_llm_model_name": "target", "max_sequence_length": "100"},
            **{"drafter": "anpd", "drafter_settings": '{"ngram": 4}', "num_draft_tokens": "6"},
            "adaptive": "false",
            **{"exclude_input_in_output": "False", "skip_special_tokens": "false", "max_requests": "7"},
            **{"max_one_shot_tokens": "64", "max_request_seconds": "2.5", "part_cache": "true"},
            "gpt_model_path": "engine",
        }
    )
    assert settings == BlsSettings(
        *("somewhere", False, "target", "", "anpd", {"ngram": 4}, 6, False, 7, 100, 64, 2.5, True),
        exclude_input_in_output=False,
        skip_special_tokens=False,
        gpt_model_path="engine",
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tokenizer_dir": ""}, "tokenizer_dir is missing"),
        ({"engine": "vllm"}, "engine is 'vllm'; it must be embedded or tensorrt_llm"),
        ({"tensorrt_llm_draft_model_name": "a", "drafter": "anpd", "num_draft_tokens": "3"}, "not both"),
        ({"drafter": "anpd"}, "num_draft_tokens is 0; it must be 1 or more where something drafts"),
        ({"engine": "tensorrt_llm"}, "gpt_model_path is missing"),
        ({"num_draft_tokens": "4"}, r"num_draft_tokens is 4; .* 0 where nothing does"),
    ],
)
def test_contradictions_are_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlsSettings.read({**TOKENIZER, **parameters})


def test_rows_that_would_be_refused_half_way() -> None:
    settings = BlsSettings.read({**TOKENIZER, "max_sequence_length": "100"})
    settings.check_length(60, 40)
    with pytest.raises(RequestError, match=r"60 prompt tokens and max_tokens 41 make 101.*limit of 100"):
        settings.check_length(60, 41)
    BlsSettings.read(TOKENIZER).check_length(10**6, 10**6)
