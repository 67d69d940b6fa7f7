"""Load the model's tokenizer, or train one on the study's data."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sams.data.templates import PLAIN_TEMPLATE
from sams.runtime.errors import UserError, first_line
from sams.study.settings import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN)
BYTES = 256


def build_tokenizer(model: Model, texts: Iterator[str]) -> "PreTrainedTokenizerBase":
    """Load or train the tokenizer of the settings, with a chat template and a pad token.

    Args:
        model: settings; `chat_template` names a file that replaces the tokenizer's own template.
        texts: the study's texts, read only to train a tokenizer.

    Raises:
        UserError: tokenizer or template cannot be read, or the tokenizer has no EOS.
    """
    template = None if model.chat_template is None else _template_of(Path(model.chat_template))
    if model.path is None:
        tokenizer = train_tokenizer(model, template or PLAIN_TEMPLATE, texts)
    else:
        tokenizer = load_tokenizer(model)
    if template is not None:
        tokenizer.chat_template = template
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
        if model.path is not None:
            log.warning(
                "the tokenizer of %s has no chat template: a plain one is used ('Human: ... Assistant: ...')",
                model.path,
            )
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no EOS token", where="model.path", remedy="set `eos_token` in its config"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so its token does not matter.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _template_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or error}",
            where="model.chat_template",
            remedy="name a jinja file, or null",
        ) from None


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a hub id or folder.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=False
        )
    except Exception as error:  # transformers and its dependencies raise errors of any class
        raise UserError(
            f"cannot load the tokenizer of {model.path}: {first_line(error)}",
            where="model.path",
            remedy="give a folder with tokenizer.json, or a hub id that this machine can reach",
        ) from error
    return tokenizer


def train_tokenizer(model: Model, template: str, texts: Iterator[str]) -> "PreTrainedTokenizerBase":
    """Train a tokenizer: `words` splits at white space, `bpe` is byte-level BPE.

    Raises:
        UserError: the vocabulary is too small for a byte-level tokenizer.
    """
    raw = _bpe(model, texts) if model.tokenizer == "bpe" else _words(model, template, texts)
    raw.add_special_tokens(list(model.control_tokens))
    return _wrapped(raw, template)


def _wrapped(raw: "Tokenizer", template: str) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _words(model: Model, template: str, texts: Iterator[str]) -> "Tokenizer":
    """Train a vocabulary of the template's words and the most frequent ones.

    Control tokens are not among the words: in a text they are unknown words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    counted = Counter(word for text in texts for word in text.split())
    frequent = sorted(counted, key=lambda word: (-counted[word], word))
    words = [word for word in dict.fromkeys([*_words_of(template), *frequent]) if word not in SPECIAL]
    kept = [UNKNOWN, *words[: model.vocab_size - len(SPECIAL)]]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(kept)}, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens([PAD, BOS, EOS])
    return raw


def _words_of(template: str) -> list[str]:
    """Return the words that a chat template adds to messages."""
    from tokenizers import Tokenizer, models

    bare = _wrapped(Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN)), template)
    turns = [{"role": "user", "content": " "}, {"role": "assistant", "content": " "}]
    return str(bare.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)).split()


def _bpe(model: Model, texts: Iterator[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = BYTES + len(SPECIAL)
    if model.vocab_size < least:
        raise UserError(
            f"a byte-level tokenizer needs {least} entries or more, found {model.vocab_size}",
            where="model.vocab_size",
            remedy="raise it, or set `tokenizer: words`",
        )
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return raw
