"""A RoBERTa of two small layers with a tokenizer trained on the spot, as its library saves it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer

MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write(path: Path, texts: Sequence[str], positions: int) -> Path:
    """Fill the folder `path`; the tokenizer learns from `texts`."""
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(list(texts) * 8, 300, 2, False, MARKS)
    bpe.save_model(str(path))
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    model = RobertaForMaskedLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases are zero, and hide mistakes
    model.save_pretrained(path)
    RobertaTokenizerFast.from_pretrained(path).save_pretrained(path)
    return path
