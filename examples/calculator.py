"""A rollout of two turns with a tool: the policy speaks, a calculator answers, the policy goes on.

    dfpo train --data sums.jsonl --rollout calculator.py:play --reward calculator.py:reward

The calculator's tokens are in the answer and are not trained on: the policy did not choose them.
"""

import re


def calculate(text):
    """What the calculator writes under the last sum in the text, if there is one."""
    sums = re.findall(r"(\d+) (plus|minus) (\d+)", text)
    if not sums:
        return "no sum"
    a, word, b = sums[-1]
    return str(int(a) + int(b) if word == "plus" else int(a) - int(b))


def play(prompts, generate, tokenizer):
    """Turn, tool, turn. ``generate`` takes texts, chats or token ids, and gives a turn to each."""
    asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    first = generate(asked, max_new_tokens=8)

    said = [
        tokenizer(" " + calculate(prompt + turn.text), add_special_tokens=False)["input_ids"]
        for prompt, turn in zip(prompts, first, strict=True)
    ]
    so_far = [a + turn.token_ids + tool for a, turn, tool in zip(asked, first, said, strict=True)]
    second = generate(so_far, max_new_tokens=8)

    turns = list(zip(first, said, second, strict=True))
    return {
        "completion_ids": [one.token_ids + tool + two.token_ids for one, tool, two in turns],
        "env_mask": [
            [1] * len(one.token_ids) + [0] * len(tool) + [1] * len(two.token_ids)
            for one, tool, two in turns
        ],
        "last_turn": [two.text for _, _, two in turns],  # a column of its own for the reward
    }


def reward(last_turn, **columns):
    """Short last turns: something that a policy of any size can learn."""
    return [1.0 / (1 + len(text.split())) for text in last_turn]
