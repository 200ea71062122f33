"""The forward pass of every architecture of the course, written in the operations of `tape`.

Each follows the code of transformers' models line by line as far as memory is concerned.
"""

from course_lib.errors import unknown
from course_lib.memory.tape import FP32, LOGITS, Parameter, Tape, Value
from course_lib.methods.shapes import block, blocks, has_lm_head, head_dim, is_embedding, linears, parameter_shapes

ATTENTIONS = ("sdpa", "eager")


class Network:
    """One forward pass of the model that `config` describes, its loss included, on a tape.

    beside: what the method puts beside the layers, see `course_lib.memory.beside`. attention: "sdpa" or "eager".
    written_out: name of a quantized layer → bytes of its weight when it is written out for use. keeps_inputs: such a
    layer keeps what goes into it, as bitsandbytes' int8 does without a need, checkpointing or not. input_grads: the
    words' vectors get gradients even where nothing before them trains, as transformers wants it for checkpointing.
    loss_chunk: tokens whose logits are made at a time, None for all at once. labels: classes of an encoder's head.
    flash: whether the GPU has flash attention, as those from Ampere on.
    """

    def __init__(
        self,
        config,
        tape: Tape,
        beside,
        *,
        attention,
        written_out,
        keeps_inputs,
        input_grads,
        loss_chunk,
        labels,
        flash,
    ):
        self.config, self.tape, self.beside = config, tape, beside
        # No fused kernel caps the scores as Gemma 2 does.
        self.attention_kind = "eager" if getattr(config, "attn_logit_softcapping", None) else attention
        self.written_out, self.keeps_inputs, self.labels = written_out, keeps_inputs, labels
        self.input_grads, self.loss_chunk, self.flash = input_grads, loss_chunk, flash
        self.attention_dropout = _first(config, "attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
        self.layers, self.shapes = linears(config), parameter_shapes(config)
        # The weight of the output head, which may be the table of words.
        self.head = "lm_head.weight" if "lm_head.weight" in self.shapes else next(iter(self.shapes))
        self.tied = has_lm_head(config) and self.head != "lm_head.weight"
        # Cosines and sines of the positions are the same in all blocks.
        self.angles = tuple(Value(tape.length * head_dim(config), tape.size) for _ in range(2))

    def run(self) -> Tape:
        """The whole pass, block by block, on the tape; raises ValueError for an architecture not written down here."""
        if self.config.model_type not in _BLOCKS:
            raise unknown("model type with a closed form of its activations", self.config.model_type, _BLOCKS)
        one_block, stem = _BLOCKS[self.config.model_type]
        x = self._embeddings()
        for index in range(blocks(self.config)):
            self.tape.begin(x)
            x = one_block(self, self.beside.enter(self, x), f"{stem}.{index}")
        self.tape.begin(x)
        self._loss(self.beside.end(self, self._last_norm(x)))
        return self.tape

    def linear(self, x: Value, name: str) -> Value:
        weight, bias = f"{name}.weight", f"{name}.bias"
        own = [self.tape.own(part, *self.shapes[part]) if part in self.shapes else () for part in (weight, bias)]
        clings = (x,) if name in self.written_out and self.keeps_inputs else ()
        out = self.tape.matmul(
            x, self.layers[name].outputs, *own, scratch=self.written_out.get(name, 0), clings=clings
        )  # fmt: skip
        return self.beside.linear(self, name, x, out)

    def rotated(self, x: Value) -> Value:
        """Queries or keys with their positions turned in."""
        return self.tape.does(Value(x.numel, x.size), x, kept=self.angles, scratch=2 * x.bytes)

    def attention(self, q: Value, k: Value, v: Value) -> Value:
        k, v = self.beside.keys_and_values(self, k, v)
        # PyTorch's fused kernels want: on CUDA as many heads for keys as for queries, or half precision, flash
        # attention and no mask; on the CPU no dropout. Else it falls back to plain products, and says nothing. For a
        # mask transformers copies the heads first.
        tape, c = self.tape, self.config
        grouped = self._kv_width() < head_dim(c) * c.num_attention_heads
        # Texts as long as a sliding window need a mask.
        masked = self.beside.masked or tape.length >= (getattr(c, "sliding_window", None) or tape.length + 1)
        if grouped and masked and self.attention_kind == "sdpa":
            k, v = (tape.does(Value(x.numel * q.numel // (tape.tokens * self._kv_width()), x.size), x) for x in (k, v))
            grouped = False
        fused = self.attention_dropout == 0
        if tape.fused:
            fused = not (grouped and (q.size == FP32 or not self.flash))
        if self.attention_kind == "sdpa" and fused:
            # Inputs, output, and one sum for each head and token; the mask as numbers.
            out, sums = Value(q.numel, q.size), Value(c.num_attention_heads * tape.tokens, FP32)
            positions = k.numel * tape.tokens // (q.numel * tape.batch)
            mask = [Value(tape.tokens * positions, q.size)] * masked
            return tape.does(out, q, k, v, kept=(q, k, v, out, sums, *mask))
        return self._by_products(q, k, v)

    def _by_products(self, q: Value, k: Value, v: Value) -> Value:
        """Attention with all its (batch, heads, length, length) scores: by the model's own code, or by PyTorch's
        fallback, which scales queries and keys first."""
        tape, c, own = self.tape, self.config, self.attention_kind == "eager"
        width = head_dim(c) * c.num_attention_heads
        positions = k.numel // (tape.batch * self._kv_width())
        inner = q.size if own else FP32
        # Keys and values are copied for each head that shares them; views are laid out anew.
        whole = {q: tape.tokens * width, k: tape.batch * positions * width, v: tape.batch * positions * width}
        q, k, v = (
            x if own and x.base is None and x.numel == numel else tape.does(Value(numel, inner), x)
            for x, numel in whole.items()
        )
        places = c.num_attention_heads * tape.tokens * positions
        scores = tape.does(Value(places, inner), q, k, kept=[x for x, y in ((q, k), (k, q)) if y.grad])
        if own:
            scores = tape.copy(scores)
        if getattr(c, "attn_logit_softcapping", None):
            # The hyperbolic tangent's derivative comes from what it gave.
            capped = Value(places, inner)
            scores = tape.copy(tape.does(capped, scores, kept=(capped,)))
        # Most models' own code takes the softmax in fp32.
        wide = has_lm_head(c) and c.model_type != "gpt2"
        weights = Value(places, FP32 if own and wide else inner)
        weights = tape.cast(tape.does(weights, scores, kept=(weights,)), inner)
        weights = tape.dropout(weights, self.attention_dropout)
        out = Value(q.numel, inner)
        return tape.cast(
            tape.does(out, weights, v, kept=[x for x, y in ((weights, v), (v, weights)) if y.grad]), tape.size
        )

    def _kv_width(self) -> int:
        c = self.config
        return head_dim(c) * (getattr(c, "num_key_value_heads", None) or c.num_attention_heads)

    def _embeddings(self) -> Value:
        """Words, positions and kinds of text, looked up and added; the norm and the dropout behind them."""
        c, tape, x = self.config, self.tape, None
        for name, shape in self.shapes.items():
            if block(name) is None and len(shape) == 2 and is_embedding(name):
                own = tape.own(name, *shape)
                looked_up = tape.does(tape.value(c.hidden_size), trained=own)
                looked_up.grad = looked_up.grad or (self.input_grads and x is None)
                if own and self.tied and name == self.head:
                    # A tied table has its gradient from the output head by now: this one is added to it.
                    tape.segments[0][-1].trained, tape.segments[0][-1].scratch = (), own[0].bytes
                x = self.beside.start(self, looked_up) if x is None else tape.add(x, looked_up)
        if f"{_EMBEDDING_NORM}.weight" in self.shapes:
            x = tape.layer_norm(x, _EMBEDDING_NORM)
        elif c.model_type == "gemma2":
            x = tape.copy(x)
        return tape.dropout(x, _first(c, "hidden_dropout_prob", "dropout", "embd_pdrop"))

    def _last_norm(self, x: Value) -> Value:
        if not has_lm_head(self.config):
            return x
        if self.config.model_type == "gpt2":
            return self.tape.layer_norm(x, "transformer.ln_f")
        return self.tape.rms_norm(x, "model.norm", around_one=self.config.model_type == "gemma2")

    def _loss(self, x: Value) -> None:
        tape, c = self.tape, self.config
        if not has_lm_head(c):
            # The mean over the tokens, and a linear head on it.
            pooled = tape.does(Value(tape.batch * c.hidden_size, FP32), tape.cast(x, FP32))
            logits = Value(tape.batch * self.labels, FP32, part=LOGITS)
            head = [Parameter((self.labels, c.hidden_size), FP32), Parameter((self.labels,), FP32)]
            tape.does(logits, pooled, kept=(pooled,), trained=head)
        elif self.loss_chunk is not None:
            return self._chunked(x)
        else:
            logits = self._logits(x)
        wide = tape.cast(logits, FP32)
        chances = Value(wide.numel, FP32, part=LOGITS)
        # A language model shifts its labels by one, into a tensor of their own.
        shifted = [Value(tape.tokens, 8)] * has_lm_head(c)
        tape.does(chances, wide, kept=(chances, *shifted))
        tape.does(Value(1, FP32, part=LOGITS), chances)

    def _chunked(self, x: Value) -> None:
        """The loss of a few tokens at a time, each made again in the backward pass: three fp32 numbers for each logit
        of a chunk, or then the chunk's gradient for the output head."""
        tape = self.tape
        own = tape.own(self.head, *self.shapes[self.head])
        entries = min(self.loss_chunk, tape.tokens) * self.config.vocab_size
        scratch = max(3 * FP32 * entries, *(p.bytes for p in own), 0) + x.bytes
        tape.does(Value(1, FP32, part=LOGITS), x, kept=(x, Value(tape.tokens, 8)), trained=own, scratch=scratch)

    def _logits(self, x: Value) -> Value:
        """One number for each token and word of the vocabulary."""
        tape, layer = self.tape, self.layers["lm_head"]
        own = tape.own(self.head, *self.shapes[self.head])
        logits = self.beside.linear(self, "lm_head", x, tape.matmul(x, layer.outputs, own))
        logits.part = LOGITS
        if getattr(self.config, "final_logit_softcapping", None):
            capped = tape.copy(logits)
            logits = tape.copy(tape.does(Value(capped.numel, capped.size, part=LOGITS), capped, kept=(capped,)))
        return logits


def _first(config, *names: str) -> float:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), 0.0)


def _bert(net: Network, x: Value, at: str) -> Value:
    tape, p = net.tape, net.config.hidden_dropout_prob
    q, k, v = (net.linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
    h = net.linear(net.attention(q, k, v), f"{at}.attention.output.dense")
    x = tape.layer_norm(tape.add(tape.dropout(h, p), x), f"{at}.attention.output.LayerNorm")
    h = net.linear(tape.activation(net.linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
    return tape.layer_norm(tape.add(tape.dropout(h, p), x), f"{at}.output.LayerNorm")


def _distilbert(net: Network, x: Value, at: str) -> Value:
    tape = net.tape
    q, k, v = (net.linear(x, f"{at}.attention.{part}") for part in ("q_lin", "k_lin", "v_lin"))
    h = net.linear(net.attention(q, k, v), f"{at}.attention.out_lin")
    x = tape.layer_norm(tape.add(h, x), f"{at}.sa_layer_norm")
    h = net.linear(tape.activation(net.linear(x, f"{at}.ffn.lin1")), f"{at}.ffn.lin2")
    return tape.layer_norm(tape.add(tape.dropout(h, net.config.dropout), x), f"{at}.output_layer_norm")


def _gpt2(net: Network, x: Value, at: str) -> Value:
    tape, p = net.tape, net.config.resid_pdrop
    fused = net.linear(tape.layer_norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn")
    q, k, v = (tape.view(fused, net.config.hidden_size) for _ in range(3))
    a = net.attention(q, k, v)
    x = tape.add(x, tape.dropout(net.linear(a, f"{at}.attn.c_proj"), p))
    h = net.linear(tape.layer_norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
    # GELU is written out: half of x, times one plus the hyperbolic tangent of a polynomial in x.
    tangent = Value(h.numel, h.size)
    tape.does(tangent, h, kept=(h, tangent), scratch=2 * h.bytes)
    h = tape.product(tape.copy(h), tape.copy(tangent))
    return tape.add(x, tape.dropout(net.linear(h, f"{at}.mlp.c_proj"), p))


def _gated(net: Network, x: Value, at: str) -> Value:
    gate, up = net.linear(x, f"{at}.gate_proj"), net.linear(x, f"{at}.up_proj")
    return net.linear(net.tape.product(net.tape.activation(gate), up), f"{at}.down_proj")


def _llama(net: Network, x: Value, at: str) -> Value:
    tape = net.tape
    h = tape.rms_norm(x, f"{at}.input_layernorm")
    q, k, v = (net.linear(h, f"{at}.self_attn.{part}_proj") for part in "qkv")
    a = net.attention(net.rotated(q), net.rotated(k), v)
    x = tape.add(x, net.linear(a, f"{at}.self_attn.o_proj"))
    return tape.add(x, _gated(net, tape.rms_norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp"))


def _phi3(net: Network, x: Value, at: str) -> Value:
    tape, c = net.tape, net.config
    fused = net.linear(tape.rms_norm(x, f"{at}.input_layernorm"), f"{at}.self_attn.qkv_proj")
    heads = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
    q, k, v = (tape.view(fused, n * head_dim(c)) for n in heads)
    q, k = net.rotated(q), net.rotated(k)
    a = net.attention(q, k, v)
    if net.attention_kind == "sdpa" and not (tape.fused and tape.size == FP32):
        # Half-rotated queries lie in another order, and so does the output of most kernels: it is copied.
        a = tape.copy(a)
    x = tape.add(x, tape.dropout(net.linear(a, f"{at}.self_attn.o_proj"), c.resid_pdrop))
    both = net.linear(tape.rms_norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp.gate_up_proj")
    gate = tape.does(tape.value(c.intermediate_size), both, kept=(both,))
    h = net.linear(tape.does(tape.value(c.intermediate_size), gate, both, kept=(gate,)), f"{at}.mlp.down_proj")
    return tape.add(x, tape.dropout(h, c.resid_pdrop))


def _gemma2(net: Network, x: Value, at: str) -> Value:
    tape = net.tape

    def norm(value: Value, name: str) -> Value:
        return tape.rms_norm(value, f"{at}.{name}_layernorm", around_one=True)

    h = norm(x, "input")
    q, k, v = (net.linear(h, f"{at}.self_attn.{part}_proj") for part in "qkv")
    a = net.attention(net.rotated(q), net.rotated(k), v)
    x = tape.add(x, norm(net.linear(a, f"{at}.self_attn.o_proj"), "post_attention"))
    return tape.add(x, norm(_gated(net, norm(x, "pre_feedforward"), f"{at}.mlp"), "post_feedforward"))


_EMBEDDING_NORM = "embeddings.LayerNorm"
_BLOCKS = {
    "bert": (_bert, "encoder.layer"),
    "roberta": (_bert, "encoder.layer"),
    "distilbert": (_distilbert, "transformer.layer"),
    "gpt2": (_gpt2, "transformer.h"),
    "llama": (_llama, "model.layers"),
    "mistral": (_llama, "model.layers"),
    "qwen2": (_llama, "model.layers"),
    "phi3": (_phi3, "model.layers"),
    "gemma2": (_gemma2, "model.layers"),
}
