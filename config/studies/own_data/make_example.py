"""Make the example data in this folder: everyday questions with a helpful and an unhelpful answer.

    python make_example.py

Chosen answers give the steps in order and politely; rejected ones are curt, drop a step or change the subject.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent

HOW_TO = {
    "boil an egg": [
        "bring water to a boil",
        "lower the egg in",
        "wait eight minutes",
        "cool it under cold water",
    ],
    "make tea": [
        "heat fresh water",
        "put the leaves in the pot",
        "pour the water over them",
        "wait four minutes",
    ],
    "plant a tomato": [
        "dig a deep hole",
        "set the plant in up to its first leaves",
        "fill in soil",
        "water it well",
    ],
    "change a bicycle tube": [
        "take the wheel off",
        "lift the tyre over the rim",
        "put the new tube in",
        "pump it up",
    ],
    "iron a shirt": [
        "set the iron to the fabric",
        "start with the collar",
        "do the sleeves",
        "finish with the back",
    ],
    "clean a window": [
        "wipe off the dust",
        "wash it with soapy water",
        "pull the water off",
        "dry the edges",
    ],
    "bake potatoes": [
        "heat the oven",
        "wash the potatoes",
        "rub them with oil and salt",
        "bake them for an hour",
    ],
    "wrap a present": [
        "cut the paper to size",
        "fold it over the box",
        "tape the long side",
        "fold in the ends",
    ],
    "store fresh herbs": [
        "trim the stems",
        "put them in a glass of water",
        "cover them loosely",
        "change the water",
    ],
    "pack a suitcase": [
        "lay out what you need",
        "roll soft clothes",
        "put heavy things at the bottom",
        "fill the gaps",
    ],
    "hang a picture": ["choose the height", "mark the spot", "put in the nail", "check that it hangs level"],
    "repot a plant": [
        "choose a larger pot",
        "loosen the roots",
        "fill in fresh soil",
        "water it and let it rest",
    ],
}
OPENINGS = [
    "How do I {}?",
    "Can you tell me how to {}?",
    "What is the best way to {}?",
    "I have never tried to {}. Help?",
]
PLACES = [
    "",
    " at home",
    " in a small kitchen",
    " on a rainy day",
    " with my children",
    " for the first time",
]
POLITE = ["Gladly.", "Of course.", "Happy to help.", "That is easier than it looks."]
CURT = ["Just do it.", "Look it up.", "I would not bother.", "Why do you ask?", "It depends."]
MORE = [("Thanks! Anything to watch out for?", "Take your time with the step '{}', most people rush it.")]


def steps(items: list[str]) -> str:
    return " ".join(f"{number}. {item[0].upper()}{item[1:]}." for number, item in enumerate(items, start=1))


def question(draw: random.Random) -> tuple[str, list[str]]:
    task = draw.choice(sorted(HOW_TO))
    return draw.choice(OPENINGS).format(task + draw.choice(PLACES)), HOW_TO[task]


def pair(draw: random.Random) -> dict[str, object]:
    text, items = question(draw)
    user = {"role": "user", "content": text}
    good = f"{draw.choice(POLITE)} {steps(items)}"
    kind = draw.randrange(3)
    if kind == 0:
        bad = draw.choice(CURT)
    elif kind == 1:
        dropped = draw.randrange(len(items))
        bad = steps([item for index, item in enumerate(items) if index != dropped])
    else:
        bad = steps(
            HOW_TO[draw.choice(sorted(set(HOW_TO) - {name for name in HOW_TO if HOW_TO[name] is items}))]
        )
    if draw.random() < 0.25:
        ask, answer = draw.choice(MORE)
        history = [user, {"role": "assistant", "content": good}, {"role": "user", "content": ask}]
        good, bad = answer.format(draw.choice(items)), draw.choice(CURT)
        return conversation(history, good, bad)
    return conversation([user], good, bad)


def conversation(prompt: list[dict[str, str]], good: str, bad: str) -> dict[str, object]:
    return {"prompt": prompt, "chosen": good, "rejected": bad}


def write(name: str, rows: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8")


def distinct(draw: random.Random, count: int, taken: set[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    while len(rows) < count:
        row = pair(draw)
        key = json.dumps(row["prompt"])
        if key not in taken:
            taken.add(key)
            rows.append(row)
    return rows


def main() -> None:
    draw = random.Random(0)
    taken: set[str] = set()
    write("test.jsonl", distinct(draw, 64, taken))
    train = distinct(draw, 256, taken)
    write("train.jsonl", train)
    supervised = [
        {"messages": [*row["prompt"], {"role": "assistant", "content": row["chosen"]}]} for row in train
    ]  # type: ignore[misc]
    write("sft.jsonl", supervised)


if __name__ == "__main__":
    main()
