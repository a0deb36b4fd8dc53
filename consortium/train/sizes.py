"""What a model costs, from its shape alone: parameters, FLOPs per token, memory on a GPU. No torch here.

These are the package's decoder's; of a plugin's model nothing is known before it is built.
"""

from __future__ import annotations

from dataclasses import dataclass

from consortium.domain.pretraining import ModelConfig, PretrainConfig


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Return how many parameters the model has, all embeddings included."""
    vectors = (2 * model.layers + 1) * model.dim
    tables = (1 if model.tie_embeddings else 2) * vocab_size * model.dim
    return tables + vectors + hidden_count(model)


def hidden_count(model: ModelConfig) -> int:
    """Return how many parameters the blocks' matrices have: those that Muon takes."""
    keys_values = 2 * model.groups * model.head_dim
    attention = model.dim * (model.dim + keys_values) + model.dim * model.dim
    return model.layers * (attention + 3 * model.dim * model.hidden)


def flops_per_token(model: ModelConfig, vocab_size: int) -> int:
    """Return the floating-point operations of training on one token, forward and backward: 6 N + 12 L H K T.

    PaLM (https://arxiv.org/abs/2204.02311), appendix B: N are the parameters that are multiplied with, which leaves out
    the table that tokens are looked up in and counts the output head, tied or not; the second term is for scores
    and sums over a context of T tokens, L layers, H heads of width K. The causal mask is not deducted, nor is
    recomputation added: it is the model's work, not the hardware's, and model FLOPs utilisation rests on it.
    Chinchilla's count (https://arxiv.org/abs/2203.15556, appendix F) adds the lookup as if it were a product.
    """
    multiplied = hidden_count(model) + vocab_size * model.dim
    return 6 * multiplied + 12 * model.layers * model.dim * model.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the peak of an inner step, without what the driver and the allocator hold (1 to 2 GB)."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass."""
    logits: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits


def memory(params: PretrainConfig, vocab_size: int, *, workers: int = 1, bf16: bool = True) -> Memory:
    """Return what one of `workers` workers needs; `bf16` as on CUDA, where products run in bf16, else all is fp32.

    Counted from the tensors that the blocks keep, which a test measures; what sharding leaves is not measured.
    `torch.compile` keeps fewer.
    """
    model, count = params.model, parameter_count(params.model, vocab_size)
    width = 2 if bf16 else 4
    tokens = params.data.part * model.context
    muon = hidden_count(model) if params.optim.name == "muon" else 0
    block = tokens * _block_bytes(model, width)
    stream = 4 * tokens * model.dim
    kept = model.layers * stream + block if model.recompute else model.layers * block
    if params.data.boundaries == "mask":
        kept += width * tokens * model.context
    hidden = hidden_count(model)
    # Copies in bf16 of all that is multiplied live as long as the step; several workers average gradients in buckets
    # beside them.
    parameters = 4 * count + (2 * (hidden + vocab_size * model.dim) if bf16 else 0)
    gradients = 4 * count * (2 if workers > 1 else 1)
    shards = workers if params.parallel == "fsdp" else 1
    if shards > 1:
        # Beside its part a worker has what is brought together: embeddings and head for the whole step, of the blocks
        # the one computed with and the next; and the whole gradients of the first and of one block.
        outer, one = count - hidden, hidden // model.layers
        parameters = -(-4 * count // shards) + 4 * outer + (2 * vocab_size * model.dim if bf16 else 0) + 2 * width * one
        gradients = -(-4 * count // shards) + 4 * outer + (width + 4) * one
    # Muon has room for its updates where it has no parameters: the matrices that a worker owns (`train.matrices`).
    states = 8 * (count - muon) + (4 if shards == 1 else 8) * muon
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=-(-states // shards),
        activations=kept + 2 * stream + width * tokens * model.dim,
        # The logits, in fp32 too where they came in bf16; their log-softmax; and the gradient of both.
        logits=tokens * vocab_size * ((2 * width if bf16 else 0) + 12),
    )


def _block_bytes(model: ModelConfig, width: int) -> int:
    """Return the bytes a block keeps per token; products have `width` bytes per element, the stream and norms four.

    The stream before both norms, scaled by them, and as it enters a product; queries, keys and values before and after
    turning; what attention gave, twice, as it is laid out anew; gate, up, silu(gate) and the product of both. Dropout
    keeps what it let through of either branch: a byte per element on CUDA, a number on a CPU.
    """
    keys = model.groups * model.head_dim
    attention = (model.dim + 2 * keys) + (model.dim + keys) + 2 * model.dim
    masks = 2 * model.dim * (1 if width == 2 else 4) if model.dropout else 0
    return 16 * model.dim + masks + width * (2 * model.dim + attention + 4 * model.hidden)
