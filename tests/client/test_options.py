"""Requests that cannot be right are refused before anything is sent: no server is needed here."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import AsyncDrafthouseClient, DrafthouseClient, errors
from client.options import check_options

NOBODY = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "64"),
        ("max_tokens", 2**31),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", "###"),
        ("stop", ["a", ""]),
        ("stop", [b"a"]),
        ("min_tokens", -1),
        ("num_draft_tokens", -1),
        ("cache_salt", ""),
        ("cache_salt", 7),
        ("return_log_probs", 1),
    ],
)
def test_impossible_value_is_refused_by_name(field: str, value: Any) -> None:
    with (
        DrafthouseClient(NOBODY) as client,
        pytest.raises(errors.InvalidRequest, match=f"^{field} must be .*, not") as caught,
    ):
        client.generate("x", **{field: value})  # type: ignore[misc]
    assert caught.value.field == field


@pytest.mark.parametrize("deadline", [0, -1.0, math.nan, math.inf, "1"])
def test_impossible_deadline(deadline: Any) -> None:
    with DrafthouseClient(NOBODY) as client, pytest.raises(errors.InvalidRequest) as caught:
        client.stream("x", deadline=deadline)
    assert caught.value.field == "deadline"


def test_more_tokens_at_least_than_at_most() -> None:
    with pytest.raises(errors.InvalidRequest, match=r"min_tokens \(9\) must not exceed max_tokens \(8\)"):
        check_options({"min_tokens": 9, "max_tokens": 8})


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(errors.InvalidRequest, match="no option 'temprature'; did you mean 'temperature'"):
        check_options({"temprature": 1.0})


def test_prompt_must_be_text() -> None:
    with DrafthouseClient(NOBODY) as client:
        with pytest.raises(errors.InvalidRequest, match="str, not bytes"):
            client.generate(b"x")  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidRequest, match="lone surrogate at character 3"):
            client.generate("abc\ud83d")


@pytest.mark.parametrize("ids", [[], [1, -1], [1.0], [2**31], ["a"]])
def test_token_ids_must_be_token_ids(ids: Any) -> None:
    with DrafthouseClient(NOBODY) as client, pytest.raises(errors.InvalidRequest) as caught:
        client.generate_tokens(ids)
    assert caught.value.field == "ids"


def test_asyncio_client_refuses_alike() -> None:
    async def scene() -> None:
        async with AsyncDrafthouseClient(NOBODY) as client:
            with pytest.raises(errors.InvalidRequest, match="max_tokens must be"):
                await client.generate("x", max_tokens=0)
            with pytest.raises(errors.InvalidRequest, match="ids must hold at least one"):
                client.stream_tokens([])

    asyncio.run(scene())


def test_numbers_of_numpy_are_numbers() -> None:
    options = check_options({"max_tokens": np.int64(3), "temperature": np.float32(0.5), "seed": np.uint64(7)})
    assert options == {"max_tokens": 3, "temperature": 0.5, "seed": 7}


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_temperature_is_taken_or_refused(temperature: float) -> None:
    if math.isfinite(temperature) and temperature >= 0:
        assert check_options({"temperature": temperature})["temperature"] == temperature
    else:
        with pytest.raises(errors.InvalidRequest):
            check_options({"temperature": temperature})
