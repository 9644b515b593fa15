"""Where the reward token stands in a prompt, and that what follows is an answer to it."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.engine.generation import generate
from luthier.engine.models import load_base


@pytest.mark.oracle(clause="reward token", against="ids by hand")
def test_the_reward_token_stands_behind_the_start(pico):
    tokenizer = load_base(pico).tokenizer
    decoder = build("decoder", "reward-token")
    token = tokenizer("<|good|>", add_special_tokens=False)["input_ids"]
    assert decoder.put(tokenizer, [tokenizer.bos_token_id, 7, 8]) == [tokenizer.bos_token_id, *token, 7, 8]
    assert decoder.put(tokenizer, [7, 8]) == [*token, 7, 8]


def test_the_answer_is_that_to_the_prompt_with_the_token(pico):
    model = load_base(pico)
    decoder, plain = build("decoder", "reward-token:max_new_tokens=5"), build("decoder", "greedy:max_new_tokens=5")
    prompt = [model.tokenizer.bos_token_id, 7, 9, 30]
    (found,) = generate({"policy": model}, [prompt], decoder, Rng(0))
    (wanted,) = generate({"policy": model}, [decoder.put(model.tokenizer, prompt)], plain, Rng(0))
    assert found.ids == wanted.ids and found.prompt_tokens == 4
