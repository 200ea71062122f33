"""Checks for lesson 05: equal budgets, the cache, attention with a prefix, labels behind a soft prompt."""

from collections.abc import Callable, Sequence

from course_lib.check import exercise, expect

import torch


@exercise("Exercise 1")
def matching_rank(answer: Callable[[int, int, int, Sequence[tuple[int, int]]], int]) -> None:
    """answer(m, blocks, d_kv, shapes) → the largest rank whose LoRA trains no more numbers than the prefix."""
    got = answer(20, 6, 128, [(256, 256), (128, 256)])
    hint = "The prefix has 2 · m · d_kv numbers a block, LoRA r · (outputs + inputs) for each matrix."
    expect(got == int(got), "A rank is a whole number.", "Round down.")
    expect(got != 2, "That leaves out that keys and values both have a prefix.", hint)
    expect(got != 34, "LoRA is in every block, too.", "Both are counted over all blocks, or both over one.")
    expect(got != 6, "6 is too many.", "Round down; and count outputs + inputs of each matrix.")
    expect(got == 5, f"m = 20, 6 blocks, d_kv = 128: not {got}.", hint)
    got = answer(10, 32, 1024, [(4096, 4096)])
    expect(got == 2, f"One square matrix, wide: not {got}.", "Outputs + inputs, not outputs × inputs.")
    got = answer(3, 1, 8, [(8, 16), (8, 16)])
    expect(got == 1, f"Exactly as many is no more: not {got}.", "The largest rank with LoRA's numbers ≤ the prefix's.")
    expect(answer(1, 6, 128, [(256, 256), (128, 256)]) == 0, "One virtual token affords no rank here.", "Return 0.")


@exercise("Exercise 2")
def cache_bytes(answer: Callable[[int, int, int, int, int, int], int]) -> None:
    """answer(sequences, tokens, tasks, m, numbers, bytes_each) → bytes of cache and prefixes."""
    got = answer(64, 1000, 3, 20, 100, 2)
    hint = "The cache has a place for every token of every sequence; a prefix stands there once for each task."
    expect(got != 64 * 1000 * 100 * 2, "The prefixes are missing.", hint)
    expect(got != 3 * 20 * 100 * 2, "The cache of the texts is missing.", hint)
    expect(got != 64 * 1020 * 100 * 2, "You give each sequence a prefix of its own.", "They share it: one a task.")
    expect(got != (64 * 1000 + 60) * 100, "Those are numbers, not bytes.", "A number takes bytes_each bytes.")
    expect(got != (64 * 1000 + 20) * 100 * 2, "You count one task.", "Each task has its own prefix.")
    expect(got == (64 * 1000 + 60) * 100 * 2, f"Expected another number than {got}.", hint)
    expect(answer(5, 7, 0, 11, 3, 4) == 5 * 7 * 12, "Without tasks there are no prefixes.", hint)


@exercise("Exercise 3")
def attend(answer: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    """answer(q, K, V, P_K, P_V) → (output (d,), share of attention on the prefix)."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, pk, pv = (torch.randn(*shape, generator=draw) for shape in ((4,), (5, 4), (5, 4), (3, 4), (3, 4)))
    got = answer(q, k, v, pk, pv)
    expect(isinstance(got, tuple | list) and len(got) == 2, "Two things are asked for.", "return output, share")
    output, share = torch.as_tensor(got[0]), torch.as_tensor(got[1])
    expect(output.shape == (4,), f"The output has shape {tuple(output.shape)}, not (4,).", "weights @ values")
    expect(share.ndim == 0, "The share is one number.", "Sum the weights that fall on the prefix.")

    def wanted(scale: float, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (keys @ q * scale).softmax(0) @ values

    keys, values = torch.cat([pk, k]), torch.cat([pv, v])
    mistakes = {
        "The scores are not divided by √d.": wanted(1, keys, values),
        "The scores are divided by d, not by its root (d is the query's width).": wanted(1 / 4, keys, values),
        "You divide by √256, the model's width, not the query's.": wanted(1 / 16, keys, values),
        "The prefix is missing.": wanted(0.5, k, v),
        "You take the softmax of text and prefix apart.": wanted(0.5, k, v) + wanted(0.5, pk, pv),
    }
    hint = "One softmax over all keys, the prefix's and the text's, of q·k / √d; then the weighted sum of all values."
    for mistake, value in mistakes.items():
        expect(not torch.allclose(output, value, atol=1e-5), mistake, hint)
    expect(torch.allclose(output, wanted(0.5, keys, values), atol=1e-5), "The output is another.", hint)
    right = (keys @ q / 2).softmax(0)[:3].sum()
    expect(
        not torch.allclose(share, 1 - right, atol=1e-5),
        "That is the share of the text.",
        "The prefix's keys stand first.",
    )
    expect(torch.allclose(share, right, atol=1e-5), f"The share is not {share:.3f}.", "Sum the prefix's weights.")
    q, k, v, pk, pv = (torch.randn(*shape, generator=draw) for shape in ((9,), (2, 9), (2, 9), (1, 9), (1, 9)))
    output, share = map(torch.as_tensor, answer(q, k, v, pk, pv))
    weights = (torch.cat([pk, k]) @ q / 3).softmax(0)
    sizes = "One virtual token, two of text, width 9: "
    expect(torch.allclose(output, weights @ torch.cat([pv, v]), atol=1e-5), f"{sizes}another output.", hint)
    expect(torch.allclose(share, weights[0], atol=1e-5), f"{sizes}another share.", "As many weights as P_K has rows.")


@exercise("Exercise 4")
def labels_for(answer: Callable[[Sequence[int], Sequence[int], int, int], Sequence[int]]) -> None:
    """answer(prompt_ids, text_ids, m, end) → labels of [soft prompt; prompt; text; end]."""
    prompt, text = [11, 12], [21, 22, 23]
    got = list(answer(prompt, text, 4, 9))
    hint = "m + prompt positions of -100, then the text's own ids, then the end token."
    mistakes = {
        "The positions of the soft prompt are missing.": [-100] * 2 + [21, 22, 23, 9],
        "The prompt is trained too.": [-100] * 4 + [11, 12, 21, 22, 23, 9],
        "The end token is missing: the model would never learn to stop.": [-100] * 6 + [21, 22, 23],
        "The end token is not trained: the model would never learn to stop.": [-100] * 6 + [21, 22, 23, -100],
        "You shifted the labels; the model does that itself.": [-100] * 5 + [21, 22, 23, 9, -100],
        "0 is a token: it would be trained.": [0] * 6 + [21, 22, 23, 9],
    }
    for mistake, value in mistakes.items():
        expect(got != value, mistake, hint)
    expect(len(got) == 10, f"There are {len(got)} labels for 4 + 2 + 3 + 1 positions.", hint)
    expect(got == [-100] * 6 + [21, 22, 23, 9], f"Not {got}.", hint)
    expect(list(answer([], [5], 0, 2)) == [5, 2], "Without soft prompt and prompt, all is trained.", hint)


@exercise("Exercise 5")
def nearest_tokens(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """answer(P (m, d), E (vocabulary, d)) → for each row of P the index of the row of E at the smallest angle."""
    e = torch.tensor([[1.0, 0.0], [10.0, 10.0], [0.0, 2.0], [1.0, -1.0], [-1.0, -1.0]])
    p = torch.tensor([[3.0, 0.1], [0.1, 9.0], [0.2, 0.2], [-9.0, -8.0]])
    got = torch.as_tensor(answer(p, e))
    expect(got.shape == (4,), f"The result has shape {tuple(got.shape)}, not (4,): one index a row of P.", "argmax(1)")
    hint = "Divide each row by its length, then multiply; the largest of each row."
    dots, distances = (p @ e.T).argmax(1), torch.cdist(p, e).argmin(1)
    expect(not torch.equal(got, dots), "You take dot products: long rows of E win.", hint)
    expect(not torch.equal(got, distances), "You take distances: the length of P's rows matters then.", hint)
    expect(torch.equal(got, torch.tensor([0, 2, 1, 4])), f"Expected other tokens than {got.tolist()}.", hint)
