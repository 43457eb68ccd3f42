"""The metadata of a GGUF file of the Qwen3 family."""

from __future__ import annotations

import gguf

from .card import ModelCard
from .checkpoint import Hyperparameters
from .recipes import Recipe


def add_general(writer: gguf.GGUFWriter, card: ModelCard, recipe: Recipe) -> None:
    """general.*: what the model is called, whose it is, how it was quantized."""
    writer.add_type("model")
    writer.add_name(card.name)
    if card.basename:
        writer.add_basename(card.basename)
    if card.size_label:
        writer.add_size_label(card.size_label)
    if card.license:
        writer.add_license(card.license)
    if card.base_models:
        writer.add_base_model_count(len(card.base_models))
    for i, repository in enumerate(card.base_models):
        organization, _, name = repository.rpartition("/")
        writer.add_base_model_name(i, name.replace("-", " "))
        writer.add_base_model_organization(i, organization)
        writer.add_base_model_repo_url(i, f"https://huggingface.co/{repository}")
    for key, number in quantization(recipe).items():
        writer.add_uint32(key, number)


def quantization(recipe: Recipe) -> dict[str, int]:
    """The keys that change when a file is quantized once more."""
    general = gguf.Keys.General
    return {
        general.FILE_TYPE: int(recipe.file_type),
        general.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
    }


def add_hyperparameters(writer: gguf.GGUFWriter, hp: Hyperparameters) -> None:
    """The keys of the architecture (qwen3.*, qwen3moe.*)."""
    writer.add_vocab_size(hp.n_vocab)
    writer.add_context_length(hp.n_context)
    writer.add_embedding_length(hp.n_embd)
    writer.add_block_count(hp.n_layers)
    writer.add_feed_forward_length(hp.n_ff)
    writer.add_head_count(hp.n_heads)
    writer.add_head_count_kv(hp.n_kv_heads)
    writer.add_key_length(hp.head_dim)
    writer.add_value_length(hp.head_dim)
    writer.add_layer_norm_rms_eps(hp.rms_eps)
    writer.add_rope_freq_base(hp.rope_theta)
    if hp.yarn:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(hp.yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(hp.yarn.original_context)
    if hp.experts:
        writer.add_expert_count(hp.experts.count)
        writer.add_expert_used_count(hp.experts.used)
        writer.add_expert_feed_forward_length(hp.experts.n_ff)
        writer.add_expert_weights_norm(hp.experts.norm_topk)
