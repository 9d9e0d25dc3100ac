"""Tokenize the questions about emoji and those of easy-vqa for the nano model.

Purpose: chats to tune on and captions of the shapes (train), and held-out questions of three kinds: base emoji that are not in
training (validation), unseen combinations of person and tone (validation_combination), and the test
questions of easy-vqa (test). The argument is the folder that holds corpus/ and easy_vqa/.

  python -m emu3_jax.data.fluent_emoji --output=runs/post_training/corpus
  python -m emu3_jax.data.questions.emoji --corpus=runs/post_training/corpus
  python -m emu3_jax.data.questions.easy_vqa --output=runs/post_training/easy_vqa
  python -m emu3_jax.tokenize --config=post_training/data/tokenize_questions
"""

from ml_collections import ConfigDict

from configs import tokenize_nano


def get_config(arg: str = "") -> ConfigDict:
    folder = arg or "runs/post_training"
    config = tokenize_nano.get_config()
    config.output = f"{folder}/questions"
    config.corpus_zip = ""
    config.corpus = folder
    config.splits = ConfigDict()
    config.splits.train = (
        "corpus/questions_train.jsonl",
        "easy_vqa/train.jsonl",
        "easy_vqa/train_captions.jsonl",
    )
    config.splits.validation = ("corpus/questions_validation.jsonl",)
    config.splits.validation_combination = ("corpus/questions_validation_combination.jsonl",)
    config.splits.test = ("easy_vqa/test.jsonl",)
    config.copies = ConfigDict()
    return config
