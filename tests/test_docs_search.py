"""`docs_search` and the search over it: nothing leaks, ranks are right, and what is saved finds the same."""

from dataclasses import replace
from itertools import combinations

from course_lib import models, search, tasks, training
from course_lib.cli import main
from course_lib.errors import CourseError
from course_lib.tasks import Pairs, SearchTask, docs_search, docstrings

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

NAMES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return tasks.load("docs_search")


@pytest.fixture(scope="module")
def few(task):
    small = task.smaller(train=24, validation=8, test=8)
    cut = {name: Pairs(s.texts, tuple(t[:200] for t in s.labels), s.info) for name, s in splits(small).items()}
    return SearchTask("few", **cut)


def splits(task):
    return {name: getattr(task, name) for name in NAMES}


def test_sizes(task):
    sizes = {name: len(split) for name, split in splits(task).items()}
    assert sizes["train"] > 4000 and sizes["test"] > 1000 and sizes["validation"] > 300
    for name, share in docs_search.SPLITS.items():
        assert sizes[name] / sum(sizes.values()) == pytest.approx(share, abs=0.02)
    packages = {name: set(split.info["package"]) for name, split in splits(task).items()}
    assert packages["test"] - packages["train"] == set(docs_search.UNSEEN)


def test_splits_share_no_module_and_no_text(task):
    for one, other in combinations(splits(task).values(), 2):
        assert not set(one.info["module"]) & set(other.info["module"])
        assert not set(one.info["family"]) & set(other.info["family"])
        assert not {text.lower() for text in one.texts} & {text.lower() for text in other.texts}
        starts = [{text[: docs_search.SAME].lower() for text in split.labels} for split in (one, other)]
        assert not starts[0] & starts[1]


def test_modules_that_copy_from_each_other_are_in_one_split(task):
    def runs(split):
        return [docs_search.shingles(f"{q} {p}") for q, p in zip(split.texts, split.labels, strict=True)]

    trained = runs(task.train)
    holders = {}
    for i, found in enumerate(trained):
        for run in found:
            holders.setdefault(run, []).append(i)
    for one in runs(task.test.where("package", ["numpy", "sklearn", "scipy"]).take(150)):
        near = {i for run in one for i in holders.get(run, []) if len(holders[run]) <= 20}
        assert all(len(one & trained[i]) <= 0.6 * len(one | trained[i]) for i in near)


def test_families():
    same = "one two three four five six seven eight nine ten"
    rows = [
        {"module": module, "query": "", "passage": text}
        for module, text in (("a", same), ("b", f"{same} eleven"), ("c", "something else that nobody has said before"))
    ]
    assert sorted(len(family) for family in docs_search.families(rows)) == [1, 2]


def test_pairs_are_sentences_and_what_stands_below_them(task):
    for split in splits(task).values():
        assert all(len(query.split()) >= docs_search.QUERY_WORDS for query in split.texts)
        assert all(len(text) <= docs_search.PASSAGE_CHARACTERS and "\n" not in text for text in split.labels)
        names = zip(split.info["name"], split.info["module"], strict=True)
        assert all(name.startswith(module.removesuffix(".__init__")) for name, module in names)


def test_the_same_every_time(task):
    docs_search.load.cache_clear()
    assert docs_search.load().test.texts == task.test.texts


def test_bodies_are_cleaned():
    body = "Parameters\n----------\nx : :class:`~numpy.ndarray`\n    See ``y``.\n\n>>> f(1)\n"
    assert docs_search.clean(body) == "Parameters x : numpy.ndarray See y. f(1)"
    assert docs_search.clean("word " * 1000).endswith("word")


def test_a_file_gives_its_public_definitions(tmp_path):
    long = "This goes on for more than fifteen words so that it can be found by those who look for it."
    (tmp_path / "m.py").write_text(
        f'class A:\n    """Hold some values for a while.\n\n    {long}\n    """\n'
        f'    def b(self):\n        """Give the values back again.\n\n        {long}\n        """\n'
        f'def _c():\n    """Not shown to any reader here.\n\n    {long}\n    """\n'
        'def d():\n    """Has no text below it."""\n'
    )
    assert [row["name"] for row in docs_search.pairs("m", tmp_path / "m.py")] == ["m.A", "m.A.b"]
    (tmp_path / "broken.py").write_text("def (:")
    assert docs_search.pairs("broken", tmp_path / "broken.py") == []


def test_the_standard_library_is_read_without_what_is_installed():
    modules = [module for module, _ in docstrings.files(docstrings.STANDARD_LIBRARY)]
    assert "json.decoder" in modules and not any("site-packages" in module for module in modules)


def test_ranks():
    queries = np.array([[1.0, 0.0], [0.1, 1.0], [1.0, 1.0]])
    passages = np.array([[1.0, 0.1], [1.0, 0.9], [0.9, 1.0]])
    found = docs_search.ranks(queries, passages, dimensions=(2, 1))
    assert found[:, 0].tolist() == [1, 2, 2]
    assert found[:, 1].tolist() == [3, 3, 3], "a tie counts against the model"
    ranks = np.array([1, 2, 10, 11])
    assert docs_search.ndcg(ranks).tolist() == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(11), 0])
    assert docs_search.mrr(ranks).tolist() == [1, 0.5, 0.1, 0]
    assert docs_search.recall(ranks, 1).tolist() == [1, 0, 0, 0] and docs_search.recall(ranks, 10).sum() == 3


def test_a_model_that_diverged_finds_nothing():
    queries = np.array([[np.nan, np.nan], [1.0, 0.0]])
    passages = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert docs_search.ranks(queries, passages, dimensions=(2,))[:, 0].tolist() == [2, 2]


def test_ndcg_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    sides = [draw.normal(size=(40, 16)) for _ in range(2)]
    q, p = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    wanted = ndcg_score(np.eye(40), q @ p.T, k=10)
    assert docs_search.ndcg(docs_search.ranks(*sides, dimensions=(16,))).mean() == pytest.approx(wanted)


def test_turned_vectors_keep_their_angles_and_more_of_themselves():
    draw = np.random.default_rng(0)
    passages = draw.normal(size=(60, 16)) * np.linspace(0.1, 2, 16)
    queries = passages + 0.1 * draw.normal(size=passages.shape)
    q, p = search.turned(queries, passages)
    np.testing.assert_allclose(q @ p.T, queries @ passages.T, atol=1e-9)
    assert (p[:, :4] ** 2).sum() > 2 * (passages[:, :4] ** 2).sum()


def test_two_searches_as_one():
    by_words, by_meaning = np.array([[3.0, 2.0, 1.0]]), np.array([[0.1, 0.9, 0.8]])
    both = search.reciprocal(by_words, k=1) + search.reciprocal(by_meaning, k=1)
    assert both == pytest.approx(np.array([[1 / 2 + 1 / 4, 1 / 3 + 1 / 2, 1 / 4 + 1 / 3]]))
    tied = search.reciprocal(np.array([[0.0, 0.0, 1.0]]), k=1)
    assert tied == pytest.approx(np.array([[1 / 4, 1 / 4, 1 / 2]])), "in a tie both have the worse rank"
    ranks = docs_search.ranks(np.eye(2), np.eye(2), dimensions=(2,), combine=lambda scores: -scores)
    assert ranks[:, 0].tolist() == [2, 2], "the combined scores rank"


def test_bm25():
    scores = search.bm25(["red fox", "dog"], ["the red fox", "the red dog and the red cat", "the dog"])
    assert scores.shape == (2, 3) and scores[0].argmax() == 0 and scores[0, 2] == 0
    assert scores[1, 2] > scores[1, 1] > scores[1, 0] == 0, "a shorter text says more with the same word"
    # By hand: one of three texts holds "fox"; its length is 3, the mean 4.
    fox = np.log1p(2.5 / 1.5) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 4))
    red = np.log1p(1.5 / 2.5) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 4))
    assert scores[0, 0] == pytest.approx(fox + red, rel=1e-5)


def test_answers_may_stand_anywhere():
    passages = np.eye(3)
    assert docs_search.ranks(passages[[2, 0]], passages, dimensions=(3,), answers=[2, 1])[:, 0].tolist() == [1, 3]


def test_words_in_common_find_something(few):
    ranks = search.lexical_ranks(few.train)
    assert ranks.shape == (len(few.train),) and docs_search.ndcg(ranks).mean() > 0.5


def test_an_embedder_trains_at_all_its_sizes(few):
    model, tokenizer = models.embedder((384, 32))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = training.fit(model, tokenizer, few, learning_rate=1e-4, epochs=2, batch_size=8, max_length=64, progress=False)
    assert run.losses[1] < run.losses[0] and len(run.validation) == 2
    assert np.shape(run.predictions) == (len(few.test), len(docs_search.DIMENSIONS))
    assert run.accuracy == pytest.approx(docs_search.ndcg(np.array(run.predictions)[:, 0]).mean())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_loss_is_that_of_sentence_transformers(few):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    class Given(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["vectors"]}

        def get_embedding_dimension(self):
            return 384

    model, tokenizer = models.embedder(docs_search.DIMENSIONS)
    model.eval()
    examples = training.examples.examples_of(few, tokenizer, 64)
    batch = examples.collate(examples.rows("train")[:6])
    sides = [model.pooled(batch[f"{side}_ids"], batch[f"{side}_mask"]) for side in ("query", "passage")]
    given = Given()
    wanted = MatryoshkaLoss(given, MultipleNegativesRankingLoss(given), list(docs_search.DIMENSIONS))
    torch.testing.assert_close(model(**batch).loss, wanted([{"vectors": side} for side in sides], None))


@pytest.mark.parametrize("dimensions", [(), (0,), (385,)])
def test_sizes_that_vectors_do_not_have(dimensions):
    with pytest.raises(ValueError, match="Vectors have 1 to 384 dimensions"):
        models.embedder(dimensions)


@pytest.fixture(scope="module")
def saved(few, tmp_path_factory):
    """An index of a LoRA model, and the folder in which it is kept."""
    model, tokenizer = models.embedder()
    settings = {"epochs": 1, "batch_size": 8, "max_length": 64, "progress": False, "hparams": {"r": 2}}
    training.fit(model, tokenizer, few, "lora", learning_rate=1e-2, **settings)
    index, folder = search.Index.build(model, tokenizer, few), tmp_path_factory.mktemp("search")
    index.save(folder)
    return index, folder


def test_what_is_saved_finds_the_same(saved, monkeypatch):
    # In bf16, an adapter that is merged rounds differently.
    monkeypatch.setattr(search, "native_bf16", lambda: False)
    index, folder = saved
    again = search.Index.load(folder)
    query = index.texts[3].split(".")[0]
    for one, other in zip(index.find(query, 5), again.find(query, 5), strict=True):
        assert one[1:] == other[1:] and one[0] == pytest.approx(other[0], abs=1e-4)
    assert len(index.names) == 40 and index.find(query, 3)[0][0] >= index.find(query, 3)[1][0]
    with pytest.raises(ValueError, match="Type what you look for"):
        index.find("  ")


def test_the_command(saved, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(search.Index.load.__func__, "__defaults__", (saved[1],))
    assert main(["search", "how to do it", "--results", "2"]) == 0
    *found, last = capsys.readouterr().out.strip().split("\n")
    assert len(found) == 4 and last == "(40 docstrings searched)"
    monkeypatch.setattr(search.Index.load.__func__, "__defaults__", (tmp_path,))
    assert main(["search", "how to do it"]) == 2
    assert "There is no tuned search yet" in capsys.readouterr().err


def test_nothing_saved_says_what_to_do(tmp_path):
    with pytest.raises(CourseError, match="run lesson 07"):
        search.Index.load(tmp_path)


def test_all_documentation_is_encoded_once(saved, few, monkeypatch, capsys, tmp_path):
    new = replace(few.train.rows([0]), texts=("Turn it off.",), labels=("No more light.",))
    more = replace(few, train=few.train + new)
    monkeypatch.setattr("course_lib.tasks.load", lambda name: more)
    saved[0].save(tmp_path)
    monkeypatch.setattr(search.Index.load.__func__, "__defaults__", (tmp_path,))
    monkeypatch.setattr(search.Index.save, "__defaults__", (tmp_path,))
    for first in (True, False):
        assert main(["search", "No more light", "--all", "--results", "1"]) == 0
        said = capsys.readouterr().out
        assert ("encoding all documentation" in said) == first
        assert "Turn it off. No more light." in said and said.endswith("(41 docstrings searched)\n")
    assert np.allclose(search.Index.load().passages[0], saved[0].passages[0], atol=1e-2)
