"""The tokenizer of a study: the model's own, or one trained on the study's data."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sams.config import Model
from sams.data.templates import PLAIN_TEMPLATE
from sams.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"


def build_tokenizer(model: Model, texts: Iterator[str]) -> "PreTrainedTokenizerBase":
    """Load or train the tokenizer that the settings ask for, with a chat template and a pad token.

    Args:
        model: settings; `chat_template` names a file that replaces the tokenizer's own template.
        texts: the study's texts, read only when a tokenizer is trained.

    Raises:
        UserError: when tokenizer or template cannot be read.
    """
    tokenizer = load_tokenizer(model) if model.path is not None else train_tokenizer(model, texts)
    if model.chat_template is not None:
        file = Path(model.chat_template)
        if not file.is_file():
            raise UserError(
                f"no such file: {file}", where="model.chat_template", remedy="name a jinja file, or null"
            )
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a hub id or folder.

    Raises:
        UserError: when it is not there.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.path, revision=model.revision
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer of {model.path}: {str(error).splitlines()[0]}",
            where="model.path",
            remedy="give a folder with tokenizer.json, or a hub id that this machine can reach",
        ) from error
    return tokenizer


def train_tokenizer(model: Model, texts: Iterator[str]) -> "PreTrainedTokenizerBase":
    """Train a tokenizer: `words` splits at white space, `bpe` is byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BOS, EOS, UNKNOWN]
    trainer: trainers.Trainer
    if model.tokenizer == "words":
        raw = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(
            vocab_size=model.vocab_size, special_tokens=special, show_progress=False
        )
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=model.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
